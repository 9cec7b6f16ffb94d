"""How far a score would move with other images: percentile bootstrap over images or their groups.

Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Whole groups (patients,
stacks, videos) are drawn where there are any, since their images resemble each other.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Num

from binseg.metrics.counts import as_array
from binseg.metrics.scores import SCORES, score_table
from binseg.metrics.summary import scored_images
from binseg.structures import ImageScores, Report, Size

__all__ = ["Interval", "bootstrap_interval", "report_intervals"]

LEVEL = 0.95
_CELLS = 4_000_000  # of the table draws x groups that is held at a time: 32 MB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95% interval of a mean or pooled score."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.4f}, {self.high:.4f}]"


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
    sums_DK = _drawn_sums(table_NK, groups=groups, draws=draws, seed=seed)
    return None if sums_DK is None else _percentiles(sums_DK[:, 0] / sums_DK[:, 1])


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
        sums_DK = _drawn_sums(table_NK, groups=labels, draws=draws, seed=seed)
        if sums_DK is None:
            found["mean"][size] = dict.fromkeys(SCORES)
            found["pooled"][size] = dict.fromkeys(SCORES)
            continue
        means_DK = sums_DK[:, 5:] / sums_DK[:, 4:5]
        pooled = score_table(sums_DK[:, :4])
        found["mean"][size] = {
            name: _percentiles(means_DK[:, column]) for column, name in enumerate(SCORES)
        }
        found["pooled"][size] = {name: _percentiles(pooled[name]) for name in SCORES}
    return found


def _sum_table(images: Sequence[ImageScores], size: Size) -> Float64[np.ndarray, "N K"]:
    """Each image's tp, fp, fn, tn, 1 and scores: all that a drawn data set adds up."""
    counts_N4 = as_array([one.counts[size] for one in images]).astype(np.float64)
    scores_NS = np.array([[one.scores[size][name] for name in SCORES] for one in images])
    return np.concatenate([counts_N4, np.ones((len(images), 1)), scores_NS], axis=1)


def _drawn_sums(
    table_NK: Float64[np.ndarray, "N K"],
    *,
    groups: Sequence[Hashable] | None,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, "D K"] | None:
    """Column sums of `draws` data sets made of as many groups as there are, with repeats."""
    assert draws > 0, "at least one draw"
    if groups is not None:
        assert len(groups) == len(table_NK), "one group per image"
        table_NK = _sum_groups(table_NK, groups)
    num_groups = len(table_NK)
    if num_groups < 2:
        return None
    random = np.random.default_rng(seed)
    return np.concatenate(
        [times_DG @ table_NK for times_DG in _times_drawn(random, draws, num_groups)]
    )


def _sum_groups(
    table_NK: Float64[np.ndarray, "N K"], groups: Sequence[Hashable]
) -> Float64[np.ndarray, "G K"]:
    numbers: dict[Hashable, int] = {}
    number_N = [numbers.setdefault(group, len(numbers)) for group in groups]
    sums_GK = np.zeros((len(numbers), table_NK.shape[1]))
    np.add.at(sums_GK, number_N, table_NK)
    return sums_GK


def _times_drawn(
    random: np.random.Generator, draws: int, num_groups: int
) -> Iterator[Int64[np.ndarray, "D G"]]:
    """How often each draw took each group, a bounded number of draws at a time."""
    step = max(1, _CELLS // num_groups)
    for start in range(0, draws, step):
        num = min(step, draws - start)
        picks_DG = random.integers(num_groups, size=(num, num_groups))
        picks_DG += np.arange(num)[:, None] * num_groups
        flat = np.bincount(picks_DG.ravel(), minlength=num * num_groups)
        yield flat.reshape(num, num_groups)


def _percentiles(values_D: Num[np.ndarray, " D"]) -> Interval:
    low, high = np.quantile(values_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))
