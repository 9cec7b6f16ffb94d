"""Results that are too large for memory: rows become packed tiles, packed tiles become a TIFF."""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Num

from binseg.imageio.metadata import Georeference, PixelSize

__all__ = ["TiledPage", "decode_tiles", "encode_tiles", "write_tiled"]

_LEVEL = 6
_CLASSIC_BYTES = 3_900_000_000
"""Larger files need BigTIFF's 64-bit addresses."""


@dataclass(frozen=True, kw_only=True)
class TiledPage:
    """One page of a TIFF file, already packed."""

    height: int
    width: int
    dtype: str
    tile: int
    """Height and width of the tiles, a multiple of 16."""
    tiles: Iterable[bytes]
    """Row by row, from `encode_tiles`; asked for when the page is written."""


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
    pages: Iterable[TiledPage],
    *,
    num_bytes: int,
    facts: Mapping[str, object],
    georeference: Georeference | None = None,
    pixel_size: PixelSize | None = None,
) -> None:
    """Write pages of packed tiles as one TIFF file; equal pages give equal bytes.

    Args:
        path: a temporary name; the caller moves the file when it is whole.
        pages: written as they come.
        num_bytes: about how many bytes all tiles have; decides between TIFF and BigTIFF.
        facts: what made the file, for the description of the first page.
        georeference: its place on a map.
        pixel_size: told by TIFF's resolution.
    """
    resolution = None
    if pixel_size is not None:
        resolution = (1e4 / pixel_size.width, 1e4 / pixel_size.height)
    text: str | None = json.dumps(facts, sort_keys=True)  # ASCII, as TIFF asks for
    with tifffile.TiffWriter(path, bigtiff=num_bytes > _CLASSIC_BYTES, byteorder="<") as writer:
        for page in pages:
            writer.write(
                _checked(page),
                shape=(page.height, page.width),
                dtype=page.dtype,
                tile=(page.tile, page.tile),
                compression="zlib",
                photometric="minisblack",
                description=text,
                resolution=resolution,
                resolutionunit="CENTIMETER" if resolution else None,
                extratags=georeference.tags() if georeference else (),
                metadata=None,
                software=False,
            )
            text = None


def _checked(page: TiledPage) -> Iterator[bytes]:
    """The page's tiles, as many as there must be."""
    wanted = -(-page.height // page.tile) * -(-page.width // page.tile)
    num = 0
    for one in page.tiles:
        num += 1
        yield one
    assert num == wanted, (num, wanted)
