"""How far a score would move with other images: percentile bootstrap over images or groups."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64

from binseg.metrics.counts import as_array, scored_images
from binseg.metrics.draws import drawn_sums, interval_of
from binseg.metrics.scores import SCORES, score_table
from binseg.types import ImageScores, Interval, Report, Size

__all__ = ["Interval", "bootstrap_interval", "report_intervals"]


def bootstrap_interval(
    values: Float[np.ndarray, " N"] | Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """Find the 95% interval of the mean of values by drawing images, or whole groups, anew.

    Args:
        values: one score per image.
        groups: the group of each image; None draws single images.
        draws: how many data sets are drawn.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The interval, or None where there is only one image or group: it tells nothing of others.

    >>> str(bootstrap_interval([0.8, 0.9, 0.85, 0.95, 0.7]))
    '[0.7600, 0.9100]'
    """
    values_N = np.asarray(values, dtype=np.float64)
    assert values_N.ndim == 1, "one value per image"
    table_NK = np.stack([values_N, np.ones(len(values_N))], axis=1)
    sums_DK = drawn_sums(table_NK, groups=groups, draws=draws, seed=seed)
    return None if sums_DK is None else interval_of(sums_DK[:, 0] / sums_DK[:, 1])


def report_intervals(
    report: Report,
    *,
    groups: Mapping[str, Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[Size, dict[str, Interval | None]]]:
    """Find the 95% interval of every mean and pooled score of a report.

    Args:
        report: what `summarise` gave.
        groups: the group of each image by its id; None draws single images.
        draws: how many data sets are drawn.
        seed: of the draws; all scores share them, so that they can be compared.

    Returns:
        "mean" or "pooled" -> size -> score -> interval.
    """
    found: dict[str, dict[Size, dict[str, Interval | None]]] = {"mean": {}, "pooled": {}}
    for size in report.mean:
        images = scored_images(report.images, size)
        labels = None if groups is None else [groups[one.id] for one in images]
        table_NK = _sum_table(images, size)
        sums_DK = drawn_sums(table_NK, groups=labels, draws=draws, seed=seed)
        if sums_DK is None:
            found["mean"][size] = dict.fromkeys(SCORES)
            found["pooled"][size] = dict.fromkeys(SCORES)
            continue
        means_DK = sums_DK[:, 5:] / sums_DK[:, 4:5]
        pooled = score_table(sums_DK[:, :4])
        found["mean"][size] = {
            name: interval_of(means_DK[:, column]) for column, name in enumerate(SCORES)
        }
        found["pooled"][size] = {name: interval_of(pooled[name]) for name in SCORES}
    return found


def _sum_table(images: Sequence[ImageScores], size: Size) -> Float64[np.ndarray, "N K"]:
    """Each image's tp, fp, fn, tn, 1 and scores: all that a drawn data set adds up."""
    counts_N4 = as_array([one.counts[size] for one in images]).astype(np.float64)
    scores_NS = np.array([[one.scores[size][name] for name in SCORES] for one in images])
    return np.concatenate([counts_N4, np.ones((len(images), 1)), scores_NS], axis=1)
