"""Count first, score second: pixels into `Counts`, counts into scores, scores into a `Report`.

counts.py       arrays -> Counts; Counts of many images -> pooled Counts
scores.py       Counts -> dice, iou, ...; what an empty mask means (EMPTY_RULE)
surface.py      arrays -> how near the outlines are (OUTLINE_RULE)
objects.py      arrays -> objects found and missed, panoptic quality (OBJECT_RULE)
histogram.py    arrays -> pixels by probability, for thresholds
calibration.py  arrays -> Brier score, calibration error, threshold sweep, temperature
draws.py        data sets drawn anew: the bootstrap
intervals.py    how far the mean and pooled scores would move with other images
slices.py       scores of parts of the data
summary.py      images -> Report
assembly.py     a Report with intervals, outlines, objects, calibration and slices
threshold.py    the probability above which a pixel is foreground, chosen on validation
comparison.py   two models on the same images: better, or noise
tables.py       Report -> JSON and CSV rows
"""

from binseg.metrics.assembly import OUTLINE_SCORES, assemble
from binseg.metrics.calibration import (
    CALIBRATION_RULE,
    LogitTally,
    ProbabilityTally,
    Reliability,
    fit_temperature,
    measure_reliability,
    summarise_calibration,
)
from binseg.metrics.comparison import COMPARISON_RULE, Difference, compare_scores
from binseg.metrics.counts import count, pool
from binseg.metrics.intervals import bootstrap_interval, report_intervals
from binseg.metrics.objects import OBJECT_MEANINGS, OBJECT_RULE, count_objects, score_objects
from binseg.metrics.scores import (
    EMPTY_RULE,
    MEANINGS,
    SCORES,
    accuracy,
    dice,
    iou,
    is_mostly_empty,
    mean_iou,
    precision,
    recall,
    score_all,
    specificity,
)
from binseg.metrics.slices import check_columns, slice_images
from binseg.metrics.summary import score_image, summarise
from binseg.metrics.surface import OUTLINE_MEANINGS, OUTLINE_RULE, OutlineRule, measure_outline
from binseg.metrics.tables import image_rows, report_rows, report_to_json_dict
from binseg.metrics.threshold import ThresholdChoice, counts_above, tune_threshold
from binseg.types import Interval

__all__ = [
    "CALIBRATION_RULE",
    "COMPARISON_RULE",
    "EMPTY_RULE",
    "MEANINGS",
    "OBJECT_MEANINGS",
    "OBJECT_RULE",
    "OUTLINE_MEANINGS",
    "OUTLINE_RULE",
    "OUTLINE_SCORES",
    "SCORES",
    "Difference",
    "Interval",
    "LogitTally",
    "OutlineRule",
    "ProbabilityTally",
    "Reliability",
    "ThresholdChoice",
    "accuracy",
    "assemble",
    "bootstrap_interval",
    "check_columns",
    "compare_scores",
    "count",
    "count_objects",
    "counts_above",
    "dice",
    "fit_temperature",
    "image_rows",
    "iou",
    "is_mostly_empty",
    "mean_iou",
    "measure_outline",
    "measure_reliability",
    "pool",
    "precision",
    "recall",
    "report_intervals",
    "report_rows",
    "report_to_json_dict",
    "score_all",
    "score_image",
    "score_objects",
    "slice_images",
    "specificity",
    "summarise",
    "summarise_calibration",
    "tune_threshold",
]
