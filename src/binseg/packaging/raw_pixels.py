"""Preprocessing and its inverse inside the network: raw pixels of any size in, probability out.

A resize is two matrix products whose matrices are computed from the image's size inside the
graph: the triangle filter of Pillow's antialiased bilinear resize, which no runtime's own operator
equals.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor, nn

from binseg.errors import UsageError
from binseg.packaging.networks import Compute, one_by_one
from binseg.transforms.preprocess import LEAST_LEFT, MOST_REDUCED
from binseg.types import Preprocessing

Pixels = Literal["uint8", "float32"]
"""Pixels that a file takes: bytes, or floats (0 to 1 where the model's `intensity` is dtype, any
numbers otherwise)."""

_STRIDE = 32  # whole images are brought to multiples of this, the coarsest grid of our networks
_PERCENTILES = (0.005, 0.995)
Size = Any  # a size, as Python knows it; a symbol or a tensor while it is traced


class RawPixels(nn.Module):
    """A network that takes images as they are.

    `forward` takes pixels (N, H, W, C) and gives the probability (N, H, W) that binseg's own
    prediction gives. A model of tiles runs over the whole image at once: it is mirrored at its
    right and lower edge to a multiple of 32, an image smaller than a tile on all sides to a tile.
    `pixels` are uint8, or float32: 0 to 1 where `intensity` is dtype, any numbers otherwise;
    UsageError for others.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        temperature: float,
        pixels: Pixels = "uint8",
    ) -> None:
        super().__init__()
        if pixels not in get_args(Pixels):
            raise UsageError(f"pixels {pixels!r}: give one of {', '.join(get_args(Pixels))}")
        self.network = network
        self.shape = preprocessing
        self.pixels = pixels
        self.temperature = temperature
        shape = (1, preprocessing.channels, 1, 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape))

    def forward(self, pixels_NHWC: Tensor) -> Tensor:
        """Give the probability of foreground, (N, H, W)."""
        image_NCHW = pixels_NHWC.permute(0, 3, 1, 2).float()
        if self.shape.intensity == "percentile":
            image_NCHW = _stretched(image_NCHW) * float(self.shape.top)
        elif self.pixels == "float32":
            image_NCHW = torch.clamp(image_NCHW, 0.0, 1.0) * float(self.shape.top)
        elif self.shape.depth > 8:
            image_NCHW = image_NCHW * (self.shape.top / 255)
        if self.shape.resize == "tile":
            return self._whole(image_NCHW)
        return self._fitted(image_NCHW)

    def _probability(self, input_NChw: Tensor) -> Tensor:
        normalised = (input_NChw / float(self.shape.top) - self.mean) / self.std
        return torch.sigmoid(self.network(normalised)[:, 0] / self.temperature)

    def _resized(self, image_NCHW: Tensor, across: Tensor, down: Tensor) -> Tensor:
        """Resize to bytes, rounding where Pillow does."""
        if self.pixels == "uint8" and self.shape.intensity == "dtype" and self.shape.depth == 8:
            # 8-bit images: along the longer side first, then the other, halves up after each.
            first = torch.floor(torch.matmul(image_NCHW, across.transpose(0, 1)) + 0.5)
            first = torch.floor(torch.matmul(down, first) + 0.5)
            other = torch.floor(torch.matmul(down, image_NCHW) + 0.5)
            other = torch.floor(torch.matmul(other, across.transpose(0, 1)) + 0.5)
            is_tall = (_number(image_NCHW.shape[2]) > _number(image_NCHW.shape[3])).float()
            return other * is_tall + first * (1 - is_tall)
        out = torch.matmul(down, torch.matmul(image_NCHW, across.transpose(0, 1)))
        return torch.round(out)

    def _fitted(self, image_NCHW: Tensor) -> Tensor:
        tall, wide = image_NCHW.shape[2], image_NCHW.shape[3]
        height, width = self.shape.height, self.shape.width
        rows = columns = None
        if self.shape.resize == "letterbox":
            factor = torch.minimum(height / _number(tall), width / _number(wide))
            rows, columns = _fit(tall, height, factor), _fit(wide, width, factor)
        by: Tensor | None = None
        if self.pixels == "uint8" and self.shape.intensity == "dtype" and self.shape.depth == 8:
            by = _reduction((tall, height, rows), (wide, width, columns))
            image_NCHW = _averaged(image_NCHW, by)
        down, up = _resizing(tall, height, rows, by)
        across, back = _resizing(wide, width, columns, by)
        return _restored(self._probability(self._resized(image_NCHW, across, down)), back, up)

    def _whole(self, image_NCHW: Tensor) -> Tensor:
        high, broad = image_NCHW.shape[2], image_NCHW.shape[3]
        scale, up, back = self.shape.scale, None, None
        if scale == 1.0:
            input_NChw = torch.round(image_NCHW)
        else:
            tall, wide = high, broad
            high = _scaled(tall, self.shape.height, scale)
            broad = _scaled(wide, self.shape.width, scale)
            down, up = _resizing(tall, high)
            across, back = _resizing(wide, broad)
            input_NChw = self._resized(image_NCHW, across, down)
        multiple, largest = multiple_of(self.network), self.shape.largest_tile
        top, from_rows = _mirrored(high, self.shape.height, multiple, largest)
        left, from_columns = _mirrored(broad, self.shape.width, multiple, largest)
        padded = input_NChw.index_select(2, from_rows).index_select(3, from_columns)
        maps_Nhw = self._probability(padded)
        maps_Nhw = maps_Nhw.index_select(1, torch.arange(high) + top)
        maps_Nhw = maps_Nhw.index_select(2, torch.arange(broad) + left)
        return maps_Nhw if up is None or back is None else _restored(maps_Nhw, back, up)


def multiple_of(network: nn.Module) -> int:
    """Give the number whose multiples the sides of a whole image are brought to."""
    strides = getattr(getattr(network, "encoder", None), "strides", (1,))
    return math.lcm(_STRIDE, strides[-1], getattr(network, "multiple", 1))


def example_size(network: nn.Module, preprocessing: Preprocessing) -> tuple[int, int]:
    """Give unequal height and width to trace with, whose maps are all larger than a pixel."""
    if preprocessing.resize != "tile":
        return 37, 53
    multiple = multiple_of(network)
    return (
        math.ceil((max(preprocessing.height, multiple) + 5) / preprocessing.scale),
        math.ceil((max(preprocessing.width, multiple) + multiple + 7) / preprocessing.scale),
    )


def _stretched(image_NCHW: Tensor) -> Tensor:
    """Bring the 0.5th to the 99.5th percentile of each channel of each image to 0 to 1."""
    ordered = torch.sort(image_NCHW.flatten(2), dim=2).values
    tall, wide = image_NCHW.shape[2], image_NCHW.shape[3]
    last = _number(tall) * _number(wide) - 1
    least, largest = ordered[:, :, :1], ordered[:, :, -1:]
    low, high = (_at(ordered, last * share, last) for share in _PERCENTILES)
    differ = low < high
    low = torch.where(differ, low, least)[..., None]
    high = torch.where(differ, high, largest)[..., None]
    span = torch.where(low < high, high - low, torch.ones(()))
    # A channel of one value becomes 0, since it equals its least.
    return torch.clamp((image_NCHW - low) / span, 0.0, 1.0)


def _at(ordered: Tensor, position: Tensor, last: Tensor) -> Tensor:
    """Interpolate the value between two places, as numpy's percentile does."""
    below = torch.floor(position)
    above = torch.minimum(below + 1, last)
    num, channels = ordered.shape[:2]
    places = (place.long().reshape(1, 1, 1).expand(num, channels, 1) for place in (below, above))
    one, other = (ordered.gather(2, place) for place in places)
    return one + (other - one) * (position - below)


def _number(size: Size) -> Tensor:
    return torch.ones(size, dtype=torch.float32).sum()


def _at_least(size: Size, least: int) -> Size:
    """Take the larger of both, whatever tracing knows the size as."""
    if isinstance(size, Tensor):
        return torch.clamp(size, min=least)
    return torch.sym_max(size, least)  # type: ignore[no-untyped-call]


def _scaled(num: Size, into: int, scale: float) -> Size:
    """Count a side's pixels at the scale of the tiles, as `geometry.scaled_size` does."""
    tile = max(1, round(into / scale))
    return _at_least((2 * num * into + tile) // (2 * tile), 1)


def _mirrored(num: Size, tile: int, multiple: int, largest: int) -> tuple[Size, Tensor]:
    """Place a side in its mirrored surroundings, as `geometry.plan` does: start and pixels."""
    tile = -(-tile // multiple) * multiple
    count = _at_least((num + multiple - 1) // multiple * multiple, tile)
    # 1 where the side is one tile, 0 where it is longer; without a branch, which tracing would fix.
    is_one = 1 - _at_least(1 - _at_least(max(tile, largest) + 1 - num, 0), 0)
    start = (count - num) // 2 * is_one
    folded = torch.remainder(torch.arange(count) - start, 2 * num)
    return start, torch.minimum(folded, 2 * num - 1 - folded)


def _fit(num: Size, size: int, factor: Tensor) -> tuple[Tensor, Tensor]:
    taken = torch.clamp(torch.round(_number(num) * factor), 1, size)
    return torch.floor((size - taken) / 2), taken


def _reduction(*sides: tuple[Size, int, tuple[Tensor, Tensor] | None]) -> Tensor:
    """Do as `preprocess.reduction`; a side is its length, the input's, and its part of it."""
    by, doubled = torch.ones(()), 1
    while doubled < MOST_REDUCED:
        fits = torch.ones(())
        for num, size, target in sides:
            taken = target[1] if target else float(size)
            fits = fits * (_number(num) >= LEAST_LEFT * 2 * doubled * taken)
        by, doubled = by + doubled * fits, 2 * doubled
    return by


def _averaged(image_NCHW: Tensor, by: Tensor) -> Tensor:
    """Give every pixel the mean of its square of `by` x `by`, in whole numbers, halves up."""
    for axis in (2, 3):
        first = torch.floor(torch.arange(image_NCHW.shape[axis], dtype=torch.float32) / by) * by
        last = torch.clamp(first + by, max=_number(image_NCHW.shape[axis])) - 1
        sums = torch.cumsum(image_NCHW, axis)
        before = sums.index_select(axis, first.long()) - image_NCHW.index_select(axis, first.long())
        sums = sums.index_select(axis, last.long()) - before
        count = last - first + 1
        image_NCHW = sums / (count[:, None] if axis == 2 else count)
    return torch.floor(image_NCHW + 0.5)


def _resizing(
    num: Size, size: Size, target: tuple[Tensor, Tensor] | None = None, by: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Make matrices (size, num) to the input and back; `by` pixels weigh as one."""
    first, taken = target or (torch.zeros(()), _number(size))
    at, centres = _centres(size) - first, _centres(num)
    inside = ((at > 0) & (at < taken)).float()
    shrunk, grown = _number(num) / taken, taken / _number(num)
    places, filled = centres, torch.ones(())
    if by is not None:
        square = torch.floor(centres / by) * by
        filled = by / (torch.clamp(square + by, max=_number(num)) - square)  # the last is cut off
        places = square + 0.5 * by
    return (
        _triangles(at * shrunk, shrunk, places, filled) * inside[:, None],
        _triangles(centres * grown, grown, at, inside),
    )


def _restored(maps_Nhw: Tensor, across: Tensor, down: Tensor) -> Tensor:
    out = torch.matmul(down, torch.matmul(maps_Nhw, across.transpose(0, 1)))
    return torch.clamp(out, 0.0, 1.0)


def _centres(num: Size) -> Tensor:
    return torch.arange(num, dtype=torch.float32) + 0.5


def _triangles(centres: Tensor, scale: Tensor, at: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Weigh each place by a triangle around each centre, wider where it shrinks; rows sum to 1."""
    support = torch.clamp(scale, min=1)
    found = torch.clamp(1 - torch.abs(at[None] - centres[:, None]) / support, min=0) * weights
    return found / torch.clamp(found.sum(dim=1, keepdim=True), min=1e-12)


def by_torch(module: Any) -> Compute:
    """Compute with a torch module that takes pixels (N, H, W, C)."""

    @torch.inference_mode()
    def run(pixels_NHWC: Num[np.ndarray, "N H W C"]) -> np.ndarray:
        probability_NHW: np.ndarray = module(torch.from_numpy(pixels_NHWC)).numpy()
        return probability_NHW

    return one_by_one(run)
