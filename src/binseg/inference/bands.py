"""Images that are too large for memory: read by windows, answered band by band.

    windows -> regions -> inputs -> batches -> probabilities -> live rows -> finished bands

The arithmetic is that of `Predictor.predict`, on the same tiles. Bands are full rows, from the top
down; those that are finished leave, so that memory follows the image's width and not its area.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, UInt8

from binseg.imageio import ImageInfo
from binseg.imageio.windows import Windows
from binseg.inference.single import Predictor, mean_of
from binseg.transforms.geometry import cut, plan, resize_image, restore, tile_weights, tiles_for
from binseg.transforms.preprocess import (
    Bounds,
    known_range,
    percentile_range,
    percentile_step,
    prepare_region,
)
from binseg.types import Box, Placement, Preprocessing

__all__ = ["WHOLE_PIXELS", "batch_of", "live_bytes", "num_inputs", "probability_bands"]

WHOLE_PIXELS = 4_000_000
"""Pages of up to so many pixels are predicted whole: exactly `Predictor.predict`."""
_BATCH_PIXELS = 1 << 18
"""Input pixels computed at once on a processor; more would cost memory and save no time."""
_READ_BYTES = 48_000_000
"""Read at once where an image is shrunk or measured."""
_AHEAD = 2
"""Batches that are read while the model is busy with another."""

Tell = Callable[[int], None]


def probability_bands(
    predictor: Predictor,
    windows: Windows,
    page: int,
    *,
    band: int,
    first: int = 0,
    tell: Tell = lambda _: None,
    whole_pixels: int = WHOLE_PIXELS,
) -> Iterator[Float32[np.ndarray, "h W"]]:
    """Predict one page, `band` rows at a time.

    Args:
        predictor: the model; an ensemble whose members prepare images in ways of their own is
            computed member by member, band by band.
        windows: the image.
        page: which of its pages, from 0.
        band: rows of each band; the last may have fewer.
        first: the band to begin with; those before are not computed, and the others are the same to
            the bit as if they had been.
        tell: is told of rows that are computed, as they are.
        whole_pixels: up to this size the page is predicted whole.

    Raises:
        ImageError: the image can't be read, or doesn't fit the model's channels.
        BundleError: the model gives NaN or infinity.
    """
    info = windows.info(page)
    if info.height * info.width <= whole_pixels:
        yield from _whole(predictor, windows, page, band=band, first=first, tell=tell)
        return
    members = [predictor] if predictor.shares_inputs else predictor.members
    each = []
    for index, member in enumerate(members):
        compute = _tiled if member.preprocessing.resize == "tile" else _shrunk
        heard = tell if index == 0 else lambda _: None
        each.append(compute(member, windows, page, band=band, first=first, tell=heard))
    for bands in zip(*each, strict=True):
        yield bands[0] if len(bands) == 1 else mean_of(bands)


def batch_of(predictor: Predictor, height: int, width: int) -> int:
    """How many inputs of a page of this size are computed at once."""
    most = predictor.batch_for(height, width)
    if "cuda" in predictor.backend.name:
        return most
    shape = tiles_for(height, width, predictor.preprocessing)
    return max(1, min(most, _BATCH_PIXELS // (shape.height * shape.width)))


def num_inputs(predictor: Predictor, info: ImageInfo) -> int:
    """How many inputs a page takes, all members together; known without listing them."""
    each = []
    for member in predictor.members:
        shape = member.preprocessing
        rows, columns = (plan(info.height, 1, shape), plan(1, info.width, shape))
        each.append(len(rows) * len(columns))
    return sum(each)


def live_bytes(predictor: Predictor, info: ImageInfo, *, band: int) -> int:
    """Bytes of the rows that are held while a page is computed."""
    if info.height * info.width <= WHOLE_PIXELS:
        return info.height * info.width * (info.channels * np.dtype(info.dtype).itemsize + 12)
    rows = []
    for member in [predictor] if predictor.shares_inputs else predictor.members:
        tile = plan(info.height, 1, member.preprocessing)[0].source.height
        rows.append(tile + 2 * band if member.preprocessing.resize == "tile" else 2 * band)
    return sum(rows) * info.width * 4


def _whole(
    predictor: Predictor, windows: Windows, page: int, *, band: int, first: int, tell: Tell
) -> Iterator[Float32[np.ndarray, "h W"]]:
    """Predict a page that fits into memory."""
    info = windows.info(page)
    image_HWC = windows.read(page, 0, 0, info.height, info.width)
    probability_HW = predictor.probability_of_image(image_HWC, name=windows.name)
    tell(info.height - first * band)
    for top in range(first * band, info.height, band):
        yield probability_HW[top : top + band]


def _tiled(
    predictor: Predictor, windows: Windows, page: int, *, band: int, first: int, tell: Tell
) -> Iterator[Float32[np.ndarray, "h W"]]:
    """Predict by tiles, a row of tiles after the other."""
    info = windows.info(page)
    placements = plan(info.height, info.width, predictor.preprocessing)
    tall, wide = placements[0].source.height, placements[0].source.width
    rows = tile_weights({one.source.top for one in placements}, tall)
    columns = tile_weights({one.source.left for one in placements}, wide)
    base = first * band
    tops = [top for top in sorted(rows) if top + tall > base]
    # Rows base..base + band + tall of the page; what is above has left.
    canvas_HW = np.zeros((band + tall, info.width), np.float32)
    grid = [[one for one in placements if one.source.top == top] for top in tops]
    values = _values(windows, page, predictor.preprocessing)
    told = base
    for index, answers in enumerate(_answered(predictor, windows, page, grid, values)):
        for map_HW, placement in answers:
            source = placement.source
            part_HW = restore(map_HW, placement)
            part_HW *= rows[source.top][:, None] * columns[source.left]
            _add(canvas_HW, part_HW, source.top - base, source.left, info.height - base)
        ready = tops[index + 1] if index + 1 < len(tops) else info.height
        if ready > told:
            tell(ready - told)
            told = ready
        while base + band <= ready or ready == info.height > base:
            done_HW = canvas_HW[: min(band, info.height - base)]
            # The weights' rounding may leave [0, 1].
            yield np.clip(done_HW, 0.0, 1.0)
            canvas_HW[:-band] = canvas_HW[band:]
            canvas_HW[-band:] = 0
            base += band


def _add(
    canvas_HW: Float32[np.ndarray, "H W"],
    part_HW: Float32[np.ndarray, "h w"],
    top: int,
    left: int,
    end: int,
) -> None:
    """Add a tile to the canvas, without what lies outside it or below row `end`."""
    height, width = part_HW.shape
    bottom, right = min(top + height, end), min(left + width, canvas_HW.shape[1])
    above, before = max(top, 0), max(left, 0)
    if bottom > above:
        canvas_HW[above:bottom, before:right] += part_HW[
            above - top : bottom - top, before - left : right - left
        ]


def _answered(
    predictor: Predictor,
    windows: Windows,
    page: int,
    grid: Sequence[Sequence[Placement]],
    values: Bounds,
) -> Iterator[Iterator[tuple[Float32[np.ndarray, "h w"], Placement]]]:
    """The model's answers, row of tiles by row of tiles; inputs are read ahead in a thread.

    A batch never spans two rows: so it holds the same tiles wherever the work was taken up again,
    and gives the same bits.
    """
    info = windows.info(page)
    size = batch_of(predictor, info.height, info.width)
    batches = [row[start : start + size] for row in grid for start in range(0, len(row), size)]
    per_row = [-(-len(row) // size) for row in grid]
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[UInt8[np.ndarray, "B h w C"]]] = []
        order = iter(batches)

        def submit() -> None:
            for batch in order:
                waiting.append(pool.submit(_inputs, predictor, windows, page, batch, values))
                if len(waiting) >= _AHEAD:
                    return

        def answers(num: int, place: int) -> Iterator[tuple[np.ndarray, Placement]]:
            for batch in batches[place : place + num]:
                submit()
                inputs_BHWC = waiting.pop(0).result()
                yield from zip(predictor.probability_of_inputs(inputs_BHWC), batch, strict=True)

        try:
            place = 0
            for num in per_row:
                yield answers(num, place)
                place += num
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _inputs(
    predictor: Predictor,
    windows: Windows,
    page: int,
    batch: Sequence[Placement],
    values: Bounds,
) -> UInt8[np.ndarray, "B height width C"]:
    """Read the region of some neighbouring tiles once, and cut them out of it."""
    info = windows.info(page)
    boxes = [one.source for one in batch]
    top, left = max(0, boxes[0].top), max(0, min(one.left for one in boxes))
    bottom = min(info.height, max(one.top + one.height for one in boxes))
    right = min(info.width, max(one.left + one.width for one in boxes))
    region_HWC = windows.read(page, top, left, bottom - top, right - left)
    inputs = []
    for placement, box in zip(batch, boxes, strict=True):
        # Past the image's edge, where the region ends too, `cut` mirrors as it does for a whole.
        inside = Box(top=box.top - top, left=box.left - left, height=box.height, width=box.width)
        inputs.append(
            prepare_region(
                cut(region_HWC, inside),
                (placement.target.height, placement.target.width),
                predictor.preprocessing,
                values=values,
                name=windows.name,
            )
        )
    return np.stack(inputs)


def _shrunk(
    predictor: Predictor, windows: Windows, page: int, *, band: int, first: int, tell: Tell
) -> Iterator[Float32[np.ndarray, "h W"]]:
    """Stretch and pad: shrink the page while it is read, and spread the answer band by band."""
    info = windows.info(page)
    (placement,) = plan(info.height, info.width, predictor.preprocessing)
    input_HWC = _shrink(windows, page, placement, predictor.preprocessing)
    target = placement.target
    map_HW = predictor.probability_of_inputs(input_HWC[None])[0]
    inner_HW1 = map_HW[
        target.top : target.top + target.height, target.left : target.left + target.width, None
    ]
    for top in range(first * band, info.height, band):
        num = min(band, info.height - top)
        ends = (top * target.height / info.height, (top + num) * target.height / info.height)
        rows = (ends[0], min(ends[1], float(target.height)))
        band_HW1 = resize_image(inner_HW1, num, info.width, rows=rows)
        tell(num)
        yield np.clip(band_HW1[:, :, 0], 0.0, 1.0)


def _shrink(
    windows: Windows, page: int, placement: Placement, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "height width C"]:
    """The one input of a page, made from bands of its rows; the same as from the whole."""
    info = windows.info(page)
    values = _values(windows, page, preprocessing)
    target = placement.target
    shape = (placement.height, placement.width, preprocessing.channels)
    input_HWC = np.zeros(shape, np.uint8)
    factor = info.height / target.height
    # Bilinear with antialias: a new row is made of those within one new row's height of it.
    around = int(max(factor, 1.0)) + 2
    row_bytes = info.width * info.channels * np.dtype(info.dtype).itemsize
    num = max(1, int((_READ_BYTES / row_bytes - 2 * around) / factor))
    for start in range(0, target.height, num):
        end = min(start + num, target.height)
        top = max(0, int(start * factor) - around)
        bottom = min(info.height, int(end * factor) + around + 1)
        region_HWC = windows.read(page, top, 0, bottom - top, info.width)
        rows = (start * factor - top, min(end * factor, float(info.height)) - top)
        input_HWC[
            target.top + start : target.top + end, target.left : target.left + target.width
        ] = prepare_region(
            region_HWC,
            (end - start, target.width),
            preprocessing,
            values=values,
            rows=rows,
            name=windows.name,
        )
    return input_HWC


def _values(windows: Windows, page: int, preprocessing: Preprocessing) -> Bounds:
    """What becomes 0 and 1; where percentiles decide, the page is read once for them."""
    info = windows.info(page)
    known = known_range(info.dtype, preprocessing)
    if known is not None:
        return known
    every = percentile_step(info.height * info.width * info.channels)
    pixel_bytes = info.channels * np.dtype(info.dtype).itemsize
    wide = min(info.width, 1 << 15)
    tall = max(1, min(256, _READ_BYTES // (wide * pixel_bytes)))
    parts = []
    lows, highs = [], []
    for top in range(0, info.height, tall):
        for left in range(0, info.width, wide):
            height, width = min(tall, info.height - top), min(wide, info.width - left)
            part_HWC = windows.read(page, top, left, height, width)
            lows.append(part_HWC.min(axis=(0, 1)))
            highs.append(part_HWC.max(axis=(0, 1)))
            some_HWC = part_HWC[-top % every :: every, -left % every :: every]
            parts.append(some_HWC.reshape(-1, info.channels))
    return percentile_range(np.concatenate(parts), (np.min(lows, axis=0), np.max(highs, axis=0)))
