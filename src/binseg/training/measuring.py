"""A recipe's steps outside of a run: how long each part takes, which batch and which rate pay.

The steps are those of `TrainingStep`, on real images; only the loop around them is missing.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import ImageCache
from binseg.errors import TrainingError
from binseg.progress import SILENT, Progress, track
from binseg.training.batches import build_batches
from binseg.training.devices import (
    COMPILE_ADVICE,
    available_memory,
    estimate_memory,
    is_of_compiler,
)
from binseg.training.optim import build_optimizer
from binseg.training.step import TrainingStep

PHASES = ("load", "augment", "forward", "loss", "backward", "update")
"""The parts of a step, in order: the loader, random changes and normalisation on the device, the
network, the loss, its gradients, clipping and the optimiser."""
WARM_UP = 3
SHOWN_OPERATIONS = 12
GAIN = 0.97
"""A batch of twice the size must take less than this share of the time an input to be worth it."""
MEMORY_SHARE = 0.8
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
DIVERGED = 4.0
"""The rate test ends where the smoothed loss is so many times its least."""
SMOOTHING = 0.9
QUARTER = 0.25

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One of torch's operations in a profile."""

    name: str
    share: float
    """Share of the time of all operations."""
    calls: int
    """In a step."""


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """The time that each phase of a training step takes."""

    seconds: dict[str, float]
    """Median of each phase."""
    num_inputs: int
    """In a step."""
    operations: tuple[Operation, ...] = ()

    @property
    def step_seconds(self) -> float:
        """Seconds of a whole step."""
        return sum(self.seconds.values())

    @property
    def inputs_per_second(self) -> float:
        """Throughput of training alone, validation left out."""
        return self.num_inputs / self.step_seconds

    @property
    def data_share(self) -> float:
        """Share of a step that waits for the loader."""
        return self.seconds["load"] / self.step_seconds


@dataclass(frozen=True, kw_only=True)
class BatchTrial:
    """One batch size that was tried."""

    batch_size: int
    seconds_per_input: float
    memory: int
    """Estimated bytes."""


@dataclass(frozen=True, kw_only=True)
class RateTrial:
    """One step of a learning-rate range test."""

    lr: float
    loss: float
    """Smoothed."""


class _Steps:
    """One network with its optimiser, taking steps on cached images."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        cache: PixelCache | ImageCache,
        device: torch.device,
        *,
        bf16: bool,
    ) -> None:
        self.device = device
        # Steps of the full size, which are what memory and most of the time go by.
        plain = recipe.train.model_copy(update={"workers": 0, "progressive": {}})
        self._recipe = recipe = recipe.model_copy(update={"train": plain})
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._step = step = TrainingStep(model, recipe=recipe, device=device, bf16=bf16)
        self.optimizer = build_optimizer(step.learner, recipe.optimizer, encoder=step.encoder)
        step.freeze(epoch=0)
        batches = build_batches(cache, recipe, device=device, context=step.augment.context)
        self._source = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
        self.seconds: dict[str, list[float]] = {name: [] for name in PHASES}

    def take(self) -> tuple[float, int]:
        """Take one step; give the loss and the number of inputs."""
        step, timed = self._step, self._timed
        batch = timed("load", lambda: next(self._source))
        images, target, valid = timed("augment", lambda: step.prepare(batch, epoch=0))
        with step.autocast():
            try:
                logits = timed("forward", lambda: step.network(images))
            except RuntimeError as problem:
                if is_of_compiler(problem):
                    raise TrainingError(COMPILE_ADVICE) from None
                raise
            loss = timed("loss", lambda: step.loss(logits, target, valid))
        self.optimizer.zero_grad()  # as training does, just before
        timed("backward", loss.backward)
        timed("update", self._update)
        return float(loss.detach()), len(images)

    def _update(self) -> None:
        if self._recipe.train.gradient_clip > 0:
            nn.utils.clip_grad_norm_(
                self._step.learner.parameters(), self._recipe.train.gradient_clip
            )
        self.optimizer.step()

    def _timed(self, phase: str, action: Callable[[], T]) -> T:
        """Do something and note its time; a GPU is waited for, so that the time is its own."""
        start = time.perf_counter()
        with torch.profiler.record_function(f"binseg {phase}"):
            result = action()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase].append(time.perf_counter() - start)
        return result


def profile_steps(
    model: nn.Module,
    recipe: Recipe,
    cache: PixelCache | ImageCache,
    *,
    device: torch.device,
    bf16: bool,
    num_steps: int = 20,
    operations: bool = False,
    progress: Progress = SILENT,
) -> StepProfile:
    """Take training steps and say where their time goes; the model's weights change.

    Args:
        model: to be trained.
        recipe: batch, augmentation, loss and optimiser.
        cache: real images.
        device: to compute on.
        bf16: mixed precision, or float32.
        num_steps: to be measured, after three to warm up.
        operations: ask torch's profiler too, which costs some time itself.
        progress: hears of the steps.
    """
    steps = _Steps(model, recipe, cache, device, bf16=bf16)
    for _ in range(WARM_UP):
        steps.take()
    for taken in steps.seconds.values():
        taken.clear()
    taken_inputs = [
        steps.take()[1]
        for _ in track(
            range(num_steps), progress=progress, label="measuring steps", total=num_steps
        )
    ]
    seconds = {name: statistics.median(taken) for name, taken in steps.seconds.items()}
    found = _operations(steps, num_steps=min(num_steps, 5)) if operations else ()
    # As of the times: of most steps, not of an epoch's smaller last one.
    num_inputs = round(statistics.median(taken_inputs))
    return StepProfile(seconds=seconds, num_inputs=num_inputs, operations=found)


def _operations(steps: _Steps, *, num_steps: int) -> tuple[Operation, ...]:
    """The operations that take most time, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if steps.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(num_steps):
            steps.take()
    rows = [row for row in profile.key_averages() if not row.key.startswith("binseg ")]
    kind = "self_device_time_total" if steps.device.type == "cuda" else "self_cpu_time_total"
    total = sum(getattr(row, kind) for row in rows) or 1.0
    rows.sort(key=lambda row: getattr(row, kind), reverse=True)
    return tuple(
        Operation(
            name=row.key, share=getattr(row, kind) / total, calls=round(row.count / num_steps)
        )
        for row in rows[:SHOWN_OPERATIONS]
    )


def find_batch_size(
    build: Callable[[], nn.Module],
    recipe: Recipe,
    cache: PixelCache | ImageCache,
    *,
    device: torch.device,
    bf16: bool,
    num_steps: int = 3,
    progress: Progress = SILENT,
) -> list[BatchTrial]:
    """Double the batch while that pays and memory allows; the best trial comes last.

    Args:
        build: gives a fresh network for each trial.
        recipe: everything but the batch size.
        cache: real images; batches never hold more than there are.
        device: to compute on.
        bf16: mixed precision, or float32.
        num_steps: to be measured for each size.
        progress: hears of the trials.

    Raises:
        TrainingError: not even one input fits.
    """
    free = available_memory(device)
    trials: list[BatchTrial] = []
    size = 2
    while size <= max(2, len(cache)):
        asked = recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"batch_size": size})}
        )
        memory = estimate_memory(build(), asked, bf16=bf16)
        if free is not None and memory.total > MEMORY_SHARE * free:
            break
        try:
            profile = profile_steps(
                build(), asked, cache, device=device, bf16=bf16, num_steps=num_steps
            )
        except torch.OutOfMemoryError:
            break
        trial = BatchTrial(
            batch_size=size,
            seconds_per_input=1 / profile.inputs_per_second,
            memory=memory.total,
        )
        progress.say(f"batch {size}: {profile.inputs_per_second:.1f} inputs a second")
        if trials and trial.seconds_per_input > GAIN * trials[-1].seconds_per_input:
            break
        trials.append(trial)
        size *= 2
    if not trials:
        raise TrainingError(
            f"not even a batch of 2 inputs of {recipe.input.size}x{recipe.input.size} fits into "
            "the free memory; lower input.size or take a smaller model"
        )
    return trials


def find_learning_rate(
    model: nn.Module,
    recipe: Recipe,
    cache: PixelCache | ImageCache,
    *,
    device: torch.device,
    bf16: bool,
    num_steps: int = 100,
    progress: Progress = SILENT,
) -> list[RateTrial]:
    """Raise the learning rate from 1e-6 to 1, step by step, and note the loss (arXiv 1506.01186).

    The test ends where the loss diverges. The weights change.

    Raises:
        TrainingError: the first loss is not a number.
    """
    steps = _Steps(model, recipe, cache, device, bf16=bf16)
    shares = [group["lr"] / recipe.optimizer.lr for group in steps.optimizer.param_groups]
    trials: list[RateTrial] = []
    average, least = 0.0, math.inf
    growth = (HIGHEST_RATE / LOWEST_RATE) ** (1 / max(1, num_steps - 1))
    for step in track(
        range(num_steps), progress=progress, label="raising the rate", total=num_steps
    ):
        lr = LOWEST_RATE * growth**step
        for group, share in zip(steps.optimizer.param_groups, shares, strict=True):
            group["lr"] = lr * share
        loss, _ = steps.take()
        if not math.isfinite(loss):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smooth = average / (1 - SMOOTHING ** (step + 1))
        least = min(least, smooth)
        trials.append(RateTrial(lr=lr, loss=smooth))
        if smooth > DIVERGED * least:
            break
    if not trials:
        raise TrainingError(
            f"the loss is not finite at a rate of {LOWEST_RATE:g} already: look at images and "
            "masks (binseg check), or take --set train.precision=fp32"
        )
    return trials


def suggested_rate(trials: Sequence[RateTrial]) -> float | None:
    """The rate at which a quarter of the whole fall of the loss is reached; None where it is flat.

    The usual rules (a tenth of the rate of the least loss, the steepest fall) ask for a loss that
    diverges in the end, which Adam with normalised networks hardly does in a short test: they
    gave 0.03 to 0.1 where 0.001 trains best. This one stays at the beginning of the fall.
    """
    if not trials:
        return None
    first, least = trials[0].loss, min(trial.loss for trial in trials)
    if first - least <= 0.01 * first:
        return None
    return next(trial.lr for trial in trials if trial.loss <= first - QUARTER * (first - least))
