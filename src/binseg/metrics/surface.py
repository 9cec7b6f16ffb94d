"""Distances between two outlines, and the scores that follow from them.

boundary IoU    Cheng et al., Boundary IoU (CVPR 2021): IoU of the pixels within d of either outline
boundary F1     Csurka et al. (BMVC 2013): share of each outline within a tolerance of the other
surface Dice    Nikolov et al. (2018): the same two shares, averaged by the outlines' lengths
HD95            the larger of the two 95th percentiles of the distance to the other outline
ASSD            the average distance to the other outline, over the pixels of both
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage
from scipy.spatial import KDTree

from binseg.errors import UsageError
from binseg.types import Mask

OUTLINE_RULE = (
    "Outlines: the pixels of a mask with a neighbour (of 4) outside it; outside the image is "
    "background. Ignored pixels count as background in truth and prediction alike, so that no "
    "error can come from them. Where both masks are empty the distances are 0 and the rest is 1; "
    "where one of them is empty the distances are the image's diagonal and the rest is 0, "
    "so that finding fewer objects never improves a mean."
)
"""The sentences that go with every table of outline scores."""

BOUNDARY_SHARE = 0.02  # of the image's diagonal: the width of the band of boundary IoU


@dataclass(frozen=True, kw_only=True)
class OutlineRule:
    """The distance that counts as near, and the length of a pixel."""

    tolerance: float = 2.0
    """The tolerance of boundary F1 and surface Dice, in pixels, or in mm with `spacing`."""
    spacing: float | tuple[float, float] | None = None
    """Millimetres from one pixel to the next, one number or (down, across); None: pixels."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UsageError(f"tolerance {self.tolerance:g}: give 0 or more")
        if not all(np.isfinite(step) and step > 0 for step in self.steps):
            raise UsageError(f"spacing {self.spacing}: give millimetres per pixel, above 0")

    @property
    def steps(self) -> tuple[float, float]:
        """The distance from one pixel to the next, down and across."""
        if isinstance(self.spacing, tuple):
            return self.spacing
        return (1.0, 1.0) if self.spacing is None else (self.spacing, self.spacing)

    def diagonal(self, shape: tuple[int, ...]) -> float:
        """The diagonal of an image of this height and width: no distance in it is longer."""
        height, width = shape
        down, across = self.steps
        return float(np.hypot(height * down, width * across))


@dataclass(frozen=True)
class OutlinePair:
    """A predicted and a true mask, neither of them empty, and the distances of their outlines."""

    mask_hw: Bool[np.ndarray, "h w"]
    """Cropped to what either mask holds, with a rim of one pixel; so is `truth_hw`."""
    truth_hw: Bool[np.ndarray, "h w"]
    to_truth_N: Float64[np.ndarray, " N"]
    """From each pixel of the predicted outline to the nearest of the true one."""
    to_mask_M: Float64[np.ndarray, " M"]
    tolerance: float
    band: int  # width of the band of boundary IoU in pixels

    @property
    def num_near(self) -> tuple[int, int]:
        """Pixels of the predicted and of the true outline within the tolerance of the other."""
        both = (self.to_truth_N, self.to_mask_M)
        near_mask, near_truth = (int((one <= self.tolerance).sum()) for one in both)
        return near_mask, near_truth


def compare_outlines(mask_HW: Mask, truth_HW: Mask, rule: OutlineRule) -> OutlinePair:
    """Measure the distances between the outlines of two masks that both hold something."""
    # Nothing outside the box of both masks has a part in any score; big images become small.
    box = _box_of(mask_HW | truth_HW)
    mask_hw, truth_hw = np.pad(mask_HW[box], 1), np.pad(truth_HW[box], 1)
    mask_N2, truth_M2 = (
        _outline_points(each) * np.array(rule.steps) for each in (mask_hw, truth_hw)
    )
    # A tree of outline pixels gives the distances that a distance transform would (a test holds
    # it), for the outline's pixels alone: on large images many times as fast.
    to_truth_N, to_mask_M = KDTree(truth_M2).query(mask_N2)[0], KDTree(mask_N2).query(truth_M2)[0]
    band = max(1, round(BOUNDARY_SHARE * float(np.hypot(*mask_HW.shape))))
    return OutlinePair(mask_hw, truth_hw, to_truth_N, to_mask_M, rule.tolerance, band)


def _box_of(mask_HW: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _outline_points(mask_HW: Mask) -> Float64[np.ndarray, "N 2"]:
    inner_HW = mask_HW.copy()
    inner_HW[1:-1] &= mask_HW[:-2] & mask_HW[2:]
    inner_HW[:, 1:-1] &= mask_HW[:, :-2] & mask_HW[:, 2:]
    return np.argwhere(mask_HW & ~inner_HW).astype(np.float64)


def boundary_iou(pair: OutlinePair) -> float:
    """IoU of the parts of both masks that are less than `band` 8-neighbour steps inside."""
    mask_band_hw, truth_band_hw = (
        each & (ndimage.distance_transform_cdt(each, metric="chessboard") <= pair.band)
        for each in (pair.mask_hw, pair.truth_hw)
    )
    return float((mask_band_hw & truth_band_hw).sum() / (mask_band_hw | truth_band_hw).sum())


def boundary_f1(pair: OutlinePair) -> float:
    """Harmonic mean of the shares of each outline within the tolerance of the other."""
    near_mask, near_truth = pair.num_near
    precision, recall = near_mask / len(pair.to_truth_N), near_truth / len(pair.to_mask_M)
    both = precision + recall
    return 2 * precision * recall / both if both else 0.0


def surface_dice(pair: OutlinePair) -> float:
    """Share of the pixels of both outlines that is within the tolerance of the other."""
    return sum(pair.num_near) / (len(pair.to_truth_N) + len(pair.to_mask_M))


def hd95(pair: OutlinePair) -> float:
    """95th percentile of the distance to the other outline, in the worse direction."""
    return max(float(np.percentile(each, 95)) for each in (pair.to_truth_N, pair.to_mask_M))


def assd(pair: OutlinePair) -> float:
    """Average distance to the other outline, over the pixels of both."""
    total = float(pair.to_truth_N.sum() + pair.to_mask_M.sum())
    return total / (len(pair.to_truth_N) + len(pair.to_mask_M))
