"""The time that a run will take, and how long it may train so that all of it ends in time.

Without a budget this is said beforehand, from the machine's speed and the recipe
(`expected_seconds`); with one, what comes after the epochs is measured before them, and once more
after them with the trained network, so that trials for which no time is left are given up.

The speed (`measure_machine`) is that of a few real steps of two sizes: they show what a step costs
however small it is, and what each pixel adds, within a tenth from 64x64 to 256x256.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from binseg import metrics
from binseg.autoconfig import PRETRAINED, PRETRAINED_OPTIONS, THICK_OPTIONS, Fingerprint, Machine
from binseg.config import Recipe, load_recipe
from binseg.config.named_models import MODELS, WEIGHTS
from binseg.data.cache import PixelCache
from binseg.data.dataset import Dataset, spread
from binseg.data.patches import patches_per_epoch
from binseg.data.samples import read_sample
from binseg.evaluation.learning_quality import MOST, NUM_USUAL
from binseg.evaluation.report_files import NUM_IMAGES
from binseg.evaluation.tuning import NUM_TRIED, allowed_tta
from binseg.inference import Predictor
from binseg.models import build_model, weights_path
from binseg.pipelines.bench_training import WARM_UP, Steps, time_steps
from binseg.postprocess import PostProcessing, clean
from binseg.progress import SILENT, Detail, Progress
from binseg.training import devices
from binseg.training.diagnostics import LEAST_TILES
from binseg.transforms import geometry
from binseg.types import TTA_PASSES, Sample

NUM_TIMED = 3  # validation images that are predicted and measured on trial
NUM_CORRECTIONS = 5  # corrections of masks that are tried
CLOSING = 6.0  # seconds kept for curves, bundle, report page and their images, on an idle machine
EXPECTED_CLOSING = 4.5  # likewise, as a run without a budget most probably needs them
MOST_BUSY = 5.0  # times as long as alone that such work is taken to need on a busy machine, at most
MARGIN = 1.5
"""Times the measured end that is kept for it: the machine may become busier while it trains, and
the last step and its validation end a little late."""
LEAST_SHARE = 0.2  # least share of the budget that is trained, however long the rest takes
OPENING = 2.0  # Seconds from recipe to first step, with pixels decoded for the plan
DECODING = 0.04  # seconds for a million pixels of the images, decoded and resized once
COPIES = 0.006  # seconds an image that the search for copies in two splits takes
VALIDATING, PREDICTING = 0.3, 0.65
"""Time for a pixel when it validates, in the precision of training, and when the finished model
predicts image by image in float32; as a share of the time for a pixel of a training step.
Measured for four networks: 0.25-0.31 and 0.50-0.61; 0.8 where training is in bf16."""
STARTING = 0.2  # likewise what each prediction takes, however few its pixels are
MEASURING = 0.12  # seconds for a million pixels of an image whose prediction is scored


def training_seconds(
    budget_minutes: float, *, spent: float, ending: float, progress: Progress
) -> float:
    """Say how long the epochs may take, with seconds `spent` before them and `ending` after."""
    budget = 60 * budget_minutes
    rest = budget - spent - MARGIN * ending
    least = LEAST_SHARE * budget
    if rest >= least:
        told = f"{spent:.0f} s used so far, {rest:.0f} s to train"
        after = f"about {ending:.0f} s to choose the threshold and to score"
        progress.say(Detail(f"budget {budget_minutes:g} min: {told}, {after}"))
        return rest
    progress.say(
        f"the budget of {budget_minutes:g} min can't be kept: reading took {spent:.0f} s and the "
        f"scores will take about {ending:.0f} s; training for {least:.0f} s all the same"
    )
    return least


def expected_seconds(recipe: Recipe, facts: Fingerprint, machine: Machine) -> float:
    """Say how long a run will take: its budget, if that can be kept, or what all its parts need."""
    height, width = int(facts.height[1]), int(facts.width[1])
    inputs, judged = _inputs_an_epoch(recipe, facts)
    epochs, size = recipe.train.epochs, recipe.input.size
    num_steps = epochs * math.ceil(inputs / recipe.train.batch_size)
    trained = inputs * sum(recipe.training_size(epoch) ** 2 for epoch in range(epochs))
    tiles = geometry.plan(height, width, recipe.preprocessing())
    num_predicted = num_predictions(recipe, facts.num_val, facts.num_train)
    predicted = num_predicted * sum(one.height * one.width for one in tiles)

    def computing(pixels: float, starts: float) -> float:
        per_step = machine.seconds_per_step.get(recipe.model.name, 0.0)
        return machine.seconds_per_megapixel[recipe.model.name] * pixels / 1e6 + per_step * starts

    reading = DECODING * (facts.num_train + facts.num_val)
    own = (reading + MEASURING * facts.num_val) * height * width / 1e6
    scoring = computing(PREDICTING * predicted, STARTING * num_predicted * len(tiles))
    copies = COPIES * (facts.num_train + facts.num_val)
    around = OPENING + copies + own + scoring + EXPECTED_CLOSING
    if recipe.train.budget_minutes is not None:
        budget = 60 * recipe.train.budget_minutes
        return max(budget, around + LEAST_SHARE * budget)
    validated = VALIDATING * epochs * judged * size**2
    return around + computing(trained + validated, num_steps)


def _inputs_an_epoch(recipe: Recipe, facts: Fingerprint) -> tuple[int, int]:
    height, width = int(facts.height[1]), int(facts.width[1])
    shape = recipe.preprocessing().as_trained()
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


def num_predictions(recipe: Recipe, num: int, num_train: int) -> int:
    """Count the inputs that a run's end predicts: for threshold, scores, report, card and tta."""
    lessons = min(num, MOST) + min(num_train, max(0, NUM_USUAL - num))
    asked = recipe.train.tta
    times = TTA_PASSES[allowed_tta(recipe) if asked == "tune" else asked]
    tried = (1 + times) * min(num, NUM_TRIED) if asked == "tune" and times > 1 else 0
    passes = 1 + (recipe.train.threshold == "tune")
    return tried + times * (passes * num + min(num, NUM_IMAGES) + lessons)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Seconds of a run's end on this machine: for each of `num` validation images, and to close."""

    num: int
    num_train: int
    predicting: float
    measuring: float
    cleaning: float
    closing: float

    def seconds(self, recipe: Recipe) -> float:
        """Return the time for tta, threshold, post-processing, scores and report."""
        cleaned = self.cleaning if recipe.train.postprocess == "tune" else 0.0
        predicted = num_predictions(recipe, self.num, self.num_train) * self.predicting
        if recipe.model.start_from:  # it is scored, too, with as much tta as the new one may get
            predicted += TTA_PASSES[allowed_tta(recipe)] * self.num * self.predicting
            cleaned += self.measuring
        return predicted + self.num * (self.measuring + cleaned) + self.closing


def time_ending(judge: Predictor, dataset: Dataset, *, is_trained: bool) -> Ending:
    """Predict and score a few validation images on trial; an untrained network lends no masks."""
    val, num_train = dataset.only("val"), len(dataset.only("train").records)
    chosen = spread(val.records, NUM_TIMED)
    samples = [read_sample(record, val.rule) for record in chosen]
    judge.predict(samples[0].image_HWC)  # the first prediction of a network pays for its set-up
    predicting = measuring = cleaning = cleaning_alone = 0.0
    for record, sample in zip(chosen, samples, strict=True):
        start = time.perf_counter()
        read_sample(record, val.rule)
        probability_HW = judge.predict(sample.image_HWC).probability
        predicted = time.perf_counter()
        assert sample.mask_HW is not None
        # An untrained network's masks are noise, whose specks take longer than any later ones.
        mask_HW = probability_HW > 0.5 if is_trained else sample.mask_HW
        _measure(sample, probability_HW, mask_HW)
        measured, working = time.perf_counter(), time.thread_time()
        for _ in range(NUM_CORRECTIONS):
            clean(mask_HW, PostProcessing(min_area=2))
        cleaning_alone += time.thread_time() - working
        cleaning += time.perf_counter() - measured
        measuring += measured - predicted
        predicting += predicted - start
    # One thread cleans: what it waited for a core tells how busy the machine is.
    busy = min(MOST_BUSY, max(1.0, cleaning / max(cleaning_alone, 1e-9)))
    num = len(chosen)
    return Ending(
        num=len(val.records),
        num_train=num_train,
        predicting=predicting / num,
        measuring=measuring / num,
        cleaning=cleaning / num,
        closing=CLOSING * busy,
    )


def within_time(recipe: Recipe, ending: Ending, left: float, progress: Progress) -> Recipe:
    """Give up the trials of a run's end that `left` seconds are too few for, those of tta first."""
    for field, label in (("tta", "tta"), ("postprocess", "post-processing")):
        needed = ending.seconds(recipe)
        if needed > left and getattr(recipe.train, field) == "tune":
            progress.say(
                f"{label}: not tried, since the scores would take {needed:.0f} s and the budget "
                f"leaves {max(0.0, left):.0f} s"
            )
            changed = recipe.train.model_copy(update={field: "none"})
            recipe = recipe.model_copy(update={"train": changed})
    return recipe


def _measure(sample: Sample, probability_HW: np.ndarray, mask_HW: np.ndarray) -> None:
    """Do what choosing the threshold and scoring do with one prediction."""
    assert sample.mask_HW is not None
    truth_HW, valid_HW = sample.mask_HW, sample.valid_HW
    metrics.LogitTally().add(probability_HW, truth_HW, valid_HW)
    metrics.measure_reliability(probability_HW, truth_HW, valid_HW)
    metrics.ProbabilityTally().add(probability_HW, truth_HW, valid_HW)
    metrics.measure_reliability(probability_HW, truth_HW, valid_HW)
    metrics.measure_outline(mask_HW, truth_HW, valid_HW, rule=metrics.OutlineRule())
    metrics.count_objects(mask_HW, truth_HW, valid_HW)


Candidates = Mapping[str, Mapping[str, object]]
"""Networks, with what a recipe says of them beside their name; the first is always measured."""
_UNET = {"unet": {"options": dict(THICK_OPTIONS)}}
FROM_SCRATCH: Candidates = MappingProxyType({"unet-compact": {}, "unet-small": {}, **_UNET})
"""Networks that the rules choose from where no ImageNet weights are at hand, or none are wanted."""
FROM_IMAGENET: Candidates = MappingProxyType(
    {PRETRAINED: {"options": dict(PRETRAINED_OPTIONS)}, **_UNET}
)
LARGE = "resnet34-unet"  # likewise, on a GPU


class Trial(NamedTuple):
    """A step that is timed."""

    size: int
    batch: int

    @property
    def megapixels(self) -> float:
        """Millions of pixels in its inputs."""
        return self.batch * self.size**2 / 1e6


class Cost(NamedTuple):
    """Seconds of a step: a fixed part, and one that grows with its pixels."""

    step: float  # seconds, however few pixels it has
    megapixel: float  # seconds that each further million pixels adds

    def of(self, trial: Trial) -> float:
        """Seconds for a step."""
        return self.step + self.megapixel * trial.megapixels


SMALL, USUAL, QUICK = Trial(64, 2), Trial(192, 4), Trial(128, 4)
NUM_STEPS = 3
MEMORY_SIZE = 96  # Side in pixels of the inputs that tell the memory, which grows by pixels
MEGAPIXEL_OF_SMALL = 28.0
"""Seconds of a million pixels for each second of a small step; taken where that one took all the
time there is for measuring."""
LIMIT = 10.0  # Seconds that measuring may take; the rest is reckoned from the first network
TRIAL_SHARE = 0.03  # likewise of the budget
RELATIVE: Mapping[str, float] = MappingProxyType(
    {"unet-compact": 1.0, "unet-small": 1.6, "unet": 2.1, PRETRAINED: 2.6, LARGE: 5.2}
)
"""Seconds a pixel of the candidates, as measured on two cores that compute in bf16."""
SHORT = 180.0  # seconds of a budget below which the machine is measured in haste


def measure_machine(
    asked: Recipe,
    given: Mapping[str, object],
    budget: float | None,
    progress: Progress,
    *,
    from_scratch: bool = False,
    settled: bool = False,
) -> Machine:
    """Time a few steps of the networks in question; images needn't be real for that.

    `asked` has device, precision, loss and network, `given` the dotted keys of the choices;
    the plan begins `from_scratch` unless the user asks for weights. Where `asked` is `settled`,
    nothing is left to plan, and the steps are its own.
    """
    started = time.perf_counter()
    device = devices.resolve_device(asked.train.device)
    precision = devices.resolve_precision(asked.train.precision, device, SILENT)
    pretrained = frozenset(  # whose ImageNet weights need no download
        encoder
        for (encoder, name), weights in WEIGHTS.items()
        if name == "imagenet" and weights_path(weights) is not None
    )
    at_hand = frozenset[str]() if from_scratch else pretrained
    candidates = _candidates(asked, given, at_hand, is_gpu=device.type == "cuda")
    reference = next(iter(candidates))
    usual = USUAL if budget is None or budget > SHORT else QUICK
    if settled:
        usual = Trial(asked.input.size, min(USUAL.batch, asked.train.batch_size))
    limit = LIMIT if budget is None else min(LIMIT, TRIAL_SHARE * budget)
    trial = _settled_trial if settled else _trial_recipe
    costs: dict[str, Cost] = {}
    memory: dict[str, float] = {}
    with progress.task("measuring the machine", total=len(candidates)) as task:
        for name, spec in candidates.items():
            model_spec = {"name": name, **spec, "encoder_weights": None, "start_from": None}
            recipes = {one: trial(asked, model_spec, one) for one in (SMALL, usual)}
            model, bf16 = build_model(recipes[usual]), precision == "bf16"
            estimate = devices.estimate_memory(model, recipes[usual], size=MEMORY_SIZE, bf16=bf16)
            memory[name] = estimate.per_input / (MEMORY_SIZE**2 / 1e6)
            left = limit - (time.perf_counter() - started)
            relative = RELATIVE.get(name, 1) / RELATIVE.get(reference, 1)
            known = costs.get(reference)
            guess = known and Cost(known.step, known.megapixel * relative)
            num_steps = WARM_UP + NUM_STEPS
            if guess and num_steps * (guess.of(SMALL) + guess.of(usual)) > left:
                costs[name] = guess
            else:
                place = partial(Steps, model, device=device, precision=precision)
                costs[name] = _cost(place, recipes, seconds=left)
            task.advance()
    return Machine(
        device=device.type,
        cores=torch.get_num_threads() if device.type == "cpu" else os.cpu_count() or 1,
        seconds_per_megapixel={name: cost.megapixel for name, cost in costs.items()},
        seconds_per_step={name: cost.step for name, cost in costs.items()},
        free_bytes=devices.available_memory(device),
        bytes_per_megapixel=memory,
        pretrained=pretrained,
    )


def _candidates(
    asked: Recipe, given: Mapping[str, object], pretrained: frozenset[str], *, is_gpu: bool
) -> Candidates:
    if "model.name" in given:
        return {asked.model.name: {"name": "", **asked.model.model_dump()}}
    wanted = given.get("model.encoder_weights", "imagenet")
    is_asked = "model.encoder_weights" in given and wanted == "imagenet"
    if wanted is None or not (is_asked or MODELS[PRETRAINED].encoder in pretrained):
        return {**FROM_SCRATCH, LARGE: {}} if is_gpu else FROM_SCRATCH
    has_large = is_gpu and MODELS[LARGE].encoder in pretrained
    return {**FROM_IMAGENET, LARGE: {}} if has_large else FROM_IMAGENET


def _cost(
    place: Callable[[Recipe, PixelCache], Steps], recipes: Mapping[Trial, Recipe], *, seconds: float
) -> Cost:
    """Draw the line through the two trials; without time for the second, through the first."""
    started = time.perf_counter()
    taken: list[float] = []
    for trial, recipe in recipes.items():
        if taken and time.perf_counter() - started > seconds:
            return Cost(taken[0], MEGAPIXEL_OF_SMALL * taken[0])
        taken.append(time_steps(place(recipe, _pixels(trial)), NUM_STEPS)[0])
    small, large = taken
    low, high = (trial.megapixels for trial in recipes)
    if large <= small:  # so fast, or so busy, that more pixels don't show
        return Cost(0.0, large / high)
    each = (large - small) / (high - low)
    return Cost(max(0.0, small - each * low), each)


def _trial_recipe(asked: Recipe, model: Mapping[str, object], trial: Trial) -> Recipe:
    """Steps as the plan's will be: its usual augmentation."""
    return load_recipe(
        sections={
            "input": {"size": trial.size, "channels": 3},
            "model": model,
            "augment": {"preset": "medium", "orientation": "any"},
            "loss": asked.loss.model_dump(),
            "train": {"batch_size": trial.batch},
        }
    )


def _settled_trial(asked: Recipe, model: Mapping[str, object], trial: Trial) -> Recipe:
    """Steps as the recipe has them, but for their size."""
    sections = {
        name: getattr(asked, name).model_dump() for name in ("augment", "loss", "optimizer")
    }
    return load_recipe(
        sections={
            **sections,
            "input": {"size": trial.size, "channels": 3},
            "model": model,
            "train": {"batch_size": trial.batch},
        }
    )


def _pixels(trial: Trial) -> PixelCache:
    random = np.random.default_rng(0)
    shape = (2 * trial.batch, trial.size, trial.size)
    return PixelCache(
        inputs_NHWC=random.integers(0, 256, (*shape, 3), dtype=np.uint8),
        targets_NHW=random.integers(0, 2, shape, dtype=np.uint8),
        record_of_N=np.arange(shape[0]),
    )
