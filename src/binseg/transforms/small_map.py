"""A model's output that is much smaller than its image: enlarged only where that is asked for."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from binseg.transforms.geometry import resize_image, restore
from binseg.types import Mask, Placement, Probability


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
