"""95% intervals: how far a score would move with other images, by percentile bootstrap.

Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Whole groups (patients,
stacks, videos) are resampled where there are any, since their images resemble each other.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Num

from binseg.metrics.counts import as_array, scored_images
from binseg.metrics.scores import score_table
from binseg.types import Figure, ImageScores, Interval, Size

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
