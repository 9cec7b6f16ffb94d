"""Measure training steps on this machine, and find the batch size and rate that suit a recipe.

The steps are those of `TrainingStep`, on real images; only the loop around them is missing.
"""

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.profiler import profile, record_function

from binseg.config import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import ImageCache, open_training_pixels
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.errors import TrainingError
from binseg.models import build_model, num_parameters
from binseg.progress import SILENT, Progress, track
from binseg.report.plots import plot_rates
from binseg.training import devices
from binseg.training.batches import build_batches
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
DIVERGED = 4.0  # the rate test ends where the smoothed loss is so many times its least
SMOOTHING = 0.9
QUARTER = 0.25


class StepProfile(NamedTuple):
    """The time that each phase of a training step takes: medians, in seconds."""

    seconds: dict[str, float]
    num_inputs: int  # in a step
    operations: list[dict[str, Any]]  # Torch's slowest: name, share, calls in a step

    @property
    def inputs_per_second(self) -> float:
        """Throughput of training alone, validation left out."""
        return self.num_inputs / sum(self.seconds.values())


class BatchTrial(NamedTuple):
    """One batch size that was tried, with the bytes that it is estimated to take."""

    batch_size: int
    seconds_per_input: float
    memory: int


class RateTrial(NamedTuple):
    """One step of a learning-rate range test, with its smoothed loss."""

    lr: float
    loss: float


def bench_training(
    recipe: Recipe,
    *,
    num_steps: int = 10,
    operations: bool = False,
    find_batch: bool = False,
    find_lr: bool = False,
    curve: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a recipe's training steps on real images, as plain data; nothing else is kept.

    `operations` names torch's slowest, `find_batch` doubles the batch while that pays, `find_lr`
    runs a range test, drawn into `curve`; `batch_size` and `lr` are what was found, or None. Raises
    UsageError, DataError and TrainingError (not even two inputs fit into the memory).
    """
    device = devices.resolve_device(recipe.train.device)
    precision = devices.resolve_precision(recipe.train.precision, device, progress)
    dataset = open_dataset(recipe.data, progress=progress)
    dataset = assign_splits(dataset, recipe.data.split).with_truth()
    records = dataset.of_split("train")
    # Time depends on sizes alone: a few batches of images are as good as all of them.
    wanted = max(256 if find_batch or find_lr else 0, 2 * recipe.train.batch_size)
    some = records[:: max(1, len(records) // wanted)][:wanted]
    cache = open_training_pixels(some, dataset.rule, recipe, progress=progress)

    def place(asked: Recipe = recipe) -> Steps:
        return Steps(build_model(asked), asked, cache, device=device, precision=precision)

    available, first = devices.available_memory(device), place()
    memory = devices.estimate_memory(first.model, recipe, bf16=precision != "fp32")
    steps = profile_steps(first, num_steps, progress=progress)
    num = len(cache) if find_batch else 0
    batches = find_batch_size(place, recipe, num=num, progress=progress) if num else []
    rates = find_learning_rate(place(), progress=progress) if find_lr else []
    lr = suggested_rate(rates)
    if rates and curve is not None:
        plot_rates([one.lr for one in rates], [one.loss for one in rates], curve, suggested=lr)
    epoch_inputs = _epoch_inputs(recipe, cache, device, share=len(some) / len(records))
    return {
        "model": recipe.model.name,
        "num_parameters": num_parameters(first.model),
        "device": str(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "num_inputs": steps.num_inputs,
        "num_train": len(records),
        "memory_bytes": memory.total,
        "available_bytes": available,
        "seconds": steps.seconds,
        "inputs_per_second": steps.inputs_per_second,
        "data_share": steps.seconds["load"] / sum(steps.seconds.values()),
        "epoch_seconds": epoch_inputs / steps.inputs_per_second,
        "operations": steps.operations if operations else [],
        "batches": [one._asdict() for one in batches],
        "batch_size": batches[-1].batch_size if batches else None,
        "rates": [one._asdict() for one in rates],
        "lr": lr,
    }


def _epoch_inputs(
    recipe: Recipe, cache: PixelCache | ImageCache, device: torch.device, *, share: float
) -> int:
    if recipe.draws_patches:
        if recipe.patches.per_epoch != "auto":
            return int(recipe.patches.per_epoch)
        of_part = len(build_batches(cache, recipe, device=device)) * recipe.train.batch_size
        return round(of_part / share)
    if recipe.train.per_epoch != "all":
        return int(recipe.train.per_epoch)
    return round(len(cache) / share)


class Steps:
    """A network with its optimiser that takes a recipe's steps; its weights change."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        cache: PixelCache | ImageCache,
        *,
        device: torch.device,
        precision: Literal["bf16", "fp16", "fp32"],
    ) -> None:
        # Steps of the full size, which are what memory and most of the time go by.
        plain = recipe.train.model_copy(update={"workers": 0, "progressive": {}})
        recipe = recipe.model_copy(update={"train": plain})
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.device, self.precision = model, device, precision
        self._step = step = TrainingStep(model, recipe, device=device, precision=precision)
        step.phase = self._phase = partial(_phase, device)
        self.optimizer = build_optimizer(step.learner, recipe.optimizer, encoder=step.encoder)
        step.freeze(epoch=0)
        batches = build_batches(cache, recipe, device=device, context=step.augment.context)
        self._batches = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))

    def take(self) -> tuple[float, int]:
        """Take one step; give the loss and the number of inputs."""
        with self._phase("load"):
            batch = next(self._batches)
        try:
            loss = self._step.learn(batch, epoch=0)
        except RuntimeError as problem:
            if devices.is_of_compiler(problem):
                raise TrainingError(devices.COMPILE_ADVICE) from None
            raise
        with self._phase("update"):
            self._step.clip()
            self.optimizer.step()
        return float(loss), len(batch.inputs_BHWC)


@contextmanager
def _phase(device: torch.device, name: str) -> Iterator[None]:
    """Name a part of a step in a profile; a GPU is waited for, so that the time is its own."""
    with record_function(f"binseg {name}"):
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def time_steps(steps: Steps, num_steps: int) -> tuple[float, float]:
    """Give the medians of the seconds, and of the inputs, of so many steps, warmed up."""
    for _ in range(WARM_UP):
        steps.take()
    marks, num_inputs = [time.perf_counter()], []
    for _ in range(num_steps):
        num_inputs.append(steps.take()[1])
        marks.append(time.perf_counter())
    seconds = (end - start for start, end in itertools.pairwise(marks))
    return statistics.median(seconds), statistics.median(num_inputs)


def profile_steps(steps: Steps, num_steps: int, *, progress: Progress = SILENT) -> StepProfile:
    """Say by torch's profiler where the time of so many steps goes, warmed up."""
    for _ in range(WARM_UP):
        steps.take()
    rounds = track(range(num_steps), progress=progress, label="measuring steps", total=num_steps)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines of its own to stderr
    with profile() as profiler:
        num_inputs = [steps.take()[1] for _ in rounds]
    seconds = {
        name: statistics.median(
            event.cpu_time_total / 1e6
            for event in profiler.events() or ()
            if event.name == f"binseg {name}" and event.cpu_time_total
        )
        for name in PHASES
    }
    kind = f"self_{'cpu' if steps.device.type == 'cpu' else 'device'}_time_total"
    rows = [row for row in profiler.key_averages() if not row.key.startswith("binseg ")]
    rows.sort(key=lambda row: getattr(row, kind), reverse=True)
    total = sum(getattr(row, kind) for row in rows) or 1.0
    shares = [(one, getattr(one, kind) / total) for one in rows[:SHOWN_OPERATIONS]]
    operations = [
        {"name": one.key, "share": share, "calls": round(one.count / num_steps)}
        for one, share in shares
    ]
    # As of the times: of most steps, not of an epoch's smaller last one.
    return StepProfile(seconds, round(statistics.median(num_inputs)), operations)


def find_batch_size(
    place: Callable[[Recipe], Steps],
    recipe: Recipe,
    *,
    num: int,
    num_steps: int = 3,
    progress: Progress = SILENT,
) -> list[BatchTrial]:
    """Double the batch while that pays and memory allows; the best trial comes last."""
    trials: list[BatchTrial] = []
    size, free = 2, devices.available_memory(devices.resolve_device(recipe.train.device))
    while size <= max(2, num):
        train = recipe.train.model_copy(update={"batch_size": size})
        asked = recipe.model_copy(update={"train": train})
        try:
            steps = place(asked)
            is_mixed = steps.precision != "fp32"
            memory = devices.estimate_memory(steps.model, asked, bf16=is_mixed).total
            if free is not None and memory > MEMORY_SHARE * free:
                break
            seconds, num_inputs = time_steps(steps, num_steps)
        except torch.OutOfMemoryError:
            break
        each = seconds / num_inputs
        progress.say(f"batch {size}: {1 / each:.1f} inputs a second")
        if trials and each > GAIN * trials[-1].seconds_per_input:
            break
        trials.append(BatchTrial(batch_size=size, seconds_per_input=each, memory=memory))
        size *= 2
    if not trials:
        raise TrainingError(
            f"not even a batch of 2 inputs of {recipe.input.size}x{recipe.input.size} fits into "
            "the free memory; lower input.size or take a smaller model"
        )
    return trials


def find_learning_rate(
    steps: Steps, num_steps: int = 100, *, progress: Progress = SILENT
) -> list[RateTrial]:
    """Raise the learning rate from 1e-6 to 1 until the loss diverges (arXiv 1506.01186)."""
    rates = [group["lr"] for group in steps.optimizer.param_groups]
    trials: list[RateTrial] = []
    average, least = 0.0, math.inf
    growth = (HIGHEST_RATE / LOWEST_RATE) ** (1 / max(1, num_steps - 1))
    label, rounds = "raising the rate", range(num_steps)
    for step in track(rounds, progress=progress, label=label, total=num_steps):
        lr = LOWEST_RATE * growth**step
        for group, rate in zip(steps.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * rate / rates[0]
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
    """Give the rate at which a quarter of the loss's whole fall is reached; None where it is flat.

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
