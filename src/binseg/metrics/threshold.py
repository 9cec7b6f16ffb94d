"""Pixels by probability and truth, and what validation chooses from them: threshold, temperature.

Thresholds are the multiples of 1/1024. They are exact in float32 and float64 alike, and scaling a
probability by 1024 loses nothing, so that a histogram knows, for each of them, just the pixels
that `probability > threshold` will call foreground. Memory is one histogram, whatever the number
and size of the images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.optimize import minimize_scalar

from binseg.errors import DataError
from binseg.metrics.scores import is_mostly_empty, score_table

NUM_THRESHOLDS = 1024
_TIE = 1e-9  # mean Dice closer than this is the same: less than one pixel in any real data set


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
) -> Int64[np.ndarray, "2 K"]:
    """Count the valid pixels of one image, true and false ones, in equal bins.

    Of 1,025 bins, number 0 holds the pixels of probability 0, number k those in ((k-1)/1024,
    k/1024]: open below and closed above, as `probability > threshold` cuts. Those of several
    images can be added.

    >>> everywhere = np.ones((1, 3), dtype=bool)
    >>> found_2K = histogram(np.float32([[0, 0.5, 1]]), everywhere, everywhere)
    >>> found_2K[0].nonzero()[0].tolist(), int(found_2K[1].sum())
    ([0, 512, 1024], 0)
    """
    assert probability_HW.shape == truth_HW.shape == valid_HW.shape, "arrays are of one size"
    bins_N, truth_N = count_bins(probability_HW[valid_HW], NUM_THRESHOLDS), truth_HW[valid_HW]
    counted = [np.bincount(bins_N[x], minlength=NUM_THRESHOLDS + 1) for x in (truth_N, ~truth_N)]
    return np.stack(counted)


def counts_of(histogram_2K: Int64[np.ndarray, "2 K"]) -> Int64[np.ndarray, "T 4"]:
    """Count tp, fp, fn, tn at each of the thresholds 0/1024, 1/1024 .. 1023/1024."""
    below_2T = np.cumsum(histogram_2K, axis=1)[:, :-1]
    above_2T = histogram_2K.sum(axis=1, keepdims=True) - below_2T
    return np.concatenate([above_2T, below_2T]).T


@dataclass(frozen=True, kw_only=True)
class ThresholdChoice:
    """The threshold that was chosen, and the whole curve it was chosen from."""

    threshold: float
    dice: float
    """Dice at that threshold, on the images that chose it."""
    thresholds_T: Float64[np.ndarray, " T"]
    dice_T: Float64[np.ndarray, " T"]
    """Dice at each of `thresholds_T`: the mean over images, or that of all pixels together."""
    num_images: int
    is_pooled: bool = False
    """True where all pixels together decided, since most images are empty."""

    @property
    def dice_at_half(self) -> float:
        """The Dice that a threshold of 0.5 would have given."""
        return float(self.dice_T[NUM_THRESHOLDS // 2])


def tune_threshold(
    predictions: Iterable[
        tuple[Float32[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]
    ],
) -> ThresholdChoice:
    """Choose the threshold with the best mean per-image Dice, in the middle of its plateau.

    Where most images are empty, pooled Dice decides: see `is_mostly_empty`.

    Args:
        predictions: probability_HW, truth_HW and valid_HW of each validation image, one at a time;
            images without a valid pixel are passed over.

    Raises:
        DataError: no image has a valid pixel.
    """
    total_T = np.zeros(NUM_THRESHOLDS)
    pooled_T4 = np.zeros((NUM_THRESHOLDS, 4), np.int64)
    num_images = num_empty = 0
    for probability_HW, truth_HW, valid_HW in predictions:
        if valid_HW.any():
            counts_T4 = counts_of(histogram(probability_HW, truth_HW, valid_HW))
            total_T += score_table(counts_T4)["dice"]
            pooled_T4 += counts_T4
            num_images += 1
            num_empty += not (truth_HW & valid_HW).any()
    if num_images == 0:
        raise DataError(
            "a threshold can't be chosen: no validation image has a pixel that isn't ignored; "
            "check the split, or give a fixed threshold"
        )
    is_pooled = is_mostly_empty(num_empty, num_images)
    dice_T = score_table(pooled_T4)["dice"] if is_pooled else total_T / num_images
    best = _middle_of_plateau(dice_T)
    return ThresholdChoice(
        threshold=best / NUM_THRESHOLDS,
        dice=float(dice_T[best]),
        thresholds_T=np.arange(NUM_THRESHOLDS) / NUM_THRESHOLDS,
        dice_T=dice_T,
        num_images=num_images,
        is_pooled=is_pooled,
    )


def _middle_of_plateau(dice_T: Float64[np.ndarray, " T"]) -> int:
    """Find the middle of the longest run of best values; of two equal ones, that nearer to 0.5."""
    best_T = dice_T >= dice_T.max() - _TIE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], best_T, [False]])))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))  # start, end + 1
    start, end = max(
        runs, key=lambda run: (run[1] - run[0], -abs((run[0] + run[1]) // 2 - len(dice_T) // 2))
    )
    middle: int = (start + end) // 2
    return middle


_LOGIT_LIMIT = 16.0  # float32 probabilities say little beyond
_LOGIT_BINS = 1024


class LogitTally:
    """Adds up images one at a time; finds the temperature that suits them all.

    The temperature divides all logits (Guo et al., On Calibration of Modern Neural Networks, ICML
    2017). Above 1 the model was too sure. The order of probabilities doesn't change.
    """

    def __init__(self) -> None:
        self._num_true_K = np.zeros(_LOGIT_BINS, dtype=np.int64)
        self._num_false_K = np.zeros(_LOGIT_BINS, dtype=np.int64)

    def add(
        self,
        probability_HW: Float32[np.ndarray, "H W"],
        truth_HW: Bool[np.ndarray, "H W"],
        valid_HW: Bool[np.ndarray, "H W"],
    ) -> None:
        """Take in one image."""
        bins_N = _logit_bins(probability_HW[valid_HW])
        truth_N = truth_HW[valid_HW]
        self._num_true_K += np.bincount(bins_N[truth_N], minlength=_LOGIT_BINS)
        self._num_false_K += np.bincount(bins_N[~truth_N], minlength=_LOGIT_BINS)

    def temperature(self) -> float:
        """Find the number from 0.05 to 20 that makes the truth of all pixels most likely.

        Raises:
            DataError: no pixel is valid.
        """
        num = self._num_true_K.sum() + self._num_false_K.sum()
        if num == 0:
            raise DataError("a temperature can't be fitted: no validation image has a valid pixel")
        logits_K = ((np.arange(_LOGIT_BINS) + 0.5) / _LOGIT_BINS * 2 - 1) * _LOGIT_LIMIT

        def nll(log_temperature: float) -> float:
            scaled_K = logits_K / np.exp(log_temperature)
            loss_true_K, loss_false_K = np.logaddexp(0, -scaled_K), np.logaddexp(0, scaled_K)
            return float((self._num_true_K @ loss_true_K + self._num_false_K @ loss_false_K) / num)

        found = minimize_scalar(nll, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
        return float(np.exp(found.x))


def _logit_bins(probability_N: Float32[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    wide_N = probability_N.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits_N = np.log(wide_N) - np.log1p(-wide_N)
    share_N = (np.clip(logits_N, -_LOGIT_LIMIT, _LOGIT_LIMIT) / _LOGIT_LIMIT + 1) / 2
    bins_N: Int64[np.ndarray, " N"] = (share_N * _LOGIT_BINS).astype(np.int64)
    return bins_N.clip(0, _LOGIT_BINS - 1)
