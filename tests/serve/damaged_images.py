"""Hundreds of files that are no images, or not any more, made from good ones."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

__all__ = ["damaged_files"]

_SIZES = ((1, 2**31 - 1), (2**31 - 1, 1), (100_000, 100_000), (65_535, 65_535), (0, 10), (10, 0))
_TEXTS = (
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]><svg>&y;</svg>",
    b"<html><img src=x onerror=alert(1)></html>",
    b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n",
    b"#!/bin/sh\nrm -rf /\n",
    b"push graphic-context\nfill 'url(https://127.0.0.1/x.png\"|ls \"-la)'\npop graphic-context",
    b"PK\x03\x04" + bytes(60),
    b"\x1f\x8b\x08" + bytes(60),
    b"\x7fELF" + bytes(60),
    b"MZ" + bytes(60),
    b"\x80\x04\x95cos\nsystem\n(S'id'\ntR.",
    b'{"image": "data:image/png;base64,AAAA"}',
    b"https://127.0.0.1/image.png",
    b"file:///etc/passwd",
    b"/etc/passwd",
    b"../../../../etc/passwd\x00.png",
    b"\x00\x00\x00\x18ftypheic" + bytes(40),
    b"\x00\x00\x00\x0cJXL \r\n\x87\n",
    b"\xff\x0a" + bytes(40),
    b"P6 9999999 9999999 255\n",
    b"8BPS\x00\x01" + bytes(20),
    b"\x00",
    b"\n" * 1000,
    bytes(range(256)) * 8,
)
_MAGICS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"BM",
    b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00\x08\x00\x00\x00",
)


def damaged_files() -> Iterator[tuple[str, bytes]]:
    """Give more than 500 of them, each with a name that says what is wrong."""
    good = dict(_good())
    for number, text in enumerate(_TEXTS):
        yield f"foreign {number}", text
        for magic in _MAGICS:  # polyglots: one format by the first bytes, another one behind
            yield f"polyglot {magic!r} {number}", magic + text
    for kind, data in good.items():
        for share in (0.0005, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
            cut = max(4, int(len(data) * share))
            if kind != "jpeg" or share < 0.05:  # Pillow's decoders fill up what a JPEG lacks
                yield f"{kind} cut at {share}", data[:cut]
        yield f"{kind} without its head", data[16:]
        yield f"{kind} backwards", data[::-1]
        yield f"{kind} twice as text", data.hex().encode()
        yield f"{kind} behind a mark", b"\xef\xbb\xbf" + data
        yield f"{kind} of zeros", data[:4] + bytes(len(data))
    for wide, tall in _SIZES:
        for bits, colour in ((8, 2), (16, 6), (1, 0), (8, 3)):
            yield f"png bomb {wide}x{tall} {bits} {colour}", _png(wide, tall, bits, colour)
        yield f"bmp bomb {wide}x{tall}", _bmp(wide, tall)
        yield f"gif bomb {wide}x{tall}", _gif(wide, tall)
        for order in "<>":
            yield f"tiff bomb {order} {wide}x{tall}", _tiff(order, wide, tall)
    yield from _shaken(good["png"])
    yield "png of a gigabyte of zeros", _zip_bomb()


def _good() -> Iterator[tuple[str, bytes]]:
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    for kind in ("png", "jpeg", "gif", "bmp", "webp"):
        out = io.BytesIO()
        Image.fromarray(image).save(out, format=kind)
        yield kind, out.getvalue()
    out = io.BytesIO()
    tifffile.imwrite(out, image, compression="zlib", metadata=None)
    yield "tiff", out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(wide: int, tall: int, bits: int, colour: int) -> bytes:
    head = struct.pack(">IIBBBBB", wide, tall, bits, colour, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + body + _chunk(b"IEND", b"")


def _bmp(wide: int, tall: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 64, 0, 54, 40, wide, tall, 1, 24, *[0] * 6)


def _gif(wide: int, tall: int) -> bytes:
    size = struct.pack("<HH", wide & 0xFFFF, tall & 0xFFFF)
    return b"GIF89a" + size + b"\x80\x00\x00" + bytes(6) + b"," + bytes(4) + size + b"\x00\x02"


def _tiff(order: str, wide: int, tall: int) -> bytes:
    tags = [(256, wide), (257, tall), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 100)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    magic = b"II" if order == "<" else b"MM"
    head = magic + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def _zip_bomb() -> bytes:
    """A PNG of honest size whose packed rows would unpack to a gigabyte."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed)


def _shaken(data: bytes) -> Iterator[tuple[str, bytes]]:
    """PNGs with one byte of their pixels changed: the checksum tells."""
    start = data.index(b"IDAT") + 8
    for place in np.linspace(start, len(data) - 20, 160).astype(int).tolist():
        changed = bytearray(data)
        changed[place] ^= 0x5A
        yield f"png with another byte {place}", bytes(changed)
