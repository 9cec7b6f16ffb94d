"""Full rows of a huge image: computed and kept alone, by this process or by others."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from binseg.imageio import Layout, caged_windows, encode_tiles
from binseg.imageio.windows import DeclaredWindows
from binseg.inference.image_like import Probability
from binseg.inference.journal import Band, write_band
from binseg.inference.predictor import Predictor
from binseg.inference.tiling import probability_bands
from binseg.postprocess import above

ProbabilityType = Literal["uint8", "float16", "float32"]  # uint8: probability times 255
_BAND_PIXELS = 1 << 25  # Most pixels of a band: very wide images have narrower ones


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Some bands of a page of an image, one below the other, and where they are to be kept."""

    path: Path
    folder: Path
    page: int
    numbers: tuple[int, ...]
    probability: ProbabilityType | None
    whole_pixels: int


Elsewhere = Callable[[Sequence[Bands]], None]
"""Has bands computed and kept; those that are missing afterwards are computed here."""


def compute_bands(predictor: Predictor, bands: Bands) -> int:
    """Compute and keep bands, and count them; their bytes are those that one process would keep."""
    first, last = bands.numbers[0], bands.numbers[-1]
    with caged_windows(bands.path) as windows:
        for value in predictor.nodata:
            windows = DeclaredWindows(windows, value)  # noqa: PLW2901
        info = windows.info(bands.page)
        tile = page_layout(info.height, info.width).tile
        found = probability_bands(
            predictor, windows, bands.page, band=tile, first=first, whole_pixels=bands.whole_pixels
        )
        with closing(found):
            for index, probability_HW in zip(range(first, last + 1), found, strict=False):
                band = packed(predictor, probability_HW, tile, bands.probability)
                write_band(bands.folder, bands.page, index, band)
    return last + 1 - first


def packed(
    predictor: Predictor, probability_HW: Probability, tile: int, kept: ProbabilityType | None
) -> Band:
    """Cut a band's mask, and pack it, with the probability where that is kept."""
    mask_HW = above(probability_HW, predictor.threshold)
    layers = [encode_tiles(mask_HW.astype(np.uint8) * np.uint8(255), tile)]
    if kept is not None:
        kept_HW = probability_HW
        if kept == "uint8":
            kept_HW = np.rint(np.nan_to_num(probability_HW) * np.float32(255))
        layers.append(encode_tiles(kept_HW.astype(kept), tile))
    return Band(
        height=len(mask_HW), foreground=int(np.count_nonzero(mask_HW)), layers=tuple(layers)
    )


def page_layout(height: int, width: int) -> Layout:
    """Choose the tiles of a page: 512 x 512, less for small and for very wide pages.

    >>> page_layout(40_000, 40_000).tile, page_layout(100, 20).tile, page_layout(9, 300_000).tile
    (512, 112, 64)
    """
    tile = 512
    while tile > 64 and tile * width > _BAND_PIXELS:
        tile //= 2
    own = -(-max(height, min(width, tile)) // 16) * 16
    return Layout(height=height, width=width, tile=min(tile, own))
