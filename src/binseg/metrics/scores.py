"""Scores are shares of counted pixels; this module alone says what they are where nothing is there.

Every score is (some of the right pixels) / (some of the pixels), so each is written as two rows of
weights over tp, fp, fn, tn; one rule decides all of them where the lower sum is zero.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64, Num

from binseg.metrics.counts import as_array
from binseg.types import Counts

__all__ = [
    "EMPTY_RULE",
    "MEANINGS",
    "SCORES",
    "accuracy",
    "dice",
    "iou",
    "is_mostly_empty",
    "mean_iou",
    "precision",
    "recall",
    "score_all",
    "score_table",
    "specificity",
]

EMPTY_RULE = (
    "Empty masks: where truth and prediction are both empty, Dice, IoU, precision and recall "
    "are 1; where only one of them is empty, all four are 0 (so precision is 0 when nothing is "
    "predicted of an object that is there, and recall is 0 when something is predicted where "
    "nothing is). Specificity follows the same rule for the background, and so does each half "
    "of mean IoU."
)
"""The sentence that goes with every table of scores."""

_Weights = tuple[int, int, int, int]
#                              tp fp fn tn    tp fp fn tn
_SHARES: Mapping[str, tuple[_Weights, _Weights]] = {
    "dice": ((2, 0, 0, 0), (2, 1, 1, 0)),
    "iou": ((1, 0, 0, 0), (1, 1, 1, 0)),
    "precision": ((1, 0, 0, 0), (1, 1, 0, 0)),
    "recall": ((1, 0, 0, 0), (1, 0, 1, 0)),
    "specificity": ((0, 0, 0, 1), (0, 1, 0, 1)),
    "accuracy": ((1, 0, 0, 1), (1, 1, 1, 1)),
    "background_iou": ((0, 0, 0, 1), (0, 1, 1, 1)),
}


def _share(name: str, counts_N4: Num[np.ndarray, "N 4"]) -> Float64[np.ndarray, " N"]:
    """One score of N rows of counts; 0/0 is 1 if no pixel is wrong, else 0 (see EMPTY_RULE)."""
    upper, lower = _SHARES[name]
    numerator_N = counts_N4 @ np.array(upper)
    denominator_N = counts_N4 @ np.array(lower)
    faultless_N = (counts_N4[:, 1] + counts_N4[:, 2] == 0).astype(np.float64)
    # The division by 1 is never taken; it only keeps numpy from dividing by zero.
    shares_N = numerator_N / np.where(denominator_N == 0, 1, denominator_N)
    scores_N: Float64[np.ndarray, " N"] = np.where(denominator_N == 0, faultless_N, shares_N)
    return scores_N


def score_table(counts_N4: Num[np.ndarray, "N 4"]) -> dict[str, Float64[np.ndarray, " N"]]:
    """Score many rows of counts (tp, fp, fn, tn) at once, by the names of `SCORES`."""
    table = {name: _share(name, counts_N4) for name in _SHARES}
    table["mean_iou"] = (table["iou"] + table.pop("background_iou")) / 2
    return table


def is_mostly_empty(num_empty: int, num_images: int) -> bool:
    """Tell whether most images, but not all, have an empty truth.

    Each of them counts 1 without a false pixel and 0 with one, so that their mean would praise a
    model that never answers: choices then go by the pooled score.
    """
    return num_images / 2 < num_empty < num_images


def _score(name: str, counts: Counts) -> float:
    return float(_share(name, as_array([counts]))[0])


def dice(counts: Counts) -> float:
    """Score the overlap as 2 tp / (2 tp + fp + fn), the F1 score of the foreground's pixels.

    >>> dice(Counts(tp=3, fp=1, fn=1, tn=95))
    0.75
    >>> dice(Counts(tp=0, fp=0, fn=0, tn=100))
    1.0
    """
    return _score("dice", counts)


def iou(counts: Counts) -> float:
    """Score the overlap as tp / (tp + fp + fn), also called Jaccard index.

    >>> iou(Counts(tp=3, fp=1, fn=1, tn=95))
    0.6
    """
    return _score("iou", counts)


def precision(counts: Counts) -> float:
    """Score which share of the predicted foreground is right.

    >>> precision(Counts(tp=3, fp=1, fn=0, tn=96))
    0.75
    """
    return _score("precision", counts)


def recall(counts: Counts) -> float:
    """Score which share of the true foreground was found, also called sensitivity.

    >>> recall(Counts(tp=1, fp=0, fn=3, tn=96))
    0.25
    """
    return _score("recall", counts)


def specificity(counts: Counts) -> float:
    """Score which share of the true background was left alone.

    >>> specificity(Counts(tp=0, fp=1, fn=0, tn=3))
    0.75
    """
    return _score("specificity", counts)


def accuracy(counts: Counts) -> float:
    """Score which share of all pixels is right; high for an empty answer where objects are small.

    >>> accuracy(Counts(tp=0, fp=0, fn=1, tn=99))
    0.99
    """
    return _score("accuracy", counts)


def mean_iou(counts: Counts) -> float:
    """Average the IoU of foreground and background: Keras' `MeanIoU(num_classes=2)`.

    Background is easy and lifts it: it's no substitute for `iou`.

    >>> mean_iou(Counts(tp=0, fp=0, fn=1, tn=99))
    0.495
    """
    return (_score("iou", counts) + _score("background_iou", counts)) / 2


SCORES: Mapping[str, Callable[[Counts], float]] = MappingProxyType(
    {
        "dice": dice,
        "iou": iou,
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "accuracy": accuracy,
        "mean_iou": mean_iou,
    }
)
"""Every score by the name it bears in reports, in the order in which tables show them."""

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "dice": "twice the overlap over both areas (F1 of pixels)",
        "iou": "overlap over union (Jaccard)",
        "precision": "share of the predicted foreground that is right",
        "recall": "share of the true foreground that was found",
        "specificity": "share of the true background that was left alone",
        "accuracy": "share of all pixels that are right; misleads where objects are small",
        "mean_iou": "average of foreground and background IoU (Keras MeanIoU, 2 classes)",
    }
)
"""What each score says, in a few words, for table heads and docs."""


def score_all(counts: Counts) -> dict[str, float]:
    """Score one image, or pooled counts, by every name of `SCORES`.

    >>> score_all(Counts(tp=0, fp=0, fn=0, tn=9))["recall"]
    1.0
    """
    return {name: score(counts) for name, score in SCORES.items()}
