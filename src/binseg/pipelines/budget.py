"""How long a run will take, and how long it may train so that all of it ends in time.

Without a budget this is said beforehand, from the machine's speed and the recipe
(`expected_seconds`); with one, what comes after the epochs is measured before them
(`ending_seconds`).
"""

import math
import time
from dataclasses import replace

import numpy as np

from binseg.autoconfig import Fingerprint, Machine
from binseg.config import Recipe
from binseg.data.dataset import Dataset, spread
from binseg.data.patches import patches_per_epoch
from binseg.data.samples import read_sample
from binseg.evaluation.report_files import NUM_IMAGES
from binseg.evaluation.tuning import NUM_TRIED, allowed_tta
from binseg.inference import Predictor
from binseg.metrics import (
    LogitTally,
    OutlineRule,
    ProbabilityTally,
    count_objects,
    measure_outline,
    measure_reliability,
)
from binseg.postprocess import PostProcessing, clean
from binseg.progress import Progress
from binseg.training.validation import LEAST_TILES
from binseg.transforms import geometry
from binseg.types import TTA_PASSES, Sample

__all__ = ["ending_seconds", "expected_seconds", "training_seconds"]

NUM_TIMED = 3
"""Validation images that are predicted and measured on trial."""
NUM_CORRECTIONS = 5
"""Corrections of masks that are tried."""
CLOSING = 6.0
"""Seconds for curves, bundle, report page and their images."""
LEAST_SHARE = 0.2
"""Of the budget that is trained, however long the rest takes."""
OPENING = 5.0
"""Seconds from the recipe to the first step, where the pixels were decoded for the plan."""
DECODING = 0.04
"""Seconds for a million pixels of the images, decoded and resized once."""
VALIDATING, PREDICTING = 0.3, 0.52
"""Time for a pixel when it validates, in the precision of training, and when the finished model
answers image by image in float32; as a share of the time for a pixel of a training step.
Measured for four networks: 0.25-0.31 and 0.50-0.61."""
STARTING = 0.2
"""Likewise what each prediction takes however few its pixels are."""
MEASURING = 0.12
"""Seconds for a million pixels of an image whose answer is scored."""


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


def expected_seconds(recipe: Recipe, facts: Fingerprint, machine: Machine) -> float:
    """Say how long a run will take: its budget, if that can be kept, or what all its parts need.

    Args:
        recipe: the whole of it.
        facts: of the training images; all are taken to have the typical one's size.
        machine: with the speed of the recipe's network.
    """
    height, width = int(facts.height[1]), int(facts.width[1])
    inputs, judged = _inputs_an_epoch(recipe, facts)
    epochs, size = recipe.train.epochs, recipe.input.size
    num_steps = epochs * math.ceil(inputs / recipe.train.batch_size)
    trained = inputs * sum(recipe.training_size(epoch) ** 2 for epoch in range(epochs))
    tiles = geometry.plan(height, width, recipe.input.preprocessing())
    num_predicted = num_predictions(recipe, facts.num_val)
    predicted = num_predicted * sum(one.height * one.width for one in tiles)

    def computing(pixels: float, starts: float) -> float:
        per_step = machine.seconds_per_step.get(recipe.model.name, 0.0)
        return machine.seconds_per_megapixel[recipe.model.name] * pixels / 1e6 + per_step * starts

    reading = DECODING * (facts.num_train + facts.num_val)
    own = (reading + MEASURING * facts.num_val) * height * width / 1e6
    scoring = computing(PREDICTING * predicted, STARTING * num_predicted * len(tiles))
    around = OPENING + own + scoring + CLOSING
    if recipe.train.budget_minutes is not None:
        budget = 60 * recipe.train.budget_minutes
        return max(budget, around + LEAST_SHARE * budget)
    validated = VALIDATING * epochs * judged * size**2
    return around + computing(trained + validated, num_steps)


def _inputs_an_epoch(recipe: Recipe, facts: Fingerprint) -> tuple[int, int]:
    """How many inputs an epoch trains on, and how many it validates."""
    height, width = int(facts.height[1]), int(facts.width[1])
    shape = recipe.input.preprocessing().as_trained()
    tiles = len(geometry.plan(height, width, replace(shape, overlap=0.0)))
    judged = facts.num_val * tiles
    if recipe.draws_patches:
        sides_N2 = np.tile(np.array([height, width]) * shape.scale, (facts.num_train, 1))
        size, batch = recipe.input.size, recipe.train.batch_size
        inputs = patches_per_epoch(recipe.patches, sides_N2, size=size, batch_size=batch)
        return inputs, min(judged, max(LEAST_TILES, inputs))
    if recipe.train.per_epoch == "all":
        return facts.num_train * tiles, judged
    return recipe.train.per_epoch, judged


def num_predictions(recipe: Recipe, num: int) -> int:
    """How many inputs the end of a run predicts, mirror images counted.

    Args:
        recipe: which tta are tried.
        num: validation images.
    """
    asked = recipe.train.tta
    times = TTA_PASSES[allowed_tta(recipe) if asked == "tune" else asked]
    tried = (1 + times) * min(num, NUM_TRIED) if asked == "tune" and times > 1 else 0
    return tried + times * (2 * num + min(num, NUM_IMAGES))


def ending_seconds(recipe: Recipe, judge: Predictor, val: Dataset) -> float:
    """Estimate how long tta, threshold, scores and report of the validation images will take.

    Args:
        recipe: which tta are tried, and whether corrections are.
        judge: the network that will answer, trained or not.
        val: the images.
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
        _measure(sample, probability_HW, cleans=recipe.train.postprocess == "tune")
        measuring += time.perf_counter() - start
    num = len(val.records)
    each_predicted, each_measured = predicting / len(chosen), measuring / len(chosen)
    return num_predictions(recipe, num) * each_predicted + num * each_measured + CLOSING


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
        clean(truth_HW, PostProcessing(min_area=2))
