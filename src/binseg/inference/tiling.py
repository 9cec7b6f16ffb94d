"""Images that are too large for memory: read by windows, predicted band by band.

    windows -> regions -> inputs -> batches -> probabilities -> live rows -> finished bands

The arithmetic is that of `Predictor.predict`, on the same tiles. Bands are full rows, from the top
down; those that are finished leave, so that memory follows the image's width and not its area.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt

from binseg.imageio import ImageInfo, Layout, encode_tiles
from binseg.imageio.windows import Windows
from binseg.inference.journal import Band
from binseg.inference.opening import mean_of
from binseg.inference.predict_options import Inputs, Probability
from binseg.inference.predictor import Predictor, Tell, untold
from binseg.parallel import map_ordered
from binseg.postprocess import above
from binseg.transforms import geometry, preprocess
from binseg.types import Placement, Preprocessing

WHOLE_PIXELS = 4_000_000  # Pages of up to so many pixels are predicted whole
_BATCH_PIXELS = 1 << 18  # Input pixels at once on a processor; more save no time
_READ_BYTES = 48_000_000  # read at once where an image is shrunk or measured
_BAND_PIXELS = 1 << 25  # Most pixels of a band: very wide images have narrower ones
ProbabilityType = Literal["uint8", "float16", "float32"]  # uint8: probability times 255


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Some bands of a page of an image, one below the other, and where they are to be kept."""

    path: Path
    folder: Path
    page: int
    numbers: Sequence[int]
    tile: int  # Rows of a band
    probability: ProbabilityType | None
    whole_pixels: int


Elsewhere = Callable[[Sequence[Bands]], None]
"""Has bands computed and kept; those that are missing afterwards are computed here."""


def packed_bands(
    predictor: Predictor, windows: Windows, bands: Bands, *, tell: Tell = untold
) -> Generator[Band]:
    """Predict and pack bands; their bytes are the same whoever computes them, and from where on."""
    tile, place = bands.tile, {"first": bands.numbers[0], "whole_pixels": bands.whole_pixels}
    found = probability_bands(predictor, windows, bands.page, band=tile, tell=tell, **place)
    with closing(found):  # no thread reads on when the image is closed
        for _, probability_HW in zip(bands.numbers, found, strict=False):
            mask_HW = above(probability_HW, predictor.threshold)
            layers = [encode_tiles(mask_HW.astype(np.uint8) * np.uint8(255), tile)]
            if bands.probability is not None:
                kept_HW = probability_HW
                if bands.probability == "uint8":
                    kept_HW = np.rint(np.nan_to_num(probability_HW) * np.float32(255))
                layers.append(encode_tiles(kept_HW.astype(bands.probability), tile))
            num = int(np.count_nonzero(mask_HW))
            yield Band(height=len(mask_HW), foreground=num, layers=tuple(layers))


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


def probability_bands(
    predictor: Predictor,
    windows: Windows,
    page: int,
    *,
    band: int,
    first: int = 0,
    tell: Tell = untold,
    whole_pixels: int = WHOLE_PIXELS,
) -> Generator[Probability]:
    """Predict one page, `band` rows at a time (the last band may have fewer), from band `first` on.

    Bands are the same to the bit wherever the work begins; `tell` hears of rows. Where there is no
    data the probability is NaN. Raises ImageError, and BundleError for NaN or infinity.
    """
    info = windows.info(page)

    def everywhere() -> Generator[Probability]:
        """Predict band by band, as if there were data everywhere."""
        if info.height * info.width <= whole_pixels:
            image_HWC = windows.read(page, 0, 0, info.height, info.width)
            probability_HW = predictor.probability_of_image(image_HWC, windows.name)
            tell(info.height - first * band)
            for top in range(first * band, info.height, band):
                yield probability_HW[top : top + band]
            return
        each = []
        for index, (member, shape) in enumerate(_parts(predictor)):
            one = _Page(predictor=member, shape=shape, windows=windows, page=page, info=info)
            each.append(one.bands(band, first, tell if index == 0 else untold))
        for bands in zip(*each, strict=True):
            yield bands[0] if len(bands) == 1 else mean_of(bands)

    with closing(everywhere()) as found:
        for index, found_HW in enumerate(found, start=first):
            valid_HW = windows.valid(page, index * band, 0, *found_HW.shape)
            yield found_HW if valid_HW is None else np.where(valid_HW, found_HW, np.float32(np.nan))


def batch_of(predictor: Predictor, height: int, width: int) -> int:
    """Tell how many inputs of a page of this size are computed at once."""
    most = min(one.batch_for(height, width) for one in predictor.members)
    if all("cuda" in one.backend.name for one in predictor.members):
        return most
    shapes = [geometry.tiles_for(height, width, one.preprocessing) for one in predictor.members]
    return max(1, min(most, _BATCH_PIXELS // max(one.height * one.width for one in shapes)))


def live_bytes(predictor: Predictor, info: ImageInfo, *, band: int) -> int:
    """Count the bytes of the rows that are held while a page is computed."""
    if info.height * info.width <= WHOLE_PIXELS:
        return info.height * info.width * (info.channels * np.dtype(info.dtype).itemsize + 12)
    rows = 0
    for _, shape in _parts(predictor):
        is_tiled = shape.resize == "tile"
        tall = geometry.plan(info.height, 1, shape)[0].source.height if is_tiled else 0
        rows += 2 * band + tall
    return rows * info.width * 4


def _parts(predictor: Predictor) -> list[tuple[Predictor, Preprocessing]]:
    """List what is computed by itself: all members at once where they take the same inputs."""
    if predictor.preprocessing is not None:
        return [(predictor, predictor.preprocessing)]
    return [(one, one.preprocessing) for one in predictor.members]


@dataclass(frozen=True, kw_only=True)
class _Page:
    """A page of an image, and who predicts it from inputs of which shape."""

    predictor: Predictor
    shape: Preprocessing
    windows: Windows
    page: int
    info: ImageInfo

    def bands(self, band: int, first: int, tell: Tell) -> Iterator[Probability]:
        compute = self._tiled if self.shape.resize == "tile" else self._shrunk
        return compute(band, first, tell)

    def _tiled(self, band: int, first: int, tell: Tell) -> Iterator[Probability]:
        height, width = self.info.height, self.info.width
        placements = geometry.plan(height, width, self.shape)
        tall, wide = placements[0].source.height, placements[0].source.width
        rows = geometry.tile_weights({one.source.top for one in placements}, tall)
        columns = geometry.tile_weights({one.source.left for one in placements}, wide)
        base = told = first * band
        tops = [top for top in sorted(rows) if top + tall > base]
        # Rows base..base + band + tall of the page; what is above has left.
        canvas_HW = np.zeros((band + tall, width), np.float32)
        grid = [[one for one in placements if one.source.top == top] for top in tops]
        for index, answers in enumerate(self._answered(grid)):
            for map_HW, placement in answers:
                source = placement.source
                part_HW = geometry.restore(map_HW, placement)
                part_HW *= rows[source.top][:, None] * columns[source.left]
                moved = replace(source, top=source.top - base)
                inner_HW, where = geometry.inside(part_HW, moved, height - base, width)
                canvas_HW[where] += inner_HW
            ready = tops[index + 1] if index + 1 < len(tops) else height
            if ready > told:
                tell(ready - told)
                told = ready
            while base + band <= ready or ready == height > base:
                done_HW = canvas_HW[: min(band, height - base)]
                yield np.clip(done_HW, 0.0, 1.0)  # the weights' rounding may leave [0, 1]
                canvas_HW[:-band] = canvas_HW[band:]
                canvas_HW[-band:] = 0
                base += band

    def _answered(
        self, grid: Sequence[Sequence[Placement]]
    ) -> Iterator[Iterator[tuple[Float32[np.ndarray, "h w"], Placement]]]:
        """Compute tiles row by row, in batches of one row; inputs are read ahead."""
        size = batch_of(self.predictor, self.info.height, self.info.width)
        read_inputs = partial(self._inputs, self._values())
        rows = [[row[start : start + size] for start in range(0, len(row), size)] for row in grid]

        def answers(row: list[Sequence[Placement]]) -> Iterator[tuple[np.ndarray, Placement]]:
            for batch in row:
                yield from zip(self.predictor.probability_of_inputs(next(read)), batch, strict=True)

        # One thread: readers of windows aren't shared, and more batches would only take memory.
        batches = (batch for row in rows for batch in row)
        with closing(map_ordered(read_inputs, batches, num_threads=1, ahead=2)) as read:
            for row in rows:
                yield answers(row)

    def _inputs(self, values: preprocess.Bounds, batch: Sequence[Placement]) -> Inputs:
        """Read the region of some neighbouring tiles once, and cut them out of it."""
        boxes = [one.source for one in batch]
        top, left = max(0, boxes[0].top), max(0, min(one.left for one in boxes))
        bottom = min(self.info.height, max(one.top + one.height for one in boxes))
        right = min(self.info.width, max(one.left + one.width for one in boxes))
        region_HWC = self.windows.read(self.page, top, left, bottom - top, right - left)
        inputs = []
        prepare = partial(preprocess.prepare_region, values=values, name=self.windows.name)
        for placement, box in zip(batch, boxes, strict=True):
            # Past the image's edge, where the region ends too, `cut` mirrors as for a whole.
            inside = replace(box, top=box.top - top, left=box.left - left)
            tile_HWC = geometry.cut(region_HWC, inside)
            size = (placement.target.height, placement.target.width)
            inputs.append(prepare(tile_HWC, size, self.shape))
        return np.stack(inputs)

    def _shrunk(self, band: int, first: int, tell: Tell) -> Iterator[Probability]:
        """Predict the page as one input, and spread the map band by band."""
        height, width = self.info.height, self.info.width
        (placement,) = geometry.plan(height, width, self.shape)
        map_HW = self.predictor.probability_of_inputs(self._input(placement)[None])[0]
        target = placement.target
        bottom, right = target.top + target.height, target.left + target.width
        inner_HW1 = map_HW[target.top : bottom, target.left : right, None]
        for top in range(first * band, height, band):
            num = min(band, height - top)
            end = min((top + num) * target.height / height, float(target.height))
            box = (0.0, top * target.height / height, float(target.width), end)
            band_HW1 = geometry.resize_image(inner_HW1, num, width, box=box)
            tell(num)
            yield np.clip(band_HW1[:, :, 0], 0.0, 1.0)

    def _input(self, placement: Placement) -> UInt[np.ndarray, "height width C"]:
        """Make the one input of a page from bands of its rows; the same as from the whole."""
        info, target = self.info, placement.target
        size, row_bytes = (info.height, info.width), info.width * info.channels
        by = preprocess.reduction(size, self.shape) if info.dtype == "uint8" else 1
        if by > 1:
            num = max(1, _READ_BYTES // (row_bytes * by)) * by
            bands = (
                self.windows.read(self.page, top, 0, min(num, info.height - top), info.width)
                for top in range(0, info.height, num)
            )
            reduced_HWC = np.concatenate(
                [geometry.reduce_image(band_HWC, by) for band_HWC in bands]
            )
            inputs, _ = preprocess.prepare(
                reduced_HWC, self.shape, name=self.windows.name, size=size
            )
            return np.asarray(inputs[0])
        values = self._values()
        shape = (placement.height, placement.width, self.shape.channels)
        input_HWC = np.zeros(shape, self.shape.pixel_type)
        factor = info.height / target.height
        # Bilinear with antialias: a new row is made of those within one new row's height of it.
        around = int(max(factor, 1.0)) + 2
        row_bytes *= np.dtype(info.dtype).itemsize
        num = max(1, int((_READ_BYTES / row_bytes - 2 * around) / factor))
        for start in range(0, target.height, num):
            end = min(start + num, target.height)
            top = max(0, int(start * factor) - around)
            bottom = min(info.height, int(end * factor) + around + 1)
            region_HWC = self.windows.read(self.page, top, 0, bottom - top, info.width)
            input_HWC[
                target.top + start : target.top + end, target.left : target.left + target.width
            ] = preprocess.prepare_region(
                region_HWC,
                (end - start, target.width),
                self.shape,
                values=values,
                rows=(start * factor - top, min(end * factor, float(info.height)) - top),
                name=self.windows.name,
            )
        return input_HWC

    def _values(self) -> preprocess.Bounds:
        """Find what becomes 0 and 1; where percentiles decide, the page is read once for them."""
        info = self.info
        known = preprocess.known_range(info.dtype, self.shape)
        if known is not None:
            return known
        every = preprocess.percentile_step(info.height * info.width * info.channels)
        wide = min(info.width, 1 << 15)
        row_bytes = wide * info.channels * np.dtype(info.dtype).itemsize
        tall = max(1, min(256, _READ_BYTES // row_bytes))
        parts, lows, highs = [], [], []
        for top in range(0, info.height, tall):
            for left in range(0, info.width, wide):
                height, width = min(tall, info.height - top), min(wide, info.width - left)
                part_HWC = self.windows.read(self.page, top, left, height, width)
                lows.append(part_HWC.min(axis=(0, 1)))
                highs.append(part_HWC.max(axis=(0, 1)))
                some_HWC = part_HWC[-top % every :: every, -left % every :: every]
                parts.append(some_HWC.reshape(-1, info.channels))
        ends = (np.min(lows, axis=0), np.max(highs, axis=0))
        return preprocess.percentile_range(np.concatenate(parts), ends)
