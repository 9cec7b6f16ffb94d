"""The only resizer and tile planner: how an image gets into a model's input, and the way back.

Images are resized with Pillow's bilinear filter, which widens as it shrinks (antialias); masks
take the nearest pixel and are never mixed. Pillow works channel by channel on 8-bit integers
(modes L and RGB) or on floats (mode F): 8-bit images take the integer path, which is several
times faster and, as it rounds after each of its two passes, differs from the float path by rounding
alone (one grey level). Where the size doesn't change, pixels are copied bit by bit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num, UInt8
from PIL import Image

from binseg.types import AnyImage, Box, Mask, Placement, Preprocessing, Probability

_BILINEAR = Image.Resampling.BILINEAR
_RGB_PIXELS = 1 << 24
"""Limit above which colours go through Pillow one at a time, in a quarter of the memory."""
_STRIDE = 32
"""Tiles begin at multiples of this many pixels of the input: the coarsest grid of common networks.
A tile that began between them would be pooled differently from the whole image."""
_SHARED = 320
"""Least pixels that neighbours share where images are cut into tiles of the largest size, so that
each pixel comes from a tile that shows 144 pixels around it: about as far as U-Nets look."""
_FADE = 32
"""Most pixels over which a tile passes into its neighbour. What a tile says near its rim, where it
can't see the surroundings, has no weight; a longer fade would come nearer to the rim."""


def plan(height: int, width: int, preprocessing: Preprocessing) -> tuple[Placement, ...]:
    """Say which regions of an image of this height and width become which model inputs.

    It is one placement for stretch and letterbox; for tile a grid, row by row, whose sources have
    the tile's size (`tiles_for`) divided by the scale (in whole pixels) and cover every pixel. In
    an image larger than a tile they begin at multiples of the networks' coarsest stride, so that
    the last ones may reach past its end by less than that.
    """
    assert height > 0, height
    assert width > 0, width
    one = tiles_for(height, width, preprocessing)
    into_height, into_width = one.height, one.width
    target = Box(top=0, left=0, height=into_height, width=into_width)
    sources = [Box(top=0, left=0, height=height, width=width)]
    if one.resize == "letterbox":
        target = _centred(height, width, into_height, into_width)
    if one.resize == "tile":
        tall, wide = _tile(one)
        tops = _starts(height, tall, one.overlap, _stride(tall, into_height))
        lefts = _starts(width, wide, one.overlap, _stride(wide, into_width))
        sources = [Box(top=y, left=x, height=tall, width=wide) for y in tops for x in lefts]
    size = {"height": into_height, "width": into_width}
    return tuple(Placement(source=source, target=target, **size) for source in sources)


def tiles_for(height: int, width: int, preprocessing: Preprocessing) -> Preprocessing:
    """Size and overlap of the tiles that an image is cut into, without a `largest_tile`.

    With a `largest_tile` a side that fits is one tile, of the next multiple of the networks'
    coarsest stride, and never smaller than the tiles of training; a longer one is cut into tiles of
    that length that share what networks look at.

    >>> large = Preprocessing(height=256, width=256, resize="tile", largest_tile=1024)
    >>> one = tiles_for(700, 100, large)
    >>> one.height, one.width
    (704, 256)
    >>> tiles_for(5000, 700, large).overlap
    0.3125
    """
    largest = preprocessing.largest_tile
    if largest == 0 or preprocessing.resize != "tile":
        return preprocessing
    sides = [math.ceil(side * preprocessing.scale) for side in (height, width)]
    shared = _SHARED / largest if max(sides) > largest else 0.0
    tall, wide = (
        max(least, min(largest, -(-side // _STRIDE) * _STRIDE))
        for side, least in zip(sides, (preprocessing.height, preprocessing.width), strict=True)
    )
    overlap = max(preprocessing.overlap, min(0.5, shared))
    return replace(preprocessing, height=tall, width=wide, overlap=overlap, largest_tile=0)


def _tile(preprocessing: Preprocessing) -> tuple[int, int]:
    scale = preprocessing.scale
    return max(1, round(preprocessing.height / scale)), max(1, round(preprocessing.width / scale))


def scaled_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The size of a whole image at the very scale of its tiles, at least one pixel."""
    tall, wide = _tile(preprocessing)
    new_height = max(1, round(height * preprocessing.height / tall))
    return new_height, max(1, round(width * preprocessing.width / wide))


def _centred(height: int, width: int, into_height: int, into_width: int) -> Box:
    """The largest box of the image's aspect in the middle of the input, at least one pixel."""
    scale = min(into_height / height, into_width / width)
    target_height = min(into_height, max(1, round(height * scale)))
    target_width = min(into_width, max(1, round(width * scale)))
    top, left = (into_height - target_height) // 2, (into_width - target_width) // 2
    return Box(top=top, left=left, height=target_height, width=target_width)


def _stride(tile: int, into: int) -> int:
    """Pixels of the image that become `_STRIDE` pixels of the input; 1 where they aren't whole.

    >>> _stride(256, 256), _stride(512, 256), _stride(100, 256)
    (32, 64, 1)
    """
    return 1 if _STRIDE * tile % into else max(1, _STRIDE * tile // into)


def _starts(length: int, tile: int, overlap: float, stride: int = 1) -> list[int]:
    """Place tiles along one axis: evenly spread, overlapping by at least the share asked.

    >>> _starts(100, 40, 0.25)
    [0, 30, 60]
    >>> _starts(300, 128, 0.25, 32)
    [0, 96, 192]
    >>> _starts(30, 40, 0.25)
    [-5]
    """
    if length <= tile:
        return [-((tile - length) // 2)]
    step = max(1, math.floor(tile * (1 - overlap)))
    while stride > 1 and step // stride * stride < 0.75 * step:
        stride = 1 if stride % 2 else stride // 2  # a whole one would cost too many tiles
    step = step // stride * stride
    last = math.ceil((length - tile) / stride)
    num = math.ceil(last * stride / step)
    return [stride * round(index * last / num) for index in range(num + 1)]


def place(
    image_HWC: AnyImage,
    placement: Placement,
    *,
    resize: Callable[[Num[np.ndarray, "h w C"], int, int], np.ndarray] | None = None,
) -> Num[np.ndarray, "height width C2"]:
    """Make an input: cut out, mirrored past the edges, `resize`d, in the middle of zeros."""
    target = placement.target
    region_HWC = cut(image_HWC, placement.source)
    fitted_HWC = (resize or resize_image)(region_HWC, target.height, target.width)
    if (target.height, target.width) == (placement.height, placement.width):
        return fitted_HWC
    shape = (placement.height, placement.width, fitted_HWC.shape[2])
    out_HWC = np.zeros(shape, fitted_HWC.dtype)
    out_HWC[_slices(target)] = fitted_HWC
    return out_HWC


def place_mask(mask_HW: Mask, placement: Placement) -> Bool[np.ndarray, "height width"]:
    """Put a mask where `place` puts its image: nearest pixel, and False outside the image."""
    source, target = placement.source, placement.target
    height, width = mask_HW.shape
    rows = _nearest(source.height, target.height) + source.top
    columns = _nearest(source.width, target.width) + source.left
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    fitted_HW = mask_HW[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    out_HW = np.zeros((placement.height, placement.width), np.bool_)
    out_HW[_slices(target)] = fitted_HW & inside_rows[:, None] & inside_columns
    return out_HW


def restore(
    map_HW: Float32[np.ndarray, "height width"], placement: Placement
) -> Float32[np.ndarray, "source_height source_width"]:
    """Bring a model's output, without its padding, back to the size of its source (bilinear)."""
    assert map_HW.shape == (placement.height, placement.width), map_HW.shape
    inner_HW1 = map_HW[_slices(placement.target)][:, :, None].astype(np.float32, copy=False)
    return resize_image(inner_HW1, placement.source.height, placement.source.width)[:, :, 0]


def blend(
    maps: Iterable[Float32[np.ndarray, "height width"]],
    placements: Sequence[Placement],
    height: int,
    width: int,
) -> Probability:
    """Join outputs at the input's size into one map of the image, by `tile_weights`."""
    if len(placements) == 1:
        (only,) = maps
        restored_HW = restore(only, placements[0])
        return np.ascontiguousarray(inside(restored_HW, placements[0].source, height, width)[0])
    first = placements[0].source
    rows = tile_weights({one.source.top for one in placements}, first.height)
    columns = tile_weights({one.source.left for one in placements}, first.width)
    total_HW = np.zeros((height, width), np.float32)
    for map_HW, placement in zip(maps, placements, strict=True):
        source = placement.source
        window_HW = rows[source.top][:, None] * columns[source.left]
        part_HW, where = inside(restore(map_HW, placement) * window_HW, source, height, width)
        total_HW[where] += part_HW
    return total_HW


def tile_weights(starts: Iterable[int], tile: int) -> dict[int, Float32[np.ndarray, " tile"]]:
    """Weigh the pixels of tiles that begin at `starts` along one axis; at each pixel they sum to 1.

    Halfway between the rims of two neighbours one passes into the other over half their overlap,
    `_FADE` pixels at most (a raised cosine): so there is no step, and no pixel comes from nearer to
    the rim of a tile than a quarter of the overlap, except at the image's own edges.

    >>> [(weight * 100).round().astype(int).tolist() for weight in tile_weights([0, 2], 6).values()]
    [[100, 100, 100, 85, 15, 0], [0, 15, 85, 100, 100, 100]]
    """
    order = sorted(starts)
    shared = [first + tile - second for first, second in pairwise(order)]
    fade = min([_FADE, *(one // 2 for one in shared)])
    weights = {}
    for index, start in enumerate(order):
        centres = np.arange(start, start + tile) + 0.5
        entered, left = np.ones(tile), np.zeros(tile)
        if index > 0:
            entered = _risen(centres, (order[index - 1] + tile + start) / 2, fade)
        if index + 1 < len(order):
            left = _risen(centres, (start + tile + order[index + 1]) / 2, fade)
        weights[start] = (entered - left).astype(np.float32)
    return weights


def _risen(
    centres: Float64[np.ndarray, " n"], middle: float, fade: int
) -> Float64[np.ndarray, " n"]:
    share = np.clip((centres - middle) / max(fade, 1e-9) + 0.5, 0.0, 1.0)
    return np.asarray(np.sin(share * (np.pi / 2)) ** 2)


def inside(
    region_HW: Float32[np.ndarray, "h w"], source: Box, height: int, width: int
) -> tuple[Float32[np.ndarray, "h2 w2"], tuple[slice, slice]]:
    """The part of a region that lies in the image, and where in the image it is."""
    top, left = max(source.top, 0), max(source.left, 0)
    bottom = min(source.top + source.height, height)
    right = min(source.left + source.width, width)
    rows = slice(top - source.top, bottom - source.top)
    columns = slice(left - source.left, right - source.left)
    return region_HW[rows, columns], (slice(top, bottom), slice(left, right))


def resize_image(
    image_HWC: AnyImage,
    height: int,
    width: int,
    *,
    box: tuple[float, float, float, float] | None = None,
) -> Num[np.ndarray, "height width C"]:
    """Resize, bilinear and antialiased, a copy; or what a `box` (left, top, right, bottom) has."""
    assert image_HWC.dtype in (np.uint8, np.uint16, np.float32), image_HWC.dtype
    tall, wide, channels = image_HWC.shape
    if box is None and (tall, wide) == (height, width):
        return image_HWC.copy()

    def resized(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((width, height), _BILINEAR, box))

    is_bytes = image_HWC.dtype == np.uint8
    if channels == 3 and is_bytes and tall * wide <= _RGB_PIXELS:
        return resized(image_HWC).copy()
    out_HWC = np.empty((height, width, channels), image_HWC.dtype)
    for channel in range(channels):
        plane_HW = image_HWC[:, :, channel]
        # Pillow's 16-bit modes lack a proper bilinear filter, so those go through floats, which
        # hold every uint16 exactly.
        plane_HW = resized(plane_HW if is_bytes else plane_HW.astype(np.float32))
        out_HWC[:, :, channel] = np.rint(plane_HW) if out_HWC.dtype == np.uint16 else plane_HW
    return out_HWC


def reduce_image(image_HWC: UInt8[np.ndarray, "H W C"], by: int) -> UInt8[np.ndarray, "h w C"]:
    """Average an image over squares of `by` x `by` pixels; those at its end may be cut off."""
    planes = [image_HWC]
    if image_HWC.shape[2] != 3 or image_HWC[:, :, 0].size > _RGB_PIXELS:
        planes = [image_HWC[:, :, channel] for channel in range(image_HWC.shape[2])]
    small = [np.asarray(Image.fromarray(np.ascontiguousarray(one)).reduce(by)) for one in planes]
    return small[0] if len(small[0].shape) == 3 else np.stack(small, axis=2)


def resize_mask(
    mask_HW: Num[np.ndarray, "H W"] | Mask, height: int, width: int
) -> Num[np.ndarray, "height width"] | Bool[np.ndarray, "height width"]:
    """Resize a mask or a map of labels by taking the nearest pixel; no value is ever made up."""
    rows, columns = _nearest(mask_HW.shape[0], height), _nearest(mask_HW.shape[1], width)
    return np.asarray(mask_HW[rows[:, None], columns])


def _nearest(length: int, new_length: int) -> Num[np.ndarray, " new_length"]:
    """Find the old pixel under the centre of each new one, in whole numbers: never off by one.

    >>> _nearest(4, 2).tolist(), _nearest(2, 4).tolist()
    ([1, 3], [0, 0, 1, 1])
    """
    centres = (2 * np.arange(new_length, dtype=np.int64) + 1) * length
    return np.asarray(centres // (2 * new_length))


def cut(image_HWC: Num[np.ndarray, "H W *C"], source: Box) -> Num[np.ndarray, "h w *C"]:
    """The source's pixels, mirrored past the edges; a view where the region lies inside."""
    height, width = image_HWC.shape[:2]
    bottom, right = source.top + source.height, source.left + source.width
    if source.top >= 0 and source.left >= 0 and bottom <= height and right <= width:
        return image_HWC[_slices(source)]
    rows = _mirrored(source.top, source.height, height)
    columns = _mirrored(source.left, source.width, width)
    return np.asarray(image_HWC[rows[:, None], columns])


def _mirrored(start: int, count: int, length: int) -> Num[np.ndarray, " count"]:
    """Indices start..start+count folded into 0..length-1, as numpy's symmetric padding does.

    >>> _mirrored(-2, 7, 3).tolist(), _mirrored(-1, 3, 1).tolist()
    ([1, 0, 0, 1, 2, 2, 1], [0, 0, 0])
    """
    folded = np.arange(start, start + count, dtype=np.int64) % (2 * length)
    return np.asarray(np.minimum(folded, 2 * length - 1 - folded))


def _slices(box: Box) -> tuple[slice, slice]:
    return (slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))


@dataclass(frozen=True, kw_only=True)
class SmallMap:
    """A smaller output of an image that is one input; pixels as `restore` gives, to the bit."""

    map_HW: Float32[np.ndarray, "height width"]
    placement: Placement

    @classmethod
    def of(
        cls, map_HW: Float32[np.ndarray, "height width"], placement: Placement
    ) -> "SmallMap | None":
        """Give the map of an input if its source isn't smaller."""
        source, target = placement.source, placement.target
        fits = source.height >= target.height and source.width >= target.width
        return cls(map_HW=map_HW, placement=placement) if fits else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.placement.source.height, self.placement.source.width

    def whole(self) -> Probability:
        """Give the value of every pixel."""
        return np.asarray(restore(self.map_HW, self.placement).clip(0.0, 1.0))

    def every(self, step: int) -> Float32[np.ndarray, "h w"]:
        """Give the values of `whole` at each step-th row and column, begun in the middle."""
        wide_hW = self._wide_hW[:, step // 2 :: step]
        tops, ends, *shares = (one[step // 2 :: step] for one in self._rows())
        first_H1, second_H1 = (one[:, None] for one in shares)
        found = wide_hW[tops] * first_H1 + wide_hW[ends] * second_H1
        return np.asarray(found.astype(np.float32).clip(0.0, 1.0))

    def above(self, threshold: float) -> Mask:
        """Tell where `whole` is above a threshold, enlarging only what a threshold crosses."""
        wide_hW, cut = self._wide_hW, np.float32(threshold)
        is_above_hW = wide_hW > cut
        tops, ends, first_H, second_H = self._rows()
        mask_HW = np.empty(self.size, np.bool_)
        starts = np.flatnonzero(np.diff(tops, prepend=-1) | np.diff(ends, prepend=-1))
        for first, last in pairwise([*starts.tolist(), len(tops)]):
            top, end = tops[first], ends[first]
            mask_HW[first:last] = is_above_hW[top]
            columns = np.flatnonzero(is_above_hW[top] != is_above_hW[end])
            if len(columns):
                values = wide_hW[top, columns] * first_H[first:last, None]
                values += wide_hW[end, columns] * second_H[first:last, None]
                mask_HW[first:last, columns] = values.astype(np.float32) > cut
        return mask_HW

    @cached_property
    def _wide_hW(self) -> Float32[np.ndarray, "height W"]:
        target = self.placement.target
        bottom, right = target.top + target.height, target.left + target.width
        inner_hw1 = self.map_HW[target.top : bottom, target.left : right, None]
        return resize_image(inner_hw1, target.height, self.placement.source.width)[:, :, 0]

    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Give the two rows of the map around each row, and their shares, rounded as Pillow's."""
        num, new = self.placement.target.height, self.placement.source.height
        centres_H = (np.arange(new) + 0.5) * (num / new)
        tops_H = np.floor(centres_H - 0.5).astype(np.int64)
        first_H, second_H = (1 - np.abs(tops_H + one - centres_H + 0.5) for one in (0, 1))
        total_H = first_H + second_H
        rows = (np.clip(tops_H + one, 0, num - 1) for one in (0, 1))
        return *rows, first_H / total_H, second_H / total_H
