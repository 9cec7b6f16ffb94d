"""Do probabilities mean what they say, and what would other thresholds score?

Guo et al., On Calibration of Modern Neural Networks (ICML 2017), for the expected calibration
error and the temperature. What is kept of an image is a few small sums, whatever its size.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.optimize import minimize_scalar

from binseg.errors import DataError
from binseg.metrics.draws import drawn_sums, interval_of
from binseg.metrics.histogram import Histogram, count_bins, histogram
from binseg.metrics.scores import score_table
from binseg.metrics.threshold import NUM_THRESHOLDS
from binseg.types import Calibration, Figure, ReliabilityBin, Sweep

__all__ = [
    "CALIBRATION_RULE",
    "NUM_BINS",
    "LogitTally",
    "ProbabilityTally",
    "Reliability",
    "fit_temperature",
    "measure_reliability",
    "summarise_calibration",
]

NUM_BINS = 15
CALIBRATION_RULE = (
    f"Calibration: over all valid pixels; the expected calibration error uses {NUM_BINS} bins of "
    "equal width, each closed above. Most pixels are easy, so that small figures are the rule: "
    "look at the curve."
)
"""The sentence that goes with Brier score and calibration error."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What one image (or, added up, many) says and what is so, by bin of probability."""

    squared_error: float
    """Sum of (probability - truth)^2 over the valid pixels."""
    num_B: Float64[np.ndarray, " B"]
    probability_B: Float64[np.ndarray, " B"]
    """Sums, not means, so that images can be added; so too the truth's."""
    true_B: Float64[np.ndarray, " B"]

    @property
    def brier(self) -> float:
        """The mean squared error of the probability; 0 where no pixel is valid."""
        return self.squared_error / max(1.0, float(self.num_B.sum()))


def measure_reliability(
    probability_HW: Float32[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"],
) -> Reliability:
    """Add up, by 15 equal bins, what is said of one image's valid pixels and what is so.

    >>> everywhere = np.ones((1, 2), dtype=bool)
    >>> measure_reliability(np.float32([[0.5, 1]]), everywhere, everywhere).brier
    0.125
    """
    probability_N = probability_HW[valid_HW].astype(np.float64)
    truth_N = truth_HW[valid_HW]
    # A probability of 0 belongs to the lowest bin, which alone is closed below too.
    bins_N = np.maximum(count_bins(probability_N, NUM_BINS) - 1, 0)
    num_2B = np.bincount(bins_N + NUM_BINS * truth_N, minlength=2 * NUM_BINS).reshape(2, NUM_BINS)
    error_N = probability_N - truth_N
    return Reliability(
        # No dot product: its threads go on spinning, and halve the speed of the next prediction.
        squared_error=float(np.square(error_N).sum()),
        num_B=num_2B.sum(axis=0).astype(np.float64),
        # An empty bincount gives integers, weights or not.
        probability_B=np.bincount(bins_N, weights=probability_N, minlength=NUM_BINS).astype(
            np.float64
        ),
        true_B=num_2B[1].astype(np.float64),
    )


def summarise_calibration(
    images: Sequence[Reliability],
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Find Brier score, calibration error and reliability curve of the pooled pixels.

    Args:
        images: what was measured in each.
        groups: the group of each image, drawn whole for the intervals; None draws single images.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        DataError: no image has a valid pixel.
    """
    rows = [np.concatenate([[r.squared_error], r.num_B, r.probability_B, r.true_B]) for r in images]
    table_NK = np.array(rows).reshape(len(rows), 1 + 3 * NUM_BINS)
    sums_1K = table_NK.sum(axis=0, keepdims=True)
    brier_1, ece_1 = _brier_and_ece(sums_1K)
    num_B, probability_B, true_B = sums_1K[0, 1:].reshape(3, NUM_BINS)
    if not num_B.any():
        raise DataError("calibration can't be measured: no image has a pixel that isn't ignored")
    drawn_DK = drawn_sums(table_NK, groups=groups, draws=draws, seed=seed) if draws else None
    drawn = None if drawn_DK is None else _brier_and_ece(drawn_DK)
    bins = tuple(
        ReliabilityBin(
            low=number / NUM_BINS,
            high=(number + 1) / NUM_BINS,
            num_pixels=int(num_B[number]),
            mean_probability=float(probability_B[number] / max(1.0, num_B[number])),
            share=float(true_B[number] / max(1.0, num_B[number])),
        )
        for number in range(NUM_BINS)
    )
    return Calibration(
        brier=Figure(value=float(brier_1[0]), interval=interval_of(drawn[0]) if drawn else None),
        ece=Figure(value=float(ece_1[0]), interval=interval_of(drawn[1]) if drawn else None),
        bins=bins,
    )


def _brier_and_ece(
    sums_DK: Float64[np.ndarray, "D K"],
) -> tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, " D"]]:
    """Both scores of each row of sums; a drawn data set without a valid pixel gets 0."""
    num_DB, probability_DB, true_DB = np.split(sums_DK[:, 1:], 3, axis=1)
    num_D = np.maximum(1.0, num_DB.sum(axis=1))
    return sums_DK[:, 0] / num_D, np.abs(probability_DB - true_DB).sum(axis=1) / num_D


class ProbabilityTally:
    """Adds up images one at a time; knows what every threshold would have scored."""

    def __init__(self) -> None:
        nothing_K = np.zeros(NUM_THRESHOLDS + 1, dtype=np.int64)
        self._pooled = Histogram(num_true_K=nothing_K, num_false_K=nothing_K)
        self._dice_T = np.zeros(NUM_THRESHOLDS)
        self._num_images = 0

    def add(
        self,
        probability_HW: Float32[np.ndarray, "H W"],
        truth_HW: Bool[np.ndarray, "H W"],
        valid_HW: Bool[np.ndarray, "H W"],
    ) -> None:
        """Take in one image; one without a valid pixel is passed over."""
        if not valid_HW.any():
            return
        one = histogram(probability_HW, truth_HW, valid_HW, num_bins=NUM_THRESHOLDS)
        self._pooled = self._pooled + one
        self._dice_T += score_table(one.counts())["dice"]
        self._num_images += 1

    def sweep(self) -> Sweep:
        """Score every threshold.

        Raises:
            DataError: there was no image with a valid pixel.
        """
        if not self._num_images:
            raise DataError("thresholds can't be compared: no image has a pixel to score")
        counts_T4 = self._pooled.counts()
        table = score_table(counts_T4)
        return Sweep(
            thresholds=tuple((np.arange(NUM_THRESHOLDS) / NUM_THRESHOLDS).tolist()),
            mean_dice=tuple((self._dice_T / self._num_images).tolist()),
            dice=tuple(table["dice"].tolist()),
            iou=tuple(table["iou"].tolist()),
            precision=tuple(table["precision"].tolist()),
            recall=tuple(table["recall"].tolist()),
            average_precision=_average_precision(self._pooled),
        )


def _average_precision(pooled: Histogram) -> float:
    """Sum precision over the steps of recall, as scikit-learn does for 1,025 distinct values.

    Where there is no foreground, it is 1 if nothing gets a probability, else 0.
    """
    tp_T = np.cumsum(pooled.num_true_K[::-1])
    fp_T = np.cumsum(pooled.num_false_K[::-1])
    if tp_T[-1] == 0:
        return float(pooled.num_false_K[1:].sum() == 0)
    steps_T = np.diff(tp_T, prepend=0) / tp_T[-1]
    return float((steps_T * (tp_T / np.maximum(1, tp_T + fp_T))).sum())


_LOGIT_LIMIT = 16.0  # float32 probabilities say little beyond
_LOGIT_BINS = 1024


def fit_temperature(
    answers: Iterable[
        tuple[Float32[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]
    ],
) -> float:
    """Find the one number that, dividing all logits, makes validation probabilities most likely.

    Above 1 the model was too sure. The order of probabilities doesn't change; thresholds must be
    chosen anew.

    Args:
        answers: probability_HW, truth_HW and valid_HW of each validation image, one at a time.

    Returns:
        The temperature, from 0.05 to 20.

    Raises:
        DataError: no pixel is valid.
    """
    tally = LogitTally()
    for probability_HW, truth_HW, valid_HW in answers:
        tally.add(probability_HW, truth_HW, valid_HW)
    return tally.temperature()


class LogitTally:
    """Adds up images one at a time; knows the temperature that suits them all."""

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
        """Find the temperature, as `fit_temperature` says.

        Raises:
            DataError: no pixel is valid.
        """
        return _likeliest(self._num_true_K, self._num_false_K)


def _likeliest(num_true_K: Int64[np.ndarray, " K"], num_false_K: Int64[np.ndarray, " K"]) -> float:
    num = num_true_K.sum() + num_false_K.sum()
    if num == 0:
        raise DataError("a temperature can't be fitted: no validation image has a valid pixel")
    logits_K = ((np.arange(_LOGIT_BINS) + 0.5) / _LOGIT_BINS * 2 - 1) * _LOGIT_LIMIT

    def nll(log_temperature: float) -> float:
        scaled_K = logits_K / np.exp(log_temperature)
        loss_true_K, loss_false_K = np.logaddexp(0, -scaled_K), np.logaddexp(0, scaled_K)
        return float((num_true_K @ loss_true_K + num_false_K @ loss_false_K) / num)

    found = minimize_scalar(nll, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def _logit_bins(probability_N: Float32[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    wide_N = probability_N.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits_N = np.log(wide_N) - np.log1p(-wide_N)
    share_N = (np.clip(logits_N, -_LOGIT_LIMIT, _LOGIT_LIMIT) / _LOGIT_LIMIT + 1) / 2
    bins_N: Int64[np.ndarray, " N"] = (share_N * _LOGIT_BINS).astype(np.int64)
    return bins_N.clip(0, _LOGIT_BINS - 1)
