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

from binseg.metrics.calibration import (
    ProbabilityTally,
    Reliability,
    measure_reliability,
    summarise_calibration,
)
from binseg.metrics.counts import count, pool
from binseg.metrics.objects import count_objects
from binseg.metrics.registry import METRICS
from binseg.metrics.report_data import image_rows, report_as_dict
from binseg.metrics.scores import dice, is_mostly_empty, measure_outline, score_all, score_image
from binseg.metrics.slices import check_columns
from binseg.metrics.summary import summarise
from binseg.metrics.surface import OutlineRule
from binseg.metrics.threshold import LogitTally, tune_threshold

__all__ = [
    "METRICS",
    "LogitTally",
    "OutlineRule",
    "ProbabilityTally",
    "Reliability",
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
    "score_all",
    "score_image",
    "summarise",
    "summarise_calibration",
    "tune_threshold",
]
