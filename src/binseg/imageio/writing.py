"""Masks, images and probabilities to files, each whole or not at all.

What made a file can travel in it: `facts` become JSON in a PNG's text chunk `binseg` and in a
TIFF's description; JPEG has no place for them.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import tifffile
from jaxtyping import Int32, Num, UInt8, UInt16
from PIL.PngImagePlugin import PngImageFile

from binseg.errors import OutputError
from binseg.imageio.decoding import one_line
from binseg.imageio.formats import FORMATS, format_of
from binseg.imageio.metadata import Georeference, PixelSize
from binseg.imageio.raster import encode_png
from binseg.storage import write_bytes
from binseg.types import Mask, Probability

Facts = Mapping[str, object]  # Origin of a file, as plain data
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # Matroska's first bytes; then a length
NAN_IS_NO_DATA = [(42113, 2, 4, "nan", True)]  # GDAL's tag for NaN, as `extratags`


class World(TypedDict, total=False):
    """The place on a map and the size of a pixel, where they are known."""

    georeference: Georeference | None
    pixel_size: PixelSize | None


def write_mask(
    path: Path, mask_HW: Mask, *, facts: Facts | None = None, **world: Unpack[World]
) -> None:
    """Write a mask as grey, 0 and 255, PNG or TIFF by suffix; raises OutputError."""
    assert mask_HW.dtype == np.bool_, mask_HW.dtype
    _write(path, _grey(mask_HW), ("PNG", "TIFF"), facts, **world)


def write_image(
    path: Path,
    image_HWC: UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"],
    *,
    facts: Facts | None = None,
    icc: bytes | None = None,
) -> None:
    """Write 8-bit colours, with opacity or ICC profile if given, by suffix; others as TIFF."""
    assert image_HWC.dtype in (np.uint8, np.uint16), image_HWC.dtype
    channels = image_HWC.shape[2]
    bytes_as = {3: ("PNG", "JPEG", "TIFF"), 4: ("PNG", "TIFF")}
    formats = bytes_as.get(channels, ()) if image_HWC.dtype == np.uint8 else ()
    pixels = image_HWC[:, :, 0] if channels == 1 else image_HWC
    _write(path, pixels, formats or ("TIFF",), facts, icc=icc)


def write_numbers(
    path: Path,
    numbers_HW: Probability | Int32[np.ndarray, "H W"],
    *,
    facts: Facts | None = None,
    **world: Unpack[World],
) -> None:
    """Write probabilities as float32 TIFF, objects' numbers as integers; raises as `write_mask`."""
    tags = NAN_IS_NO_DATA if np.isnan(numbers_HW).any() else ()
    if numbers_HW.dtype.kind == "i":
        numbers_HW = numbers_HW.astype(np.uint16 if numbers_HW.max() < 1 << 16 else np.uint32)
    _write(path, numbers_HW, ("TIFF",), facts, tags=tags, **world)


def encode_mask(mask_HW: Mask, *, facts: Facts | None = None) -> bytes:
    """Give the bytes of the PNG that `write_mask` writes."""
    return encode_png(_grey(mask_HW), _text(facts))


def encode_probability(probability_HW: Probability) -> bytes:
    """Give the bytes of an 8-bit PNG whose values are probabilities times 255, rounded."""
    return encode_png(np.rint(probability_HW * np.float32(255)).astype(np.uint8), None)


def encode_image(
    image_HWC: UInt8[np.ndarray, "H W C"], *, facts: Facts | None = None, icc: bytes | None = None
) -> bytes:
    """Give the bytes of a PNG, with 3 channels or with 4, the last of which is opacity."""
    assert image_HWC.shape[2] in (3, 4), image_HWC.shape
    return encode_png(image_HWC, _text(facts), icc=icc)


def read_facts(path: Path) -> dict[str, object]:
    """Read what made a PNG or TIFF of ours; empty where the file doesn't say."""
    try:
        with path.open("rb") as handle:
            is_png = format_of(handle.read(32)) == "PNG"
            handle.seek(0)
            if is_png:
                text = PngImageFile(handle).info.get("binseg", "")
            else:
                text = tifffile.TiffFile(handle).pages.first.description
        facts = json.loads(text)
    except (OSError, ValueError, TypeError, AttributeError, tifffile.TiffFileError):
        return {}
    return facts if isinstance(facts, dict) else {}


def is_whole(path: Path) -> bool:
    """Tell a whole PNG, TIFF or Matroska file; others are whole where they aren't empty."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            head = handle.read(4096)
            if format_of(head[:32]) == "PNG":
                handle.seek(-12, 2)
                return handle.read() == b"\0\0\0\0IEND\xaeB`\x82"
            if format_of(head[:32]) == "TIFF":
                handle.seek(0)
                parts: list[Any] = list(tifffile.TiffFile(handle).pages)
                ends = [
                    offset + count
                    for one in parts
                    for offset, count in zip(one.dataoffsets, one.databytecounts, strict=True)
                ]
                return bool(ends) and max(ends) <= size
            if (at := head.find(_SEGMENT)) > 0 and head.startswith(_EBML):
                length = int.from_bytes(head[at + 4 : at + 12]) & ((1 << 56) - 1)
                return at + 12 + length <= size
    except (OSError, ValueError, TypeError, AttributeError, tifffile.TiffFileError):
        return os.path.isdir(path)  # noqa: PTH112 - an OME-Zarr folder, put there whole
    return size > 0


def _grey(mask_HW: Mask) -> UInt8[np.ndarray, "H W"]:
    return mask_HW.astype(np.uint8) * np.uint8(255)


def _text(facts: Facts | None) -> str | None:
    return None if facts is None else json.dumps(facts, sort_keys=True)  # ASCII, as TIFF asks for


def _write(
    path: Path,
    pixels: np.ndarray,
    formats: tuple[str, ...],
    facts: Facts | None,
    *,
    tags: Sequence[Any] = (),
    icc: bytes | None = None,
    **world: Unpack[World],
) -> None:
    path = Path(path)
    suffix = path.suffix.lower()
    chosen = [FORMATS[name] for name in formats if suffix in FORMATS[name].suffixes]
    if not chosen or chosen[0].encode is None:
        accepted = ", ".join(suffix for name in formats for suffix in FORMATS[name].suffixes[:2])
        raise OutputError(f"can't write {one_line(path)}: the name must end in one of {accepted}")
    place, size = world.get("georeference"), world.get("pixel_size")
    more: dict[str, Any] = {}
    if size is not None and chosen[0].stacks:
        more["resolution"] = size.per_centimetre()
    if icc is not None and chosen[0] is FORMATS["PNG"]:
        more["icc"] = icc
    tags = [*tags, *(place.tags() if place else ())]
    write_bytes(path, chosen[0].encode(pixels, _text(facts), tags, **more))


_LEVEL = 6
_CLASSIC_BYTES = 3_900_000_000  # Larger files need BigTIFF's 64-bit addresses


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A page, and the square tiles that it is cut into."""

    height: int
    width: int
    tile: int  # Height and width of the tiles, a multiple of 16; rows of a band

    @property
    def num_bands(self) -> int:
        """Count the rows of tiles."""
        return -(-self.height // self.tile)


def encode_tiles(rows_HW: Num[np.ndarray, "h W"], tile: int) -> list[bytes]:
    """Pack a row of square tiles (deflate); zeros fill up what the rows don't cover."""
    height, width = rows_HW.shape
    assert height <= tile, (height, tile)
    packed = []
    for left in range(0, width, tile):
        part_HW = rows_HW[:, left : left + tile]
        if part_HW.shape != (tile, tile):
            full_HW = np.zeros((tile, tile), rows_HW.dtype)
            full_HW[: part_HW.shape[0], : part_HW.shape[1]] = part_HW
            part_HW = full_HW
        packed.append(zlib.compress(part_HW.tobytes(), _LEVEL))
    return packed


def decode_tiles(
    packed: Sequence[bytes], tile: int, *, height: int, width: int, dtype: str
) -> Num[np.ndarray, "height width"]:
    """Unpack a row of tiles into the rows that they were made of."""
    out_HW = np.empty((height, width), dtype)
    for index, data in enumerate(packed):
        full_HW = np.frombuffer(zlib.decompress(data), dtype).reshape(tile, tile)
        left = index * tile
        out_HW[:, left : left + tile] = full_HW[:height, : width - left]
    return out_HW


def write_tiled(
    path: Path,
    pages: Iterable[tuple[Layout, Iterable[bytes]]],
    *,
    dtype: str,
    num_bytes: int,
    facts: Facts,
    georeference: Georeference | None = None,
    pixel_size: PixelSize | None = None,
    holds_nan: bool = False,
) -> None:
    """Write pages of `encode_tiles` as one TIFF, Big beyond `num_bytes`; `holds_nan` is noted."""
    resolution = None if pixel_size is None else pixel_size.per_centimetre()
    text = _text(facts)
    tags = [*(NAN_IS_NO_DATA if holds_nan else ()), *(georeference.tags() if georeference else ())]
    with tifffile.TiffWriter(path, bigtiff=num_bytes > _CLASSIC_BYTES, byteorder="<") as writer:
        for layout, tiles in pages:
            writer.write(
                iter(tiles),
                shape=(layout.height, layout.width),
                dtype=dtype,
                tile=(layout.tile, layout.tile),
                compression="zlib",
                photometric="minisblack",
                description=text,
                resolution=resolution,
                resolutionunit="CENTIMETER" if resolution else None,
                extratags=tags,
                metadata=None,
                software=False,
            )
            text = None
