"""Count first, score second: pixels into `Counts`, counts into scores, scores into a `Report`.

counts.py      arrays -> Counts; Counts of many images -> pooled Counts
scores.py      Counts -> dice, iou, ...; what an empty mask means (EMPTY_RULE)
intervals.py   how far the mean and pooled scores would move with other images
summary.py     images -> Report
threshold.py   the probability above which a pixel is foreground, chosen on validation
tables.py      Report -> JSON and CSV rows
"""

from binseg.metrics.counts import count, pool
from binseg.metrics.intervals import Interval, bootstrap_interval, report_intervals
from binseg.metrics.scores import (
    EMPTY_RULE,
    MEANINGS,
    SCORES,
    accuracy,
    dice,
    iou,
    mean_iou,
    precision,
    recall,
    score_all,
    specificity,
)
from binseg.metrics.summary import score_image, summarise
from binseg.metrics.tables import image_rows, report_rows, report_to_json_dict
from binseg.metrics.threshold import ThresholdChoice, counts_above, tune_threshold

__all__ = [
    "EMPTY_RULE",
    "MEANINGS",
    "SCORES",
    "Interval",
    "ThresholdChoice",
    "accuracy",
    "bootstrap_interval",
    "count",
    "counts_above",
    "dice",
    "image_rows",
    "iou",
    "mean_iou",
    "pool",
    "precision",
    "recall",
    "report_intervals",
    "report_rows",
    "report_to_json_dict",
    "score_all",
    "score_image",
    "specificity",
    "summarise",
    "tune_threshold",
]
