"""Count first, score second: pixels into `Counts`, counts into scores, scores into a `Report`.

surface.py        masks -> distances between outlines, and their scores (OUTLINE_RULE)
registry.py       METRICS: one row for every score (EMPTY_RULE)
scores.py         masks -> Counts (OBJECT_RULE) -> scores of an image, and how far means would move
probabilities.py  probabilities -> errors, reliability, scores of each threshold, temperature
summary.py        images, and parts of the data -> Report, its JSON and CSV rows
"""

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
    count,
    count_objects,
    dice,
    dice_of,
    is_mostly_empty,
    measure_outline,
    pool,
    score_all,
    score_image,
)
from binseg.metrics.summary import check_columns, image_rows, report_as_dict, summarise
from binseg.metrics.surface import OutlineRule
