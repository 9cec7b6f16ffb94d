"""Count first, score second: pixels into `Counts`, counts into scores, scores into a `Report`.

counts.py         masks -> Counts; pooled Counts; objects found and missed (OBJECT_RULE)
surface.py        masks -> distances between outlines, and their scores (OUTLINE_RULE)
registry.py       METRICS: one row for every score (EMPTY_RULE)
scores.py         what was counted or measured in one image -> its scores
probabilities.py  probabilities -> errors, reliability, scores of each threshold, temperature
bootstrap.py      how far figures would move with other images
summary.py        images, and parts of the data -> Report, its JSON and CSV rows
"""

from binseg.metrics.counts import count, count_objects, pool
from binseg.metrics.probabilities import (
    LogitTally,
    ProbabilityTally,
    Reliability,
    measure_reliability,
    summarise_calibration,
    tune_threshold,
)
from binseg.metrics.registry import METRICS
from binseg.metrics.scores import (
    dice,
    dice_of,
    is_mostly_empty,
    measure_outline,
    score_all,
    score_image,
)
from binseg.metrics.summary import check_columns, image_rows, report_as_dict, summarise
from binseg.metrics.surface import OutlineRule
