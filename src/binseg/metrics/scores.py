"""Masks are counted, counts become scores by the rows of `METRICS`, and means get 95% intervals.

Nothing else compares a mask with its truth. Intervals say how far a score would move with other
images: percentile bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13) of whole groups (patients, stacks, videos) where there are any.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64, Num
from scipy import ndimage

from binseg.metrics.registry import METRICS, ObjectMetric, OutlineMetric, PixelMetric, metrics_of
from binseg.metrics.surface import OutlineRule, compare_outlines
from binseg.types import Counts, Figure, ImageScores, Interval, Mask, ObjectCounts, Size

Table = dict[str, Float64[np.ndarray, " N"]]


OBJECT_RULE = (
    "Objects: connected pixels (8 neighbours); a predicted one is found where its IoU with a true "
    "one is above 0.5, which no two can be for the same. Ignored pixels belong to no object. "
    "Objects of all images are pooled; where none is there and none is predicted, all scores are 1."
)
"""The sentences that go with every table of object scores."""

_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def count(mask_HW: Mask, truth_HW: Mask, valid_HW: Mask) -> Counts:
    """Count the valid pixels of one image by truth and prediction.

    >>> mask = np.array([[True, True, False, False]])
    >>> truth = np.array([[True, False, True, False]])
    >>> count(mask, truth, np.array([[True, True, True, False]]))
    Counts(tp=1, fp=1, fn=1, tn=0)
    """
    assert mask_HW.dtype == truth_HW.dtype == valid_HW.dtype == np.bool_, "masks are bool"
    assert mask_HW.shape == truth_HW.shape == valid_HW.shape, "masks are of one size"
    num_valid = int(np.count_nonzero(valid_HW))
    predicted_HW = mask_HW & valid_HW
    num_predicted = int(np.count_nonzero(predicted_HW))
    num_true = int(np.count_nonzero(truth_HW & valid_HW))
    tp = int(np.count_nonzero(predicted_HW & truth_HW))
    fp, fn = num_predicted - tp, num_true - tp
    return Counts(tp=tp, fp=fp, fn=fn, tn=num_valid - tp - fp - fn)


def pool(counts: Iterable[Counts]) -> Counts:
    """Add up the counts of many images, so that every pixel weighs the same.

    >>> pool([Counts(tp=1, fp=0, fn=2, tn=3), Counts(tp=4, fp=1, fn=0, tn=5)])
    Counts(tp=5, fp=1, fn=2, tn=8)
    """
    return sum(counts, start=Counts(tp=0, fp=0, fn=0, tn=0))


def as_array(counts: Sequence[Counts]) -> Int64[np.ndarray, "N 4"]:
    """Put the counts of N images in rows of tp, fp, fn, tn."""
    rows = [(one.tp, one.fp, one.fn, one.tn) for one in counts]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 4)


def scored_images(images: Sequence[ImageScores], size: Size) -> list[ImageScores]:
    """Keep the images that have a valid pixel at this size: the others say nothing."""
    return [one for one in images if one.counts[size].num_valid]


def count_objects(mask_HW: Mask, truth_HW: Mask, valid_HW: Mask | None = None) -> ObjectCounts:
    """Count and match the objects of one image, by OBJECT_RULE.

    >>> truth = np.array([[1, 1, 0, 0, 1]], dtype=bool)
    >>> count_objects(np.array([[1, 1, 0, 0, 0]], dtype=bool), truth)
    ObjectCounts(num_true=2, num_predicted=1, num_matched=1, sum_iou=1.0)
    """
    assert mask_HW.dtype == truth_HW.dtype == np.bool_, "masks are bool"
    assert mask_HW.shape == truth_HW.shape, "masks are of one size"
    if valid_HW is not None:
        mask_HW, truth_HW = mask_HW & valid_HW, truth_HW & valid_HW
    predicted_HW, num_predicted = ndimage.label(mask_HW, structure=_NEIGHBOURS)
    true_HW, num_true = ndimage.label(truth_HW, structure=_NEIGHBOURS)
    both_HW = mask_HW & truth_HW
    # Only pairs that overlap are listed: noise makes many objects, and their table would be huge.
    codes_N = predicted_HW[both_HW].astype(np.int64) * (num_true + 1) + true_HW[both_HW]
    pairs_P, overlap_P = np.unique(codes_N, return_counts=True)
    area_of_predicted = np.bincount(predicted_HW.ravel())[pairs_P // (num_true + 1)]
    area_of_true = np.bincount(true_HW.ravel())[pairs_P % (num_true + 1)]
    iou_P = overlap_P / (area_of_predicted + area_of_true - overlap_P)
    matched_P = iou_P > 0.5
    matched, sum_iou = int(matched_P.sum()), float(iou_P[matched_P].sum())
    both = {"num_true": int(num_true), "num_predicted": int(num_predicted)}
    return ObjectCounts(**both, num_matched=matched, sum_iou=sum_iou)


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


LEVEL = 0.95
NUM_RESAMPLES = 1000
_CELLS = 4_000_000  # of the table resamples x groups that is held at a time: 32 MB
LEAST_UNITS = 6
"""Images or groups of which fewer tell too little: intervals are too narrow, and even differences
of one sign come by chance more often than once in twenty."""


def group_labels(images: Sequence[ImageScores]) -> list[Hashable] | None:
    """Say which images belong together, one without a group being its own; None: no groups."""
    if not any(one.group for one in images):
        return None
    return [("id", one.id) if one.group is None else ("group", one.group) for one in images]


def resampled_sums(
    table_NK: Float64[np.ndarray, "N K"],
    *,
    groups: Sequence[Hashable] | None,
    num_resamples: int,
    seed: int = 0,
) -> Float64[np.ndarray, "R K"] | None:
    """Add up the columns of resampled images or groups, a row each; None for a single one."""
    if groups is not None:
        assert len(groups) == len(table_NK), "one group per image"
        table_NK = sum_groups(table_NK, groups)
    num_groups = len(table_NK)
    if num_groups < 2 or num_resamples == 0:
        return None
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // num_groups)
    sums = []
    for start in range(0, num_resamples, step):
        num = min(step, num_resamples - start)
        picks_RG = random.integers(num_groups, size=(num, num_groups))
        picks_RG += np.arange(num)[:, None] * num_groups
        times_RG = np.bincount(picks_RG.ravel(), minlength=num * num_groups)
        sums.append(times_RG.reshape(num, num_groups) @ table_NK)
    return np.concatenate(sums)


def sum_groups(
    table_NK: Float64[np.ndarray, "N K"], groups: Sequence[Hashable]
) -> Float64[np.ndarray, "G K"]:
    """Add up the rows of each group, in the order in which the groups appear."""
    number = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    number_N = [number[group] for group in groups]
    sums_GK = np.zeros((len(number), table_NK.shape[1]))
    np.add.at(sums_GK, number_N, table_NK)
    return sums_GK


def interval_of(values_R: Num[np.ndarray, " R"]) -> Interval:
    """Cut 2.5% off each end of the resampled values."""
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))


def figures_of(
    table_NK: Float64[np.ndarray, "N K"],
    score: Callable[[Float64[np.ndarray, "R K"]], Mapping[str, Float64[np.ndarray, " R"]]],
    *,
    groups: Sequence[Hashable] | None,
    num_resamples: int,
) -> dict[str, Figure]:
    """Score (by name) the sums of what images add, and of what resampled images would."""
    sums_RK = resampled_sums(table_NK, groups=groups, num_resamples=num_resamples)
    resampled = {} if sums_RK is None else score(sums_RK)
    intervals = {name: interval_of(values_R) for name, values_R in resampled.items()}
    whole = score(table_NK.sum(axis=0, keepdims=True))
    return {
        name: Figure(value=float(value_1[0]), interval=intervals.get(name))
        for name, value_1 in whole.items()
    }


def bootstrap_interval(
    values: Float[np.ndarray, " N"] | Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Find the 95% interval of the mean of one value per image, as `resampled_sums` does.

    >>> str(bootstrap_interval([0.8, 0.9, 0.85, 0.95, 0.7]))
    '[0.7600, 0.9100]'
    """
    table_N2 = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    sums_R2 = resampled_sums(table_N2, groups=groups, num_resamples=num_resamples, seed=seed)
    return None if sums_R2 is None else interval_of(sums_R2[:, 0] / sums_R2[:, 1])


def report_intervals(
    images: Sequence[ImageScores], *, num_resamples: int = NUM_RESAMPLES
) -> dict[str, dict[Size, dict[str, Interval | None]]]:
    """Find the 95% interval of every score of pixels: "mean" or "pooled" -> size -> score."""
    found: dict[str, dict[Size, dict[str, Interval | None]]] = {"mean": {}, "pooled": {}}
    for size, names in images[0].scores.items():
        scored = scored_images(images, size)
        counts_N4 = as_array([one.counts[size] for one in scored])
        scores_NS = np.array([[one.scores[size][name] for name in names] for one in scored])
        # Each image's tp, fp, fn, tn, 1 and scores: all that a resampled data set adds up.
        table_NK = np.column_stack([counts_N4, np.ones(len(scored)), scores_NS])
        sums_RK = resampled_sums(table_NK, groups=group_labels(scored), num_resamples=num_resamples)
        if sums_RK is None:
            found["mean"][size] = found["pooled"][size] = dict.fromkeys(names)
            continue
        means = dict(zip(names, (sums_RK[:, 5:] / sums_RK[:, 4:5]).T, strict=True))
        for kind, values in (("mean", means), ("pooled", score_table(sums_RK[:, :4]))):
            found[kind][size] = {name: interval_of(values[name]) for name in names}
    return found
