"""Pixels by probability and truth in equal bins: what thresholds and calibration are made of.

A bin is open below and closed above, as `probability > threshold` cuts, so that a histogram knows
the counts at each of its edges exactly. Its size doesn't depend on the size of the image.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

__all__ = ["Histogram", "count_bins", "histogram"]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The valid pixels of one image (or, added up, of many) in equal bins of probability.

    Of K bins, number 0 holds the pixels of probability 0, number k those in ((k-1)/(K-1),
    k/(K-1)].
    """

    num_true_K: Int64[np.ndarray, " K"]
    num_false_K: Int64[np.ndarray, " K"]

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(
            num_true_K=self.num_true_K + other.num_true_K,
            num_false_K=self.num_false_K + other.num_false_K,
        )

    def counts(self) -> Int64[np.ndarray, "T 4"]:
        """The tp, fp, fn, tn at each lower edge of bins 1 and on: 0, 1/T .. (T-1)/T."""
        fn_T, tn_T = (np.cumsum(one_K)[:-1] for one_K in (self.num_true_K, self.num_false_K))
        tp_T, fp_T = self.num_true_K.sum() - fn_T, self.num_false_K.sum() - tn_T
        return np.stack([tp_T, fp_T, fn_T, tn_T], axis=1)


def count_bins(probability_N: Float[np.ndarray, " N"], num_bins: int) -> Int64[np.ndarray, " N"]:
    """Say in which bin each probability is: 0 for 0, else 1 to `num_bins`.

    With 1,024 bins (or another power of 2) nothing is rounded: p > k/1024 just where the bin is
    above k.
    """
    assert not probability_N.size or 0 <= probability_N.min() <= probability_N.max() <= 1, (
        "probabilities are in [0, 1], and none is nan"
    )
    return np.ceil(probability_N * np.float64(num_bins)).astype(np.int64)


def histogram(
    probability_HW: Float32[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"],
    *,
    num_bins: int,
) -> Histogram:
    """Count the valid pixels of one image by bin and truth.

    >>> everywhere = np.ones((1, 3), dtype=bool)
    >>> found = histogram(np.float32([[0, 0.5, 1]]), everywhere, everywhere, num_bins=2)
    >>> found.num_true_K.tolist()
    [1, 1, 1]
    """
    assert probability_HW.shape == truth_HW.shape == valid_HW.shape, "arrays are of one size"
    bins_N, truth_N = count_bins(probability_HW[valid_HW], num_bins), truth_HW[valid_HW]
    true_K, false_K = (
        np.bincount(bins_N[chosen_N], minlength=num_bins + 1) for chosen_N in (truth_N, ~truth_N)
    )
    return Histogram(num_true_K=true_K, num_false_K=false_K)
