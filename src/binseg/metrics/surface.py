"""How near a predicted outline is to the true one: boundary overlap, and distances between them.

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
from binseg.types import Outline

__all__ = ["OUTLINE_MEANINGS", "OUTLINE_RULE", "OutlineRule", "measure_outline"]

OUTLINE_RULE = (
    "Outlines: the pixels of a mask with a neighbour (of 4) outside it; outside the image is "
    "background. Ignored pixels count as background in truth and prediction alike, so that no "
    "error can come from them. Where both masks are empty the distances are 0 and the rest is 1; "
    "where one of them is empty the distances are the image's diagonal and the rest is 0, "
    "so that finding fewer objects never improves a mean."
)
"""The sentences that go with every table of outline scores."""

OUTLINE_MEANINGS = {
    "boundary_iou": "IoU of the pixels within 2% of the diagonal of either outline",
    "boundary_f1": "harmonic mean of the shares of each outline within the tolerance of the other",
    "surface_dice": "share of both outlines that is within the tolerance of the other",
    "hd95": "95th percentile of the distance between the outlines (the worse direction)",
    "assd": "average distance between the outlines, both ways",
}

BOUNDARY_SHARE = 0.02  # of the image's diagonal: the width of the band of boundary IoU


@dataclass(frozen=True, kw_only=True)
class OutlineRule:
    """What counts as near, and how long a pixel is."""

    tolerance: float = 2.0
    """Of boundary F1 and surface Dice, in pixels, or in mm where `spacing` is given."""
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


def measure_outline(
    mask_HW: Bool[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"] | None = None,
    *,
    rule: OutlineRule | None = None,
) -> Outline:
    """Compare the outlines of a prediction and its truth, by OUTLINE_RULE.

    Args:
        mask_HW: the answer.
        truth_HW: what is there.
        valid_HW: False where pixels are ignored; None ignores none.
        rule: tolerance and spacing; 2 pixels if left out.

    >>> square = np.zeros((9, 9), dtype=bool)
    >>> square[3:6, 3:6] = True
    >>> found = measure_outline(np.roll(square, 1, axis=1), square)
    >>> found.hd95, found.boundary_f1
    (1.0, 1.0)
    """
    assert mask_HW.dtype == truth_HW.dtype == np.bool_, "masks are bool"
    assert mask_HW.shape == truth_HW.shape, "masks are of one size"
    rule = rule or OutlineRule()
    if valid_HW is not None:
        mask_HW, truth_HW = mask_HW & valid_HW, truth_HW & valid_HW
    if not mask_HW.any() or not truth_HW.any():
        return _of_empty(same=bool(mask_HW.any() == truth_HW.any()), shape=mask_HW.shape, rule=rule)
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*mask_HW.shape))))
    # Nothing outside the box of both masks has a part in any score; big images become small.
    box = _box_of(mask_HW | truth_HW)
    mask_hw, truth_hw = np.pad(mask_HW[box], 1), np.pad(truth_HW[box], 1)
    to_truth_N, to_mask_M = _distances(mask_hw, truth_hw, rule.steps)
    near_mask, near_truth = (float((d <= rule.tolerance).sum()) for d in (to_truth_N, to_mask_M))
    num_mask, num_truth = len(to_truth_N), len(to_mask_M)
    precision, recall = near_mask / num_mask, near_truth / num_truth
    both = precision + recall
    return Outline(
        boundary_iou=_boundary_iou(mask_hw, truth_hw, width),
        boundary_f1=2 * precision * recall / both if both else 0.0,
        surface_dice=(near_mask + near_truth) / (num_mask + num_truth),
        hd95=max(float(np.percentile(d, 95)) for d in (to_truth_N, to_mask_M)),
        assd=float(to_truth_N.sum() + to_mask_M.sum()) / (num_mask + num_truth),
    )


def _of_empty(*, same: bool, shape: tuple[int, ...], rule: OutlineRule) -> Outline:
    """Score where at least one mask is empty (`same`: both)."""
    height, width = shape
    down, across = rule.steps
    far = 0.0 if same else float(np.hypot(height * down, width * across))
    share = float(same)
    return Outline(boundary_iou=share, boundary_f1=share, surface_dice=share, hd95=far, assd=far)


def _box_of(mask_HW: Bool[np.ndarray, "H W"]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _distances(
    mask_HW: Bool[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    steps: tuple[float, float],
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " M"]]:
    """From each pixel of one outline to the nearest of the other, both ways.

    A tree of outline pixels gives the distances that a distance transform would (a test holds
    it), for the outline's pixels alone: on large images many times as fast.
    """
    mask_N2, truth_M2 = (_outline_points(each) * np.array(steps) for each in (mask_HW, truth_HW))
    return KDTree(truth_M2).query(mask_N2)[0], KDTree(mask_N2).query(truth_M2)[0]


def _outline_points(mask_HW: Bool[np.ndarray, "H W"]) -> Float64[np.ndarray, "N 2"]:
    """Rows and columns of the pixels with one of 4 neighbours outside; no mask touches the edge."""
    inner_HW = mask_HW.copy()
    inner_HW[1:-1] &= mask_HW[:-2] & mask_HW[2:]
    inner_HW[:, 1:-1] &= mask_HW[:, :-2] & mask_HW[:, 2:]
    return np.argwhere(mask_HW & ~inner_HW).astype(np.float64)


def _boundary_iou(
    mask_HW: Bool[np.ndarray, "H W"], truth_HW: Bool[np.ndarray, "H W"], width: int
) -> float:
    """IoU of the parts of both masks that are less than `width` 8-neighbour steps inside."""
    mask_band_HW, truth_band_HW = (
        each & (ndimage.distance_transform_cdt(each, metric="chessboard") <= width)
        for each in (mask_HW, truth_HW)
    )
    return float((mask_band_HW & truth_band_HW).sum() / (mask_band_HW | truth_band_HW).sum())
