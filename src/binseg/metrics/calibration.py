"""Probabilities before any threshold: their errors, their reliability, and a sweep of thresholds.

What is kept of an image is a few small sums, whatever its size.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from binseg.errors import DataError
from binseg.metrics.bootstrap import NUM_RESAMPLES, interval_of, resampled_sums
from binseg.metrics.registry import CalibrationMetric, ProbabilityMetric, metrics_of
from binseg.metrics.scores import score_table
from binseg.metrics.threshold import NUM_THRESHOLDS, count_bins, counts_of, histogram
from binseg.types import Calibration, Figure, ReliabilityBin, Sweep

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


def measure_reliability(
    probability_HW: Float32[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"],
) -> Reliability:
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
    return Reliability(
        # No dot product: its threads go on spinning, and halve the speed of the next prediction.
        errors_E=np.array(
            [float(one.of(probability_N, true_N).sum()) for one in metrics_of(ProbabilityMetric)]
        ),
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
    """Score the probabilities of the pooled pixels, and find their reliability curve.

    Args:
        images: what was measured in each.
        groups: the group of each image, resampled whole; None resamples single images.
        num_resamples: of the bootstrap; 0 leaves out the intervals.

    Raises:
        DataError: no image has a valid pixel.
    """
    rows = [np.concatenate([r.errors_E, r.num_B, r.probability_B, r.true_B]) for r in images]
    table_NK = np.stack(rows)
    sums_1K = table_NK.sum(axis=0, keepdims=True)
    num_B, probability_B, true_B = sums_1K[0, -3 * NUM_BINS :].reshape(3, NUM_BINS)
    if not num_B.any():
        raise DataError("calibration can't be measured: no image has a pixel that isn't ignored")
    sums_RK = resampled_sums(table_NK, groups=groups, num_resamples=num_resamples)
    resampled = None if sums_RK is None else _score_sums(sums_RK)
    return Calibration(
        scores={
            name: Figure(
                value=float(value_1[0]),
                interval=None if resampled is None else interval_of(resampled[name]),
            )
            for name, value_1 in _score_sums(sums_1K).items()
        },
        bins=tuple(
            ReliabilityBin(
                low=number / NUM_BINS,
                high=(number + 1) / NUM_BINS,
                num_pixels=int(num_B[number]),
                mean_probability=float(probability_B[number] / max(1.0, num_B[number])),
                share=float(true_B[number] / max(1.0, num_B[number])),
            )
            for number in range(NUM_BINS)
        ),
    )


def _score_sums(sums_RK: Float64[np.ndarray, "R K"]) -> dict[str, Float64[np.ndarray, " R"]]:
    """Score each row of sums; a data set without a valid pixel gets 0."""
    bins_R3B = sums_RK[:, -3 * NUM_BINS :].reshape(-1, 3, NUM_BINS)
    num_R = np.maximum(1.0, bins_R3B[:, 0].sum(axis=1))
    errors = enumerate(metrics_of(ProbabilityMetric))
    return {one.name: sums_RK[:, column] / num_R for column, one in errors} | {
        one.name: one.of(bins_R3B[:, 0], bins_R3B[:, 1], bins_R3B[:, 2])
        for one in metrics_of(CalibrationMetric)
    }


class ProbabilityTally:
    """Adds up images one at a time; knows what every threshold would have scored."""

    def __init__(self) -> None:
        self._pooled_2K = np.zeros((2, NUM_THRESHOLDS + 1), dtype=np.int64)
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
        one_2K = histogram(probability_HW, truth_HW, valid_HW)
        self._pooled_2K += one_2K
        self._dice_T += score_table(counts_of(one_2K))["dice"]
        self._num_images += 1

    def sweep(self) -> Sweep:
        """Score every threshold.

        Raises:
            DataError: there was no image with a valid pixel.
        """
        if not self._num_images:
            raise DataError("thresholds can't be compared: no image has a pixel to score")
        pooled = score_table(counts_of(self._pooled_2K))
        curves = {"mean_dice": self._dice_T / self._num_images, **pooled}
        return Sweep(
            thresholds=tuple((np.arange(NUM_THRESHOLDS) / NUM_THRESHOLDS).tolist()),
            curves={name: tuple(curve_T.tolist()) for name, curve_T in curves.items()},
            average_precision=_average_precision(self._pooled_2K),
        )


def _average_precision(histogram_2K: Int64[np.ndarray, "2 K"]) -> float:
    """Sum precision over the steps of recall, as scikit-learn does for 1,025 distinct values.

    Where there is no foreground, it is 1 if nothing gets a probability, else 0.
    """
    tp_K, fp_K = np.cumsum(histogram_2K[:, ::-1], axis=1)
    if tp_K[-1] == 0:
        return float(histogram_2K[1, 1:].sum() == 0)
    steps_K = np.diff(tp_K, prepend=0) / tp_K[-1]
    return float((steps_K * (tp_K / np.maximum(1, tp_K + fp_K))).sum())
