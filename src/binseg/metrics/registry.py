"""The registry of scores: one row in `METRICS` for each, and everything that shows one reads it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, TypeVar

import numpy as np
from jaxtyping import Float64, Num

from binseg.metrics import surface
from binseg.metrics.surface import OutlinePair

EMPTY_RULE = (
    "Empty masks: where truth and prediction are both empty, Dice, IoU, precision and recall "
    "are 1; where only one of them is empty, all four are 0 (so precision is 0 when nothing is "
    "predicted of an object that is there, and recall is 0 when something is predicted where "
    "nothing is). Specificity follows the same rule for the background, and so does each half "
    "of mean IoU."
)
"""The sentence that goes with every table of scores."""

Column = Float64[np.ndarray, " N"]  # one value for each image, or for each resampled data set
Bins = Float64[np.ndarray, "N B"]
Ratio = Callable[[Num[np.ndarray, "N 4"]], Column]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score, in the words and numbers that every table of scores needs."""

    name: str  # in files, options and the API
    meaning: str  # in a few words
    label: str = ""  # for people; the name, if left out
    higher_is_better: bool = True
    is_distance: bool = False
    """In the report's unit, pixels or mm; all others are numbers from 0 to 1."""
    has_tolerance: bool = False  # depends on the tolerance of the report
    is_main: bool = True
    """Shown on the terminal, in comparisons, curves and the table of images; others are in the full
    report only."""
    kind: ClassVar[str]  # the heading for scores of this kind

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name.replace("_", " "))


@dataclass(frozen=True, kw_only=True)
class PixelMetric(Metric):
    """A score of counted pixels: per image, averaged and pooled, at both sizes."""

    of: Ratio  # from rows of tp, fp, fn, tn
    formula: str
    kind = "pixels"


@dataclass(frozen=True, kw_only=True)
class OutlineMetric(Metric):
    """A score of the distance between two outlines, where both are (else `OUTLINE_RULE`)."""

    of: Callable[[OutlinePair], float]
    kind = "outlines"


@dataclass(frozen=True, kw_only=True)
class ObjectMetric(Metric):
    """A score of matched objects, pooled over all images."""

    of: Ratio  # from rows of num_true, num_predicted, num_matched, sum_iou
    kind = "objects"


@dataclass(frozen=True, kw_only=True)
class ProbabilityMetric(Metric):
    """An error of each pixel's probability: its mean per image, and over all pixels."""

    of: Callable[[Column, Column], Column]  # from probability and truth (0 or 1) of each pixel
    higher_is_better: bool = False
    kind = "probabilities"


@dataclass(frozen=True, kw_only=True)
class CalibrationMetric(Metric):
    """A score of all pixels, sorted into bins of equal width by their probability."""

    of: Callable[[Bins, Bins, Bins], Column]
    """From the number of pixels in each bin, the sum of their probabilities and that of their
    truth; a row of bins each."""
    higher_is_better: bool = False
    kind = "probabilities"


def _ratio(upper: tuple[int, ...], lower: tuple[int, ...], *, nothing: tuple[int, ...]) -> Ratio:
    """Divide weighted sums of four counts; 0/0 is 1 where `nothing` weighs 0, else 0."""

    def score(counts_N4: Num[np.ndarray, "N 4"]) -> Column:
        numerator_N, denominator_N = counts_N4 @ np.array(upper), counts_N4 @ np.array(lower)
        empty_N = (counts_N4 @ np.array(nothing) == 0).astype(np.float64)
        # The division by 1 is never taken; it only keeps numpy from dividing by zero.
        shares_N = numerator_N / np.where(denominator_N == 0, 1, denominator_N)
        return np.asarray(np.where(denominator_N == 0, empty_N, shares_N))

    return score


def _of_pixels(upper: tuple[int, ...], lower: tuple[int, ...]) -> Ratio:
    return _ratio(upper, lower, nothing=(0, 1, 1, 0))


def _of_objects(upper: tuple[int, ...], lower: tuple[int, ...]) -> Ratio:
    return _ratio(upper, lower, nothing=(1, 1, 0, 0))


_IOU = _of_pixels((1, 0, 0, 0), (1, 1, 1, 0))
_BACKGROUND_IOU = _of_pixels((0, 0, 0, 1), (0, 1, 1, 1))
_OBJECT_F1 = _of_objects((0, 0, 2, 0), (1, 1, 0, 0))
_OBJECT_IOU = _of_objects((0, 0, 0, 1), (0, 0, 1, 0))


def _calibration_error(num_NB: Bins, probability_NB: Bins, true_NB: Bins) -> Column:
    """Average |mean probability - share of foreground| over the bins, weighed by their pixels."""
    error_N = np.abs(probability_NB - true_NB).sum(axis=1)
    return np.asarray(error_N / np.maximum(1.0, num_NB.sum(axis=1)))


_ROWS: tuple[Metric, ...] = (
    PixelMetric(name="dice", label="Dice",
        meaning="twice the overlap over both areas (F1 of pixels)",
        formula="2 tp / (2 tp + fp + fn)", of=_of_pixels((2, 0, 0, 0), (2, 1, 1, 0))),
    PixelMetric(name="iou", label="IoU", meaning="overlap over union (Jaccard)",
        formula="tp / (tp + fp + fn)", of=_IOU),
    PixelMetric(name="precision", meaning="share of the predicted foreground that is right",
        formula="tp / (tp + fp)", of=_of_pixels((1, 0, 0, 0), (1, 1, 0, 0))),
    PixelMetric(name="recall", meaning="share of the true foreground that was found (sensitivity)",
        formula="tp / (tp + fn)", of=_of_pixels((1, 0, 0, 0), (1, 0, 1, 0))),
    PixelMetric(name="specificity", meaning="share of the true background that was left alone",
        formula="tn / (tn + fp)", of=_of_pixels((0, 0, 0, 1), (0, 1, 0, 1)), is_main=False),
    PixelMetric(name="accuracy",
        meaning="share of all pixels that are right; misleads where objects are small",
        formula="(tp + tn) / all", of=_of_pixels((1, 0, 0, 1), (1, 1, 1, 1)), is_main=False),
    PixelMetric(name="mean_iou", label="mean IoU",
        meaning="average of foreground and background IoU (Keras MeanIoU, 2 classes)",
        formula="(IoU of foreground + IoU of background) / 2",
        of=lambda counts_N4: (_IOU(counts_N4) + _BACKGROUND_IOU(counts_N4)) / 2),
    OutlineMetric(name="boundary_iou", label="boundary IoU",
        meaning="IoU of the pixels within 2% of the diagonal of either outline",
        of=surface.boundary_iou),
    OutlineMetric(name="boundary_f1", label="boundary F1",
        meaning="harmonic mean of the shares of each outline within the tolerance of the other",
        of=surface.boundary_f1, has_tolerance=True),
    OutlineMetric(name="surface_dice", label="surface Dice",
        meaning="share of both outlines that is within the tolerance of the other",
        of=surface.surface_dice, has_tolerance=True, is_main=False),
    OutlineMetric(name="hd95", label="HD95",
        meaning="95th percentile of the distance between the outlines (the worse direction)",
        of=surface.hd95, higher_is_better=False, is_distance=True),
    OutlineMetric(name="assd", label="mean distance",
        meaning="average distance between the outlines, both ways", of=surface.assd,
        higher_is_better=False, is_distance=True),
    ObjectMetric(name="object_precision", meaning="share of the predicted objects that are there",
        of=_of_objects((0, 0, 1, 0), (0, 1, 0, 0))),
    ObjectMetric(name="object_recall", meaning="share of the true objects that were found",
        of=_of_objects((0, 0, 1, 0), (1, 0, 0, 0))),
    ObjectMetric(name="object_f1", label="object F1",
        meaning="harmonic mean of both, also called recognition quality (RQ)", of=_OBJECT_F1),
    ObjectMetric(name="sq", label="segmentation quality",
        meaning="mean IoU of the matched objects (SQ)", of=_OBJECT_IOU, is_main=False),
    ObjectMetric(name="pq", label="panoptic quality",
        meaning="segmentation quality times recognition quality (PQ; Kirillov et al., CVPR 2019)",
        of=lambda counts_N4: _OBJECT_IOU(counts_N4) * _OBJECT_F1(counts_N4)),
    ProbabilityMetric(name="brier", label="Brier score",
        meaning="mean squared error of the probability",
        of=lambda probability_N, truth_N: np.square(probability_N - truth_N)),
    CalibrationMetric(name="ece", label="calibration error",
        meaning="expected difference of probability and share of foreground, over 15 bins "
        "(Guo et al., ICML 2017)", of=_calibration_error),
)  # fmt: skip

METRICS: Mapping[str, Metric] = MappingProxyType({row.name: row for row in _ROWS})
"""Every score by its name, in the order in which tables show them."""

M = TypeVar("M", bound=Metric)


def metrics_of(kind: type[M]) -> tuple[M, ...]:
    """List the scores of one kind.

    >>> [metric.name for metric in metrics_of(ProbabilityMetric)]
    ['brier']
    """
    return tuple(metric for metric in METRICS.values() if isinstance(metric, kind))
