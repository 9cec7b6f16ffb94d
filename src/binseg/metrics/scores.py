"""Scores of one image: what was counted or measured becomes numbers, by the rows of `METRICS`."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Num

from binseg.metrics.counts import as_array, count
from binseg.metrics.registry import METRICS, ObjectMetric, OutlineMetric, PixelMetric, metrics_of
from binseg.metrics.surface import OutlineRule, compare_outlines
from binseg.types import Counts, ImageScores, Mask, Size

Table = dict[str, Float64[np.ndarray, " N"]]


def score_table(counts_N4: Num[np.ndarray, "N 4"]) -> Table:
    """Score many rows of counted pixels (tp, fp, fn, tn) at once."""
    return {metric.name: metric.of(counts_N4) for metric in metrics_of(PixelMetric)}


def score_all(counts: Counts) -> dict[str, float]:
    """Score one image's pixels, or pooled ones.

    >>> score_all(Counts(tp=0, fp=0, fn=0, tn=9))["recall"]
    1.0
    """
    return {name: float(values[0]) for name, values in score_table(as_array([counts])).items()}


def dice(counts: Counts) -> float:
    """Score the overlap alone, the figure that training watches.

    >>> dice(Counts(tp=3, fp=1, fn=1, tn=95)), dice(Counts(tp=0, fp=0, fn=0, tn=100))
    (0.75, 1.0)
    """
    metric = METRICS["dice"]
    assert isinstance(metric, PixelMetric)
    return float(metric.of(as_array([counts]))[0])


def dice_of(mask_HW: Mask, truth_HW: Mask) -> float:
    """Score the overlap of two masks of which every pixel counts."""
    return dice(count(mask_HW, truth_HW, np.ones(mask_HW.shape, np.bool_)))


def object_table(counts_N4: Num[np.ndarray, "N 4"]) -> Table:
    """Score many rows of num_true, num_predicted, num_matched, sum_iou at once."""
    return {metric.name: metric.of(counts_N4) for metric in metrics_of(ObjectMetric)}


def measure_outline(
    mask_HW: Mask, truth_HW: Mask, valid_HW: Mask | None = None, *, rule: OutlineRule | None = None
) -> dict[str, float]:
    """Score how near the outline of a prediction is to the true one, by OUTLINE_RULE.

    Without `valid_HW` all pixels count; without `rule` the tolerance is 2 pixels.

    >>> square = np.zeros((9, 9), dtype=bool)
    >>> square[3:6, 3:6] = True
    >>> found = measure_outline(np.roll(square, 1, axis=1), square)
    >>> found["hd95"], found["boundary_f1"]
    (1.0, 1.0)
    """
    assert mask_HW.dtype == truth_HW.dtype == np.bool_, "masks are bool"
    assert mask_HW.shape == truth_HW.shape, "masks are of one size"
    rule = rule or OutlineRule()
    if valid_HW is not None:
        mask_HW, truth_HW = mask_HW & valid_HW, truth_HW & valid_HW
    metrics = metrics_of(OutlineMetric)
    if mask_HW.any() and truth_HW.any():
        pair = compare_outlines(mask_HW, truth_HW, rule)
        return {metric.name: metric.of(pair) for metric in metrics}
    is_right = bool(mask_HW.any() == truth_HW.any())
    distance = 0.0 if is_right else rule.diagonal(mask_HW.shape)
    return {one.name: distance if one.is_distance else float(is_right) for one in metrics}


def score_image(
    id: str,
    counts: Mapping[Size, Counts],
    columns: Mapping[str, str] | None = None,
    *,
    group: str | None = None,
) -> ImageScores:
    """Score what was counted in one image, at each size.

    >>> one = score_image("cat", {"original": Counts(tp=3, fp=1, fn=1, tn=5)})
    >>> one.scores["original"]["dice"]
    0.75
    """
    scores: dict[Size, dict[str, float]] = {size: score_all(each) for size, each in counts.items()}
    return ImageScores(
        id=id, counts=dict(counts), scores=scores, columns=dict(columns or {}), group=group
    )


def is_mostly_empty(num_empty: int, num_images: int) -> bool:
    """Tell whether most, but not all, truths are empty: their mean would praise doing nothing."""
    return num_images / 2 < num_empty < num_images
