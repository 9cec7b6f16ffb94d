"""Single images through Pillow; JPEG and 16-bit PNG past it where that pays."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from binseg.errors import ImageError, needing
from binseg.imageio import decoding

_MAX_FILE_BYTES = 2_000_000_000
_MOST_SEGMENTS = 5_000  # Blocks before a JPEG's pixels; a colour profile of 16 MB has 255
_CMYK_PEAK = 7  # Bytes a pixel that inks and colours take together
_BAND_ROWS = 1024
_MOST_CHANNELS, _FIRST_CHANNELS = 64, 4  # As many as a model has; as few as come first
_MOST_REDUCED = 8  # Pixels along each side of a block of JPEG
_PNG_LEVEL = 6  # zlib-ng's; files as small as zlib's at level 6, in a tenth of its time
_WARNINGS_LOCK = threading.Lock()

_GREY = {
    **dict.fromkeys(("1", "L", "LA", "La"), "uint8"),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "uint16"),
    **dict.fromkeys(("I", "F"), "float32"),
}
"""Pillow's modes of one channel, and the type that `image_of` gives; others become 8-bit RGB."""


@dataclass(frozen=True, kw_only=True)
class Raster(decoding.Decoder):
    """A file that one of Pillow's classes opened."""

    handle: decoding.Handle
    pil_image: ImageFile.ImageFile
    format: str
    bits: int  # Bits a sample (PNG) or pixel (BMP), 8 elsewhere
    orientation: int

    def info(self) -> decoding.ImageInfo:
        """Give the facts of the image as `image` gives it."""
        width, height = self.pil_image.size
        if decoding.swaps_sides(self.orientation):
            height, width = width, height
        mode = self.pil_image.mode
        return decoding.ImageInfo(
            height=height,
            width=width,
            channels=1 if mode in _GREY else 3,
            dtype="uint16" if self.bits == 16 else _GREY.get(mode, "uint8"),
            mode=mode,
            format=self.format,
            orientation=self.orientation,
        )

    def image(self) -> decoding.Pixels:
        """Decode the pixels, turned."""
        fast = self._fast()
        pixels = image_of(self.pil_image, name=self.name) if fast is None else fast
        return decoding.turn(pixels, self.orientation)

    def reduced(self, by: int) -> decoding.Pixels:
        """Decode a JPEG at an 8th, a quarter or a half: its blocks are averaged unseen."""
        by = min(by, reduced_by(self.info()))
        if by == 1:
            return self.image()
        decoding.check_scans(self._bytes())
        width, height = self.pil_image.size
        self.pil_image.draft(None, (width // by, height // by))
        assert self.pil_image.size == (-(-width // by), -(-height // by)), self.pil_image.size
        return decoding.turn(image_of(self.pil_image, name=self.name), self.orientation)

    def cover(self) -> decoding.Cover:
        """Give transparency, turned, and ICC profile."""
        icc = self.pil_image.info.get("icc_profile") or None
        if not self.pil_image.has_transparency_data:
            return None, icc
        alpha_HW = np.asarray(self.pil_image.convert("RGBA").getchannel("A"))
        return decoding.turn(alpha_HW, self.orientation), icc

    def palette(self) -> decoding.Colours | None:
        """Give the colours of a palette, where there is one."""
        return _palette_of(self.pil_image) if self.pil_image.mode in ("P", "PA") else None

    def labels(self, *, indices: bool = False) -> decoding.Labels:
        """Decode the raw values, turned: colours or indices of a palette, 0 and 1 of 1 bit."""
        fast = self._fast()
        if fast is not None:
            pixels = fast[:, :, 0] if fast.shape[2] == 1 else fast
        else:
            pixels = labels_of(self.pil_image, name=self.name, indices=indices)
            if self.format == "PNG" and self.pil_image.mode == "L" and self.bits < 8:
                # Pillow stretches 2 and 4 bits to 0..255; labels are the numbers in the file.
                pixels = pixels // np.uint8(255 // (2**self.bits - 1))
        return decoding.turn(pixels, self.orientation)

    def _fast(self) -> decoding.Pixels | None:
        """Decode straight into an array (JPEG: 3 times as fast; PNG: all 16 bits), or give None."""
        data = self._bytes() if self.format == "JPEG" else b""
        decoding.check_scans(data)
        if self.format == "PNG" and self.bits == 16:
            pixels = imagecodecs.png_decode(_only_pixels(self._bytes()))
        elif self.format == "JPEG" and self.pil_image.mode in ("L", "RGB"):
            if not data.endswith(b"\xff\xd9"):
                # Cut off, or something follows the image. This decoder would fill the missing
                # part with grey and say nothing; Pillow's tells the two apart.
                return None
            pixels = imagecodecs.jpeg8_decode(data)
        elif self.format == "BMP" and self.bits == 8 and self.pil_image.mode == "1":
            # Pillow takes 8 bits with a palette of black and white for 1 bit, and gives all black.
            pixels = imagecodecs.bmp_decode(self._bytes())[:, :, :1]
        else:
            return None
        if pixels.ndim == 2:
            return pixels[:, :, None]
        return pixels[:, :, : 1 if pixels.shape[2] <= 2 else 3]  # without alpha

    def _bytes(self) -> bytes:
        if self.handle.seek(0, io.SEEK_END) > _MAX_FILE_BYTES:
            most = f"{_MAX_FILE_BYTES / 1e9:g} GB"
            raise ImageError(f"{self.name}: larger than {most}; cut it into pieces")
        self.handle.seek(0)
        data = self.handle.read()
        self.handle.seek(0)
        return data


def reduced_by(info: decoding.ImageInfo) -> int:
    """Tell by how much at most a decoder can reduce an image of this header as it decodes."""
    return _MOST_REDUCED if info.format == "JPEG" and info.mode in ("L", "RGB") else 1


def open_raster(handle: decoding.Handle, *, name: str, plugin: type[ImageFile.ImageFile]) -> Raster:
    """Read a header by Pillow's class alone, whose limits are ours; raises ImageError."""
    format_ = str(plugin.format)
    handle.seek(0)
    head = handle.read(32).ljust(32, b"\0")  # PPMs may be shorter
    handle.seek(0)
    # Pillow warns of odd metadata that doesn't touch the pixels. The lock is there because
    # Python's filters are global: two threads that swap them at once could leave them swapped.
    if format_ == "JPEG":
        _check_segments(handle, name)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pil_image = plugin(handle)
        animated = bool(getattr(pil_image, "is_animated", False))
    width, height = pil_image.size
    bits = {"PNG": head[24], "BMP": head[28]}.get(format_, 8)
    exif = pil_image.info.get("exif")
    if exif is None and format_ == "PNG":
        exif = _late_exif(handle)
    orientation = decoding.orientation_of_exif(exif) if isinstance(exif, bytes) else 1
    if animated:
        told = f"an animation of {getattr(pil_image, 'n_frames', 2)} frames"
        raise ImageError(f"{name}: {told}; save the frames as single images")
    raw = bool(pil_image.tile) and pil_image.tile[0][0] == "raw"  # takes a bit a pixel at least
    if raw and handle.seek(0, io.SEEK_END) - int(pil_image.tile[0][2]) < width * height / 8:
        raise ImageError(f"{name}: the file is damaged or cut off; get it anew or leave it out")
    channels = _CMYK_PEAK if pil_image.mode == "CMYK" else 3
    itemsize = 2 if bits == 16 else 1
    decoding.check_size(name, height=height, width=width, channels=channels, itemsize=itemsize)
    return Raster(
        name=name,
        handle=handle,
        pil_image=pil_image,
        format=format_,
        bits=bits,
        orientation=orientation,
    )


def _check_segments(handle: decoding.Handle, name: str) -> None:
    """Refuse a JPEG of endless blocks, each of which Pillow would keep."""
    handle.seek(2)
    for _ in range(_MOST_SEGMENTS):
        head = handle.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xDA, 0xFF):
            handle.seek(0)
            return
        handle.seek(int.from_bytes(head[2:], "big") - 2, io.SEEK_CUR)
    raise ImageError(f"{name}: thousands of blocks before the pixels; save it again")


def _chunks(handle: decoding.Handle) -> Iterator[tuple[bytes, int]]:
    """Go through a PNG: the kind and the length of each chunk, where its content begins."""
    handle.seek(8)
    while len(header := handle.read(8)) == 8:
        length, place = int.from_bytes(header[:4], "big"), handle.tell()
        yield header[4:], length
        handle.seek(place + length + 4)


def _only_pixels(data: bytes) -> bytes:
    """Keep a PNG without its metadata, over which libpng would complain on stderr, and intact."""
    kept, handle = [data[:8]], io.BytesIO(data)
    for kind, length in _chunks(handle):
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            rest = handle.read(length + 4)
            if len(rest) < 4:
                break
            if zlib.crc32(kind + rest[:-4]) != int.from_bytes(rest[-4:], "big"):
                raise ValueError(f"wrong checksum of {kind.decode()}")
            kept.append(length.to_bytes(4, "big") + kind + rest)
    return b"".join(kept)


def _late_exif(handle: decoding.Handle) -> bytes | None:
    """Find a PNG's EXIF block behind the pixels, where Pillow sees it only after decoding."""
    back = handle.tell()
    found = None
    for kind, length in _chunks(handle):
        if kind == b"eXIf":
            found = handle.read(length)
        if kind in (b"eXIf", b"IEND"):
            break
    handle.seek(back)
    return found


@dataclass(frozen=True, kw_only=True)
class NumpyImage(decoding.Decoder):
    """An array that numpy saved: height x width, with channels last if there are any."""

    handle: decoding.Handle
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def info(self) -> decoding.ImageInfo:
        """Give the facts of the image as `image` gives it."""
        height, width, channels = self.shape
        return decoding.ImageInfo(
            height=height,
            width=width,
            channels=channels,
            dtype=decoding.given_dtype(self.dtype),
            mode=str(self.dtype),
            format="NPY",
        )

    def image(self) -> decoding.Pixels:
        """Give the pixels."""
        return decoding.as_given(self._load(), name=self.name)

    def labels(self, *, indices: bool = False) -> decoding.Labels:
        """Give the numbers of a mask, which must be whole."""
        del indices
        array_HWC = self._load()
        labels = array_HWC[:, :, 0] if array_HWC.shape[2] == 1 else array_HWC
        if labels.dtype.kind == "f":
            decoding.finite_float32(labels, name=self.name)
            if (labels != np.rint(labels)).any():
                raise ImageError(f"{self.name}: fractions in a mask; save whole numbers")
            return labels.astype(np.int64)
        return labels.astype(np.uint8) if labels.dtype.kind == "b" else labels

    def _load(self) -> np.ndarray:
        self.handle.seek(0)
        return np.asarray(np.load(self.handle, allow_pickle=False)).reshape(self.shape)


def open_numpy(handle: decoding.Handle, *, name: str) -> NumpyImage:
    """Read an array that numpy saved, but no objects, which may be programs; raises ImageError."""
    handle.seek(0)
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(handle)
    if len(shape) not in (2, 3) or dtype.kind not in "buif":
        wanted = "give height x width, or height x width x channels, of numbers"
        raise ImageError(f"{name}: an array of shape {shape} and type {dtype}; {wanted}")
    height, width, channels = (*shape, 1)[:3]
    if channels > _MOST_CHANNELS or height <= _FIRST_CHANNELS < channels:
        wanted = f"give height x width x channels (up to {_MOST_CHANNELS}), one array an image"
        raise ImageError(f"{name}: an array of shape {shape}; {wanted}")
    decoding.check_size(
        name, height=height, width=width, channels=channels, itemsize=dtype.itemsize
    )
    begin = handle.tell()
    if handle.seek(0, io.SEEK_END) - begin < height * width * channels * dtype.itemsize:
        raise ValueError(f"{width} x {height} pixels are not in it")
    return NumpyImage(name=name, handle=handle, shape=(height, width, channels), dtype=dtype)


def open_heic(handle: decoding.Handle, *, name: str) -> Raster:
    """Read the header of a HEIC photo; raises as `open_raster`, and MissingExtraError."""
    with needing("pillow-heif", extra="heic", purpose=f"reading {name}"):
        from pillow_heif import HeifImageFile
    return open_raster(handle, name=name, plugin=HeifImageFile)


def image_of(pil_image: Image.Image, *, name: str) -> decoding.Pixels:
    """A Pillow image's pixels as colour or grey, without alpha, not turned."""
    mode = pil_image.mode
    if mode == "1":
        return np.where(np.asarray(pil_image), np.uint8(255), np.uint8(0))[:, :, None]
    if mode in ("L", "LA", "La"):
        grey = np.asarray(pil_image)
        return np.ascontiguousarray(grey.reshape(*grey.shape[:2], -1)[:, :, :1])
    if mode in ("P", "PA"):
        return np.asarray(_palette_of(pil_image)[_indices_of(pil_image)])
    if mode.startswith("I;16"):
        return np.asarray(pil_image).astype(np.uint16)[:, :, None]
    if mode in ("I", "F"):
        return decoding.finite_float32(np.asarray(pil_image), name=name)[:, :, None]
    if mode in ("RGB", "RGBA", "RGBX"):
        return np.ascontiguousarray(np.asarray(pil_image)[:, :, :3])
    width, height = pil_image.size
    image_HWC = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND_ROWS):  # band by band: Pillow's RGB has 4 bytes a pixel
        band = pil_image.crop((0, top, width, min(height, top + _BAND_ROWS)))
        image_HWC[top : top + _BAND_ROWS] = np.asarray(band.convert("RGB"))
    return image_HWC


def labels_of(pil_image: Image.Image, *, name: str, indices: bool = False) -> decoding.Labels:
    """Give a Pillow image's raw values: H x W of numbers, or H x W x 3 of colours."""
    mode = pil_image.mode
    if mode == "1":
        return np.asarray(pil_image, np.uint8)
    if mode in ("P", "PA"):
        indices_HW = _indices_of(pil_image)
        return indices_HW if indices else through_palette(indices_HW, _palette_of(pil_image))
    if mode == "I":
        return np.asarray(pil_image, np.int32)
    pixels_HWC = image_of(pil_image, name=name)
    return pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC


def _indices_of(pil_image: Image.Image) -> UInt8[np.ndarray, "H W"]:
    pixels = np.asarray(pil_image)
    return np.ascontiguousarray(pixels[:, :, 0] if pixels.ndim == 3 else pixels)


def through_palette(
    indices_HW: UInt8[np.ndarray, "H W"], colours_N3: decoding.Colours
) -> UInt8[np.ndarray, "H W ..."]:
    """Look a mask's indices up: H x W of grey levels where only greys are used, else colours."""
    used = np.flatnonzero(np.bincount(indices_HW.ravel(), minlength=len(colours_N3)))
    is_grey = bool((colours_N3[used] == colours_N3[used, :1]).all())
    return np.asarray((colours_N3[:, 0] if is_grey else colours_N3)[indices_HW])


def _palette_of(pil_image: Image.Image) -> UInt8[np.ndarray, "256 3"]:
    pil_image.load()  # some formats attach the palette only then
    given = np.asarray(pil_image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours = np.zeros((256, 3), np.uint8)  # indices past a short palette are black
    colours[: len(given)] = given[:256]
    return colours


def encode_png(
    pixels: np.ndarray, text: str | None, extratags: object = (), *, icc: bytes | None = None
) -> bytes:
    """Encode as PNG; `text` becomes the chunk `binseg`, and tags of TIFF have no place."""
    del extratags
    assert pixels.dtype == np.uint8, pixels.dtype
    height, width = pixels.shape[:2]
    lines = np.zeros((height, 1 + pixels[0].size), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    if pixels.ndim == 3:  # of photographs, the differences to the line above are smaller
        lines[1:, 1:] -= pixels.reshape(height, -1)[:-1]
        lines[:, 0] = 2
    colours = {1: 0, 3: 2, 4: 6}[pixels.size // (height * width)]
    note = b"" if text is None else b"binseg\0" + text.encode("latin-1")
    chunks = {
        b"IHDR": struct.pack("!IIBBBBB", width, height, 8, colours, 0, 0, 0),
        b"iCCP": b"" if icc is None else b"icc\0\0" + zlib.compress(icc),
        b"tEXt": note,
        b"IDAT": imagecodecs.zlibng_encode(lines.tobytes(), level=_PNG_LEVEL),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
        if data or kind == b"IEND"
    )


def encode_jpeg(pixels: np.ndarray, text: str | None, extratags: object = ()) -> bytes:
    """Encode as JPEG, which has no place for a text or tags."""
    del text, extratags
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()
