"""Finished bands become the output: one TIFF file of all pages, or one OME-Zarr folder."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Num

from binseg.errors import UsageError
from binseg.imageio import TiledPage, encode_tiles, write_tiled
from binseg.imageio.metadata import Georeference, PixelSize
from binseg.imageio.zarr_folders import ZarrAxes, write_zarr_metadata
from binseg.inference.journal import Journal
from binseg.postprocess import PostProcessing
from binseg.postprocess.bands import clean_bands
from binseg.storage import publish

__all__ = ["Layout", "assemble", "page_layout"]

_BAND_PIXELS = 1 << 25
"""Most pixels of a band: very wide images have narrower ones."""
MASK, PROBABILITY = 0, 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one page is cut up on disk."""

    height: int
    width: int
    tile: int
    """Height and width of the tiles, and rows of a band."""

    @property
    def num_bands(self) -> int:
        """Bands of the page."""
        return -(-self.height // self.tile)


def page_layout(height: int, width: int) -> Layout:
    """Choose the tiles of a page: 512 x 512, less for small and for very wide pages.

    >>> page_layout(40_000, 40_000).tile, page_layout(100, 20).tile, page_layout(9, 300_000).tile
    (512, 112, 64)
    """
    tile = 512
    while tile > 64 and tile * width > _BAND_PIXELS:
        tile //= 2
    return Layout(
        height=height, width=width, tile=min(tile, -(-max(height, min(width, tile)) // 16) * 16)
    )


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What the output says beside its pixels."""

    facts: Mapping[str, object]
    georeference: Georeference | None
    pixel_size: PixelSize | None
    axes: ZarrAxes | None
    """Of a Zarr output."""


def assemble(
    journal: Journal,
    layouts: Sequence[Layout],
    *,
    out: Path,
    which: int,
    dtype: str,
    postprocessing: PostProcessing,
    whole: Whole,
) -> int:
    """Write one layer of all finished bands under its final name.

    Args:
        journal: all bands of all pages.
        layouts: of the pages.
        out: a .tif, .tiff or .zarr name; what is there is replaced.
        which: the layer: 0 the mask, 1 the probability.
        dtype: of the layer.
        postprocessing: of the mask; must be empty for the probability.
        whole: what else the output says.

    Returns:
        Pixels of the mask that are foreground; 0 for the probability.

    Raises:
        OutputError: the disk refused; all bands are kept.
        DataError: more objects to clean up than fit into memory.
    """
    counted = [0]

    def bands_of(page: int, layout: Layout) -> Iterator[Num[np.ndarray, "h W"]]:
        """The rows of a page, cleaned up."""

        def masks() -> Iterator[Bool[np.ndarray, "h W"]]:
            return (rows > 0 for rows in _stored(journal, page, layout, which, dtype))

        for mask_HW in clean_bands(masks, postprocessing)():
            counted[0] += int(np.count_nonzero(mask_HW))
            yield mask_HW.astype(np.uint8) * np.uint8(255)

    def tiles_of(page: int, layout: Layout) -> Iterator[bytes]:
        """The packed tiles of a page: as they are where nothing is cleaned up."""
        if not postprocessing.is_empty:
            for rows_HW in bands_of(page, layout):
                yield from encode_tiles(rows_HW, layout.tile)
            return
        for index in range(layout.num_bands):
            band = journal.read(page, index)
            if which == MASK:
                counted[0] += band.foreground
            yield from band.layers[which]

    if whole.axes is not None:
        finished = journal.folder / "whole.zarr"
        rows_of = (
            _stored_rows(journal, which, dtype, counted) if postprocessing.is_empty else bands_of
        )
        _write_zarr(finished, layouts, rows_of, dtype=dtype, name=out.stem, whole=whole)
    else:
        finished = journal.folder / "whole.tif"
        pages = (
            TiledPage(
                height=one.height,
                width=one.width,
                dtype=dtype,
                tile=one.tile,
                tiles=tiles_of(page, one),
            )
            for page, one in enumerate(layouts)
        )
        write_tiled(
            finished,
            pages,
            num_bytes=journal.num_bytes(),
            facts=whole.facts,
            georeference=whole.georeference,
            pixel_size=whole.pixel_size,
        )
    publish(finished, out)
    return counted[0]


Rows = Callable[[int, Layout], Iterable[Num[np.ndarray, "h W"]]]


def _stored(
    journal: Journal, page: int, layout: Layout, which: int, dtype: str
) -> Iterator[Num[np.ndarray, "h W"]]:
    for index in range(layout.num_bands):
        yield journal.layer(page, index, which, tile=layout.tile, width=layout.width, dtype=dtype)


def _stored_rows(journal: Journal, which: int, dtype: str, counted: list[int]) -> Rows:
    """The rows as they are, counted."""

    def rows(page: int, layout: Layout) -> Iterator[Num[np.ndarray, "h W"]]:
        for rows_HW in _stored(journal, page, layout, which, dtype):
            if which == MASK:
                counted[0] += int(np.count_nonzero(rows_HW))
            yield rows_HW

    return rows


def _write_zarr(
    folder: Path,
    layouts: Sequence[Layout],
    rows_of: Rows,
    *,
    dtype: str,
    name: str,
    whole: Whole,
) -> None:
    assert whole.axes is not None
    if len({(one.height, one.width) for one in layouts}) > 1:
        raise UsageError(f"{name}: pages of several sizes don't fit into one Zarr; write a .tif")
    shutil.rmtree(folder, ignore_errors=True)  # of a program that was stopped here
    tile = layouts[0].tile
    array = write_zarr_metadata(
        folder, whole.axes, chunk=tile, dtype=dtype, name=name, facts=whole.facts
    )
    for page, layout in enumerate(layouts):
        at = np.unravel_index(page, whole.axes.lengths[:-2]) if len(whole.axes.lengths) > 2 else ()
        for index, rows_HW in enumerate(rows_of(page, layout)):
            rows = slice(index * tile, index * tile + len(rows_HW))
            array[(*(int(one) for one in at), rows, slice(None))] = rows_HW
