"""Is one model better than another, or is the difference noise? Paired, on the same images.

The bootstrap (Efron & Tibshirani, 1993) tells how far the mean difference would move with other
images; Wilcoxon's signed-rank test (1945) tells how often ranks as one-sided would come by chance.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy import stats

from binseg.metrics.draws import LEAST_UNITS, drawn_sums, interval_of, sum_groups
from binseg.types import Interval

__all__ = ["COMPARISON_RULE", "Difference", "compare_scores"]

Verdict = Literal["a", "b", "noise", "same"]

COMPARISON_RULE = (
    "A difference counts where the 95% interval of the mean paired difference leaves out 0 "
    "(paired bootstrap over the same images, or their groups, 10,000 draws); p is of Wilcoxon's "
    "signed-rank test. Both ask whether other images would say the same, not whether another "
    "training with another seed would. Fewer than 6 images (or groups) decide nothing."
)
"""The sentences that go with every comparison."""

DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score of two models on the same images; the difference is b - a."""

    name: str
    mean_a: float
    mean_b: float
    interval: Interval | None
    """Of the mean difference; None where one image or group tells nothing."""
    p: float
    """Of Wilcoxon's signed-rank test; 1 where no image differs."""
    num_better: int
    """Images where b is better; `num_worse` where a is; all others are equal."""
    num_worse: int
    num_images: int
    num_units: int
    """Images, or groups of them, that are drawn."""
    higher_is_better: bool

    @property
    def difference(self) -> float:
        """How much higher b's mean is."""
        return self.mean_b - self.mean_a

    @property
    def verdict(self) -> Verdict:
        """Say which is better, "noise" where that can't be told, "same" where all are equal."""
        if self.num_better + self.num_worse == 0:
            return "same"
        if self.num_units < LEAST_UNITS:
            return "noise"
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return "noise"
        return "b" if (self.difference > 0) == self.higher_is_better else "a"


def compare_scores(
    name: str,
    a_N: Float64[np.ndarray, " N"] | Sequence[float],
    b_N: Float64[np.ndarray, " N"] | Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    higher_is_better: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Compare one score of two models, image by image.

    Args:
        name: of the score.
        a_N: the first model's score of each image.
        b_N: the second's of the same images, in the same order.
        groups: the group of each image; groups are drawn whole, and tested by their means.
        higher_is_better: false for distances.
        draws: of the bootstrap.
        seed: of the draws.

    >>> a, b = [0.7, 0.8, 0.9, 0.6, 0.8, 0.7], [0.8, 0.85, 0.95, 0.9, 0.81, 0.77]
    >>> compare_scores("dice", a, b).verdict, compare_scores("dice", a[:5], b[:5]).verdict
    ('b', 'noise')
    """
    a_N, b_N = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    assert a_N.shape == b_N.shape, "the same images"
    assert a_N.ndim == 1, "one score per image"
    difference_N = b_N - a_N
    table_N2 = np.stack([difference_N, np.ones(len(a_N))], axis=1)
    drawn_D2 = drawn_sums(table_N2, groups=groups, draws=draws, seed=seed)
    gain_N = difference_N if higher_is_better else -difference_N
    return Difference(
        name=name,
        mean_a=float(a_N.mean()),
        mean_b=float(b_N.mean()),
        interval=None if drawn_D2 is None else interval_of(drawn_D2[:, 0] / drawn_D2[:, 1]),
        p=_wilcoxon(table_N2 if groups is None else sum_groups(table_N2, groups)),
        num_better=int((gain_N > 0).sum()),
        num_worse=int((gain_N < 0).sum()),
        num_images=len(a_N),
        num_units=len(a_N) if groups is None else len(set(groups)),
        higher_is_better=higher_is_better,
    )


def _wilcoxon(sums_G2: Float64[np.ndarray, "G 2"]) -> float:
    """Test the mean difference of each group; equal ones say nothing and are left out."""
    mean_G = sums_G2[:, 0] / sums_G2[:, 1]
    mean_G = mean_G[mean_G != 0]
    if not mean_G.size:
        return 1.0
    return float(stats.wilcoxon(mean_G).pvalue)
