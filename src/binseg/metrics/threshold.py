"""The decision threshold: the one with the best Dice, from validation images only.

Thresholds are the multiples of 1/1024. They are exact in float32 and float64 alike, and scaling a
probability by 1024 loses nothing, so that a histogram knows, for each of them, just the pixels
that `probability > threshold` will call foreground. Memory is one histogram, whatever the number
and size of the images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from binseg.errors import DataError
from binseg.metrics.histogram import histogram
from binseg.metrics.scores import is_mostly_empty, score_table

__all__ = ["NUM_THRESHOLDS", "ThresholdChoice", "counts_above", "tune_threshold"]

NUM_THRESHOLDS = 1024
_TIE = 1e-9  # mean Dice closer than this is the same: less than one pixel in any real data set


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
    """Whether all pixels together decided, since most images are empty."""

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Pairs of threshold and Dice, for JSON and plots."""
        return list(zip(self.thresholds_T.tolist(), self.dice_T.tolist(), strict=True))

    @property
    def dice_at_half(self) -> float:
        """What a threshold of 0.5 would have given."""
        return float(self.dice_T[NUM_THRESHOLDS // 2])


def counts_above(
    probability_HW: Float32[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"],
) -> Int64[np.ndarray, "T 4"]:
    """Count tp, fp, fn, tn of one image at each of the thresholds 0/1024, 1/1024 .. 1023/1024."""
    return histogram(probability_HW, truth_HW, valid_HW, num_bins=NUM_THRESHOLDS).counts()


def tune_threshold(
    answers: Iterable[
        tuple[
            Float32[np.ndarray, "_ _"],
            Bool[np.ndarray, "_ _"],
            Bool[np.ndarray, "_ _"],
        ]
    ],
) -> ThresholdChoice:
    """Choose the threshold with the best mean per-image Dice, in the middle of its plateau.

    Where most images are empty, pooled Dice decides: see `is_mostly_empty`.

    Args:
        answers: probability_HW, truth_HW and valid_HW of each validation image, one at a time;
            images without a valid pixel are passed over.

    Raises:
        DataError: no image has a valid pixel.
    """
    total_T = np.zeros(NUM_THRESHOLDS)
    pooled_T4 = np.zeros((NUM_THRESHOLDS, 4), np.int64)
    num_images = num_empty = 0
    for probability_HW, truth_HW, valid_HW in answers:
        if valid_HW.any():
            counts_T4 = counts_above(probability_HW, truth_HW, valid_HW)
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
    """The middle of the longest run of best values; of two equal runs, the one nearer to 0.5."""
    best_T = dice_T >= dice_T.max() - _TIE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], best_T, [False]])))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))  # start, end + 1
    start, end = max(
        runs, key=lambda run: (run[1] - run[0], -abs((run[0] + run[1]) // 2 - len(dice_T) // 2))
    )
    middle: int = (start + end) // 2
    return middle
