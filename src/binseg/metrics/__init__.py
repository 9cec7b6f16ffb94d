"""Count first, score second: pixels into `Counts`, counts into scores, scores into a `Report`.

counts.py       masks -> Counts; Counts of many images -> pooled Counts
surface.py      masks -> distances between outlines, and their scores (OUTLINE_RULE)
objects.py      masks -> objects found and missed (OBJECT_RULE)
registry.py     METRICS: one row for every score (EMPTY_RULE)
scores.py       what was counted or measured in one image -> its scores
threshold.py    probabilities -> pixels by probability; the threshold and the temperature
calibration.py  probabilities -> errors, reliability, what each threshold would score
bootstrap.py    how far figures would move with other images
slices.py       scores of parts of the data
summary.py      images -> Report
report_data.py  Report -> JSON and CSV rows
"""

from binseg.metrics.bootstrap import bootstrap_interval, report_intervals
from binseg.metrics.calibration import (
    ProbabilityTally,
    Reliability,
    measure_reliability,
    summarise_calibration,
)
from binseg.metrics.counts import count, pool
from binseg.metrics.objects import OBJECT_RULE, count_objects
from binseg.metrics.registry import EMPTY_RULE, METRICS
from binseg.metrics.report_data import image_rows, report_as_dict, report_rows
from binseg.metrics.scores import (
    dice,
    is_mostly_empty,
    measure_outline,
    score_all,
    score_image,
    score_objects,
)
from binseg.metrics.slices import check_columns, slice_images
from binseg.metrics.summary import assemble, summarise
from binseg.metrics.surface import OUTLINE_RULE, OutlineRule
from binseg.metrics.threshold import LogitTally, ThresholdChoice, tune_threshold

__all__ = [
    "EMPTY_RULE",
    "METRICS",
    "OBJECT_RULE",
    "OUTLINE_RULE",
    "LogitTally",
    "OutlineRule",
    "ProbabilityTally",
    "Reliability",
    "ThresholdChoice",
    "assemble",
    "bootstrap_interval",
    "check_columns",
    "count",
    "count_objects",
    "dice",
    "image_rows",
    "is_mostly_empty",
    "measure_outline",
    "measure_reliability",
    "pool",
    "report_as_dict",
    "report_intervals",
    "report_rows",
    "score_all",
    "score_image",
    "score_objects",
    "slice_images",
    "summarise",
    "summarise_calibration",
    "tune_threshold",
]
