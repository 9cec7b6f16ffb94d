"""How long a run may train so that all of it ends in time: what comes after is measured before."""

import time

import numpy as np

from binseg.config import Recipe
from binseg.data.dataset import Dataset, spread
from binseg.data.samples import read_sample
from binseg.metrics import (
    LogitTally,
    OutlineRule,
    ProbabilityTally,
    count_objects,
    measure_outline,
    measure_reliability,
)
from binseg.postprocess import CleanUp, clean
from binseg.predictor import Predictor
from binseg.progress import Progress
from binseg.structures import Sample
from binseg.workflows.mirroring import NUM_TRIED, TIMES, allowed_flips
from binseg.workflows.report_page import NUM_PICTURES

__all__ = ["ending_seconds", "training_seconds"]

NUM_TIMED = 3
"""Validation pictures that are predicted and measured on trial."""
NUM_CORRECTIONS = 5
"""Corrections of masks that are tried."""
CLOSING = 6.0
"""Seconds for curves, bundle, report page and their pictures."""
LEAST_SHARE = 0.2
"""Of the budget that is trained, however long the rest takes."""


def training_seconds(
    budget_minutes: float, *, spent: float, ending: float, progress: Progress
) -> float:
    """Say how long the epochs may take.

    Args:
        budget_minutes: for the whole run.
        spent: seconds that are over.
        ending: seconds that the end will take.
        progress: hears where the budget can't be kept.
    """
    budget = 60 * budget_minutes
    rest = budget - spent - ending
    if rest >= LEAST_SHARE * budget:
        progress.say(
            f"budget {budget_minutes:g} min: {spent:.0f} s are over, {rest:.0f} s to train, about "
            f"{ending:.0f} s to choose the threshold and to score"
        )
        return rest
    least = LEAST_SHARE * budget
    progress.say(
        f"the budget of {budget_minutes:g} min can't be kept: reading took {spent:.0f} s and the "
        f"scores will take about {ending:.0f} s; training for {least:.0f} s all the same"
    )
    return least


def ending_seconds(recipe: Recipe, judge: Predictor, val: Dataset) -> float:
    """Estimate how long flips, threshold, scores and report of the validation pictures will take.

    Args:
        recipe: which flips are tried, and whether corrections are.
        judge: the network that will answer, trained or not.
        val: the pictures.
    """
    chosen = spread(val.records, NUM_TIMED)
    samples = [read_sample(record, val.rule) for record in chosen]
    judge.predict(samples[0].image_HWC)  # the first answer of a network pays for its set-up
    predicting = measuring = 0.0
    for record, sample in zip(chosen, samples, strict=True):
        start = time.perf_counter()
        read_sample(record, val.rule)
        probability_HW = judge.predict(sample.image_HWC).probability
        predicting += time.perf_counter() - start
        start = time.perf_counter()
        _measure(sample, probability_HW, cleans=recipe.train.clean_up == "tune")
        measuring += time.perf_counter() - start
    num = len(val.records)
    each_predicted, each_measured = predicting / len(chosen), measuring / len(chosen)
    asked = recipe.train.flips
    times = TIMES[allowed_flips(recipe) if asked == "tune" else asked]
    tried = (1 + times) * min(num, NUM_TRIED) if asked == "tune" and times > 1 else 0
    predictions = tried + times * (2 * num + min(num, NUM_PICTURES))
    return predictions * each_predicted + num * each_measured + CLOSING


def _measure(sample: Sample, probability_HW: np.ndarray, *, cleans: bool) -> None:
    """Do what choosing the threshold and scoring do with one answer.

    Masks are the truth's: an untrained network's are noise, whose specks take longer to measure.
    """
    assert sample.mask_HW is not None
    truth_HW, valid_HW = sample.mask_HW, sample.valid_HW
    LogitTally().add(probability_HW, truth_HW, valid_HW)
    measure_reliability(probability_HW, truth_HW, valid_HW)
    ProbabilityTally().add(probability_HW, truth_HW, valid_HW)
    measure_reliability(probability_HW, truth_HW, valid_HW)
    measure_outline(truth_HW, truth_HW, valid_HW, rule=OutlineRule())
    count_objects(truth_HW, truth_HW, valid_HW)
    for _ in range(NUM_CORRECTIONS if cleans else 0):
        clean(truth_HW, CleanUp(min_area=2))
