"""Data sets drawn anew from the images of one: the bootstrap behind every interval.

Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Whole groups (patients,
stacks, videos) are drawn where there are any, since their images resemble each other.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64, Num

from binseg.types import ImageScores, Interval

__all__ = ["LEAST_UNITS", "LEVEL", "drawn_sums", "group_labels", "interval_of", "sum_groups"]

LEVEL = 0.95
_CELLS = 4_000_000  # of the table draws x groups that is held at a time: 32 MB
LEAST_UNITS = 6
"""Images or groups of which fewer tell too little: intervals are too narrow, and even differences
of one sign come by chance more often than once in twenty."""


def group_labels(images: Sequence[ImageScores]) -> list[Hashable] | None:
    """Say which images belong together, one without a group being its own; None: no groups."""
    if not any(one.group for one in images):
        return None
    return [("id", one.id) if one.group is None else ("group", one.group) for one in images]


def drawn_sums(
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
        table_NK = sum_groups(table_NK, groups)
    num_groups = len(table_NK)
    if num_groups < 2:
        return None
    random = np.random.default_rng(seed)
    return np.concatenate(
        [times_DG @ table_NK for times_DG in _times_drawn(random, draws, num_groups)]
    )


def sum_groups(
    table_NK: Float64[np.ndarray, "N K"], groups: Sequence[Hashable]
) -> Float64[np.ndarray, "G K"]:
    """Add up the rows of each group, in the order in which the groups appear."""
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


def interval_of(values_D: Num[np.ndarray, " D"]) -> Interval:
    """Cut 2.5% off each end of the drawn values."""
    low, high = np.quantile(values_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))
