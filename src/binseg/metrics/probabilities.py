"""Probabilities before any threshold: errors, reliability, thresholds; and what validation chooses.

Thresholds are the multiples of 1/1024. They are exact in float32 and float64 alike, and scaling a
probability by 1024 loses nothing, so that a histogram knows, for each of them, just the pixels that
`probability > threshold` will call foreground.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.optimize import minimize_scalar

from binseg.errors import DataError
from binseg.metrics.registry import CalibrationMetric, ProbabilityMetric, metrics_of
from binseg.metrics.scores import NUM_RESAMPLES, figures_of, is_mostly_empty, score_table
from binseg.types import Calibration, Mask, Probability, ReliabilityBin, Sweep

NUM_THRESHOLDS = 1024
_TIE = 1e-9  # mean Dice closer than this is the same: less than one pixel in any real data set
_THRESHOLDS = np.arange(NUM_THRESHOLDS) / NUM_THRESHOLDS
_LOGIT_LIMIT = 16.0  # float32 probabilities say little beyond
_LOGIT_BINS = 1024
NUM_BINS = 15
CALIBRATION_RULE = (
    f"Calibration: over all valid pixels; the expected calibration error uses {NUM_BINS} bins of "
    "equal width, each closed above. Most pixels are easy, so that small figures are the rule: "
    "look at the curve."
)
"""The sentence that goes with Brier score and calibration error."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Sums over the valid pixels of one image, by bin of probability where B says so."""

    errors_E: Float64[np.ndarray, " E"]
    """One sum for each probability metric, in the order of the registry."""
    num_B: Float64[np.ndarray, " B"]
    probability_B: Float64[np.ndarray, " B"]
    true_B: Float64[np.ndarray, " B"]

    @property
    def scores(self) -> dict[str, float]:
        """The mean error of the probability by each metric; 0 where no pixel is valid."""
        num = max(1.0, float(self.num_B.sum()))
        metrics = metrics_of(ProbabilityMetric)
        return {
            one.name: float(sum_) / num for one, sum_ in zip(metrics, self.errors_E, strict=True)
        }


def measure_reliability(probability_HW: Probability, truth_HW: Mask, valid_HW: Mask) -> Reliability:
    """Add up the errors, the probabilities and the truth of one image's valid pixels, in 15 bins.

    >>> everywhere = np.ones((1, 2), dtype=bool)
    >>> measure_reliability(np.float32([[0.5, 1]]), everywhere, everywhere).scores["brier"]
    0.125
    """
    probability_N = probability_HW[valid_HW].astype(np.float64)
    truth_N = truth_HW[valid_HW]
    # A probability of 0 belongs to the lowest bin, which alone is closed below too.
    bins_N = np.maximum(count_bins(probability_N, NUM_BINS) - 1, 0)
    num_2B = np.bincount(bins_N + NUM_BINS * truth_N, minlength=2 * NUM_BINS).reshape(2, NUM_BINS)
    said_B = np.bincount(bins_N, weights=probability_N, minlength=NUM_BINS)
    true_N = truth_N.astype(np.float64)
    # No dot product: its threads go on spinning, and halve the speed of the next prediction.
    errors = [float(one.of(probability_N, true_N).sum()) for one in metrics_of(ProbabilityMetric)]
    return Reliability(
        errors_E=np.array(errors),
        num_B=num_2B.sum(axis=0).astype(np.float64),
        probability_B=said_B.astype(np.float64),  # an empty bincount gives integers
        true_B=num_2B[1].astype(np.float64),
    )


def summarise_calibration(
    images: Sequence[Reliability],
    *,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Calibration:
    """Score the pooled pixels' probabilities, with their reliability curve; or DataError."""
    rows = [np.concatenate([r.errors_E, r.num_B, r.probability_B, r.true_B]) for r in images]
    table_NK = np.stack(rows)
    num_B, probability_B, true_B = table_NK[:, -3 * NUM_BINS :].sum(axis=0).reshape(3, NUM_BINS)
    if not num_B.any():
        raise DataError("calibration can't be measured: no image has a pixel that isn't ignored")
    bins = tuple(
        ReliabilityBin(
            low=at / NUM_BINS,
            high=(at + 1) / NUM_BINS,
            num_pixels=int(num),
            mean_probability=float(probability / max(1.0, num)),
            share=float(true / max(1.0, num)),
        )
        for at, (num, probability, true) in enumerate(
            zip(num_B, probability_B, true_B, strict=True)
        )
    )
    scores = figures_of(table_NK, _score_sums, groups=groups, num_resamples=num_resamples)
    return Calibration(scores=scores, bins=bins)


def _score_sums(sums_RK: Float64[np.ndarray, "R K"]) -> dict[str, Float64[np.ndarray, " R"]]:
    bins_R3B = sums_RK[:, -3 * NUM_BINS :].reshape(-1, 3, NUM_BINS)
    num_R = np.maximum(1.0, bins_R3B[:, 0].sum(axis=1))
    errors = enumerate(metrics_of(ProbabilityMetric))
    return {one.name: sums_RK[:, column] / num_R for column, one in errors} | {
        one.name: one.of(bins_R3B[:, 0], bins_R3B[:, 1], bins_R3B[:, 2])
        for one in metrics_of(CalibrationMetric)
    }


def count_bins(probability_N: Float[np.ndarray, " N"], num_bins: int) -> Int64[np.ndarray, " N"]:
    """Sort probabilities into bins: 0 for 0, else 1 to `num_bins`, without rounding for 2^n."""
    assert not probability_N.size or 0 <= probability_N.min() <= probability_N.max() <= 1, (
        "probabilities are in [0, 1], and none is nan"
    )
    return np.ceil(probability_N * np.float64(num_bins)).astype(np.int64)


def histogram(
    probability_HW: Probability, truth_HW: Mask, valid_HW: Mask
) -> Int64[np.ndarray, "2 K"]:
    """Count the valid pixels of one image, true and false ones, in equal bins.

    Of 1,025 bins, number 0 holds the pixels of probability 0, number k those in ((k-1)/1024,
    k/1024]: open below and closed above, as `probability > threshold` cuts.

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
    dice: float  # Dice at that threshold, on the images that chose it
    thresholds_T: Float64[np.ndarray, " T"]
    dice_T: Float64[np.ndarray, " T"]
    """Dice at each of `thresholds_T`: the mean over images, or that of all pixels together."""
    num_images: int
    is_pooled: bool = False  # True where all pixels together decided, since most images are empty

    @property
    def dice_at_half(self) -> float:
        """The Dice that a threshold of 0.5 would have given."""
        return float(self.dice_T[NUM_THRESHOLDS // 2])


class ProbabilityTally:
    """Adds up images one at a time; knows what every threshold would have scored."""

    def __init__(self) -> None:
        self._pooled_2K = np.zeros((2, NUM_THRESHOLDS + 1), dtype=np.int64)
        self._dice_T = np.zeros(NUM_THRESHOLDS)
        self._num_images = self._num_empty = 0

    def add(self, probability_HW: Probability, truth_HW: Mask, valid_HW: Mask) -> None:
        """Take in one image; one without a valid pixel is passed over."""
        if not valid_HW.any():
            return
        one_2K = histogram(probability_HW, truth_HW, valid_HW)
        self._pooled_2K += one_2K
        self._dice_T += score_table(counts_of(one_2K))["dice"]
        self._num_images += 1
        self._num_empty += not one_2K[0].any()

    def as_dict(self) -> dict[str, Any]:
        """Give what was added up as plain data."""
        return {
            name: one.tolist() if isinstance(one, np.ndarray) else int(one)
            for name, one in vars(self).items()
        }

    def join(self, added_up: Mapping[str, Any]) -> None:
        """Take in what another one gave `as_dict`."""
        for name, one in vars(self).items():
            setattr(self, name, one + np.asarray(added_up[name]))

    def sweep(self) -> Sweep:
        """Score every threshold; DataError if there was no image with a valid pixel."""
        if not self._num_images:
            raise DataError("thresholds can't be compared: no image has a pixel to score")
        pooled = score_table(counts_of(self._pooled_2K))
        curves = {"mean_dice": self._dice_T / self._num_images, **pooled}
        return Sweep(
            thresholds=tuple(_THRESHOLDS.tolist()),
            curves={name: tuple(curve_T.tolist()) for name, curve_T in curves.items()},
            average_precision=_average_precision(self._pooled_2K),
        )

    def choose(self) -> ThresholdChoice:
        """Choose the best mean Dice, or pooled if most are empty, mid-plateau; DataError."""
        if not self._num_images:
            told = "a threshold can't be chosen: no validation image has a pixel that isn't ignored"
            raise DataError(f"{told}; check the split, or give a fixed threshold")
        is_pooled = is_mostly_empty(self._num_empty, self._num_images)
        dice_T = self._dice_T / self._num_images
        if is_pooled:
            dice_T = score_table(counts_of(self._pooled_2K))["dice"]
        best = _middle_of_plateau(dice_T)
        threshold, dice, num = best / NUM_THRESHOLDS, float(dice_T[best]), self._num_images
        return ThresholdChoice(
            threshold=threshold,
            dice=dice,
            thresholds_T=_THRESHOLDS,
            dice_T=dice_T,
            num_images=num,
            is_pooled=is_pooled,
        )


def tune_threshold(predictions: Iterable[tuple[np.ndarray, ...]]) -> ThresholdChoice:
    """Choose a threshold by probability_HW, truth_HW, valid_HW of each image; or DataError."""
    tally = ProbabilityTally()
    for one in predictions:
        tally.add(*one)
    return tally.choose()


def _average_precision(histogram_2K: Int64[np.ndarray, "2 K"]) -> float:
    """Sum precision over the steps of recall, as scikit-learn does for 1,025 distinct values."""
    tp_K, fp_K = np.cumsum(histogram_2K[:, ::-1], axis=1)
    if tp_K[-1] == 0:
        return float(histogram_2K[1, 1:].sum() == 0)
    steps_K = np.diff(tp_K, prepend=0) / tp_K[-1]
    return float((steps_K * (tp_K / np.maximum(1, tp_K + fp_K))).sum())


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


class LogitTally:
    """Adds up images; finds the temperature for all logits (Guo et al.), above 1 if too sure."""

    def __init__(self) -> None:
        self._num_2K = np.zeros((2, _LOGIT_BINS), dtype=np.int64)  # of false and true pixels

    def add(self, probability_HW: Probability, truth_HW: Mask, valid_HW: Mask) -> None:
        """Take in one image."""
        wide_N = probability_HW[valid_HW].astype(np.float64)
        with np.errstate(divide="ignore"):
            logits_N = np.log(wide_N) - np.log1p(-wide_N)
        share_N = (logits_N.clip(-_LOGIT_LIMIT, _LOGIT_LIMIT) / _LOGIT_LIMIT + 1) / 2
        bins_N = (share_N * _LOGIT_BINS).astype(np.int64).clip(0, _LOGIT_BINS - 1)
        codes_N = bins_N + _LOGIT_BINS * truth_HW[valid_HW]
        self._num_2K += np.bincount(codes_N, minlength=2 * _LOGIT_BINS).reshape(2, -1)

    def temperature(self) -> float:
        """Find the number from 0.05 to 20 that makes the truth likeliest; DataError if empty."""
        num_false_K, num_true_K = self._num_2K
        num = self._num_2K.sum()
        if num == 0:
            raise DataError("a temperature can't be fitted: no validation image has a valid pixel")
        logits_K = ((np.arange(_LOGIT_BINS) + 0.5) / _LOGIT_BINS * 2 - 1) * _LOGIT_LIMIT

        def nll(log_temperature: float) -> float:
            scaled_K = logits_K / np.exp(log_temperature)
            loss_true_K, loss_false_K = np.logaddexp(0, -scaled_K), np.logaddexp(0, scaled_K)
            return float((num_true_K @ loss_true_K + num_false_K @ loss_false_K) / num)

        found = minimize_scalar(nll, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
        return float(np.exp(found.x))
