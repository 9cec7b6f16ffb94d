"""Measure training steps on this machine.

The steps are those of `TrainingStep`, on real images; only the loop around them is missing.
"""

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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
from binseg.training import devices
from binseg.training.batches import build_batches
from binseg.training.optim import build_optimizer
from binseg.training.step import TrainingStep

PHASES = ("load", "augment", "forward", "loss", "backward", "update")
"""The parts of a step, in order: the loader, random changes and normalisation on the device, the
network, the loss, its gradients, clipping and the optimiser."""
WARM_UP = 3
SHOWN_OPERATIONS = 12


class StepProfile(NamedTuple):
    """The time that each phase of a training step takes: medians, in seconds."""

    seconds: dict[str, float]
    num_inputs: int  # in a step
    operations: list[dict[str, Any]]  # Torch's slowest: name, share, calls in a step

    @property
    def inputs_per_second(self) -> float:
        """Throughput of training alone, validation left out."""
        return self.num_inputs / sum(self.seconds.values())


def bench_training(
    recipe: Recipe,
    *,
    num_steps: int = 10,
    operations: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a recipe's training steps on real images, as plain data; nothing else is kept.

    `operations` names torch's slowest. Raises UsageError, DataError and TrainingError.
    """
    device = devices.resolve_device(recipe.train.device)
    precision = devices.resolve_precision(recipe.train.precision, device, progress)
    dataset = open_dataset(recipe.data, progress=progress)
    dataset = assign_splits(dataset, recipe.data.split).with_truth()
    records = dataset.of_split("train")
    # Time depends on sizes alone: a few batches of images are as good as all of them.
    wanted = 2 * recipe.train.batch_size
    some = records[:: max(1, len(records) // wanted)][:wanted]
    cache = open_training_pixels(some, dataset.rule, recipe, progress=progress)

    available = devices.available_memory(device)
    first = Steps(build_model(recipe), recipe, cache, device=device, precision=precision)
    memory = devices.estimate_memory(first.model, recipe, bf16=precision != "fp32")
    steps = profile_steps(first, num_steps, progress=progress)
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
        self.optimizer = build_optimizer(step.model, recipe.optimizer, encoder=step.encoder)
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
