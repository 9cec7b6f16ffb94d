"""Measure how fast this machine trains: a few real steps, in seconds rather than minutes.

Steps of two sizes tell what a step costs however small it is, and what each pixel adds: from 64x64
to 256x256 and from 2 to 16 inputs that is within a tenth of what is measured.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from binseg.autoconfig import PRETRAINED, PRETRAINED_OPTIONS, THICK_OPTIONS, Machine
from binseg.config import Recipe, load_recipe
from binseg.config.named_models import MODELS, WEIGHTS
from binseg.data.cache import PixelCache
from binseg.models import build_model, weights_path
from binseg.pipelines.bench_training import WARM_UP, Steps, time_steps
from binseg.progress import SILENT, Progress
from binseg.training.devices import (
    available_memory,
    estimate_memory,
    resolve_device,
    resolve_precision,
)

Candidates = Mapping[str, Mapping[str, object]]
"""Networks, with what a recipe says of them beside their name; the first is always measured."""
_UNET = {"unet": {"options": dict(THICK_OPTIONS)}}
FROM_SCRATCH: Candidates = MappingProxyType({"unet-compact": {}, "unet-small": {}, **_UNET})
"""Networks that the rules choose from where no ImageNet weights are at hand, or none are wanted."""
FROM_IMAGENET: Candidates = MappingProxyType(
    {PRETRAINED: {"options": dict(PRETRAINED_OPTIONS)}, **_UNET}
)
LARGE = "resnet34-unet"
"""Likewise, on a GPU."""


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

    step: float
    """Seconds, however few pixels it has."""
    megapixel: float
    """Seconds that each further million pixels adds."""

    def of(self, trial: Trial) -> float:
        """Seconds for a step."""
        return self.step + self.megapixel * trial.megapixels


SMALL, USUAL, QUICK = Trial(64, 2), Trial(192, 4), Trial(128, 4)
NUM_STEPS = 3
MEMORY_SIZE = 96
"""Side in pixels of the inputs that tell the memory, which grows with the number of pixels."""
MEGAPIXEL_OF_SMALL = 28.0
"""Seconds of a million pixels for each second of a small step; told so where that one took all the
time there is for measuring."""
LIMIT = 10.0
"""Seconds that measuring may take; a network that doesn't fit any more is told from the first."""
TRIAL_SHARE = 0.03
"""Likewise of the budget."""
RELATIVE: Mapping[str, float] = MappingProxyType(
    {"unet-compact": 1.0, "unet-small": 1.6, "unet": 2.1, PRETRAINED: 2.6, LARGE: 5.2}
)
"""Seconds a pixel of the candidates, as measured on two cores that compute in bf16."""
SHORT = 180.0
"""Seconds of a budget below which the machine is measured in haste."""


def measure_machine(
    asked: Recipe,
    given: Mapping[str, object],
    budget: float | None,
    progress: Progress,
    *,
    from_scratch: bool = False,
) -> Machine:
    """Time a few steps of the networks in question; images needn't be real for that.

    `asked` has device, precision, loss and network as the user chose them, `given` the dotted keys
    of the choices; the plan will begin `from_scratch`, unless the user asks for weights.
    """
    started = time.perf_counter()
    device = resolve_device(asked.train.device)
    precision = resolve_precision(asked.train.precision, device, SILENT)
    pretrained = frozenset(  # whose ImageNet weights need no download
        encoder
        for (encoder, name), weights in WEIGHTS.items()
        if name == "imagenet" and weights_path(weights) is not None
    )
    at_hand = frozenset[str]() if from_scratch else pretrained
    candidates = _candidates(asked, given, at_hand, is_gpu=device.type == "cuda")
    reference = next(iter(candidates))
    usual = USUAL if budget is None or budget > SHORT else QUICK
    limit = LIMIT if budget is None else min(LIMIT, TRIAL_SHARE * budget)
    costs: dict[str, Cost] = {}
    memory: dict[str, float] = {}
    with progress.task("measuring the machine", total=len(candidates)) as task:
        for name, spec in candidates.items():
            model_spec = {"name": name, **spec, "encoder_weights": None, "start_from": None}
            recipes = {one: _trial_recipe(asked, model_spec, one) for one in (SMALL, usual)}
            model, bf16 = build_model(recipes[usual]), precision == "bf16"
            estimate = estimate_memory(model, recipes[usual], size=MEMORY_SIZE, bf16=bf16)
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
                costs[name] = _measure(place, recipes, seconds=left)
            task.advance()
    return Machine(
        device=device.type,
        cores=torch.get_num_threads() if device.type == "cpu" else os.cpu_count() or 1,
        seconds_per_megapixel={name: cost.megapixel for name, cost in costs.items()},
        seconds_per_step={name: cost.step for name, cost in costs.items()},
        free_bytes=available_memory(device),
        bytes_per_megapixel=memory,
        pretrained=pretrained,
    )


def _candidates(
    asked: Recipe, given: Mapping[str, object], pretrained: frozenset[str], *, is_gpu: bool
) -> Candidates:
    """Choose the networks that the rules may take."""
    if "model.name" in given:
        return {asked.model.name: {"name": "", **asked.model.model_dump()}}
    wanted = given.get("model.encoder_weights", "imagenet")
    is_asked = "model.encoder_weights" in given and wanted == "imagenet"
    if wanted is None or not (is_asked or MODELS[PRETRAINED].encoder in pretrained):
        return {**FROM_SCRATCH, LARGE: {}} if is_gpu else FROM_SCRATCH
    has_large = is_gpu and MODELS[LARGE].encoder in pretrained
    return {**FROM_IMAGENET, LARGE: {}} if has_large else FROM_IMAGENET


def _measure(
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


def _pixels(trial: Trial) -> PixelCache:
    """Two batches of noise."""
    random = np.random.default_rng(0)
    shape = (2 * trial.batch, trial.size, trial.size)
    return PixelCache(
        inputs_NHWC=random.integers(0, 256, (*shape, 3), dtype=np.uint8),
        targets_NHW=random.integers(0, 2, shape, dtype=np.uint8),
        record_of_N=np.arange(shape[0]),
    )
