"""Profile training steps on this machine, and find the batch size and rate that suit a recipe."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from binseg.config import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import ImageCache, open_training_pixels
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.errors import UsageError
from binseg.models import build_model, num_parameters
from binseg.progress import SILENT, Progress
from binseg.report.plots import plot_rates
from binseg.training.batches import build_batches
from binseg.training.devices import (
    MemoryEstimate,
    available_memory,
    estimate_memory,
    resolve_device,
    resolve_precision,
)
from binseg.training.measuring import (
    BatchTrial,
    RateTrial,
    StepProfile,
    find_batch_size,
    find_learning_rate,
    profile_steps,
    suggested_rate,
)


@dataclass(frozen=True, kw_only=True)
class TrainingBench:
    """The measurements of a training benchmark."""

    model: str
    num_parameters: int
    device: str
    precision: str
    threads: int
    num_train: int
    """Training images of the whole data set."""
    epoch_inputs: int
    """Inputs in an epoch: the images, or what is cut from them."""
    memory: MemoryEstimate
    available: int | None
    """Free bytes before the measurement."""
    profile: StepProfile
    batches: tuple[BatchTrial, ...] = ()
    rates: tuple[RateTrial, ...] = ()
    curve: Path | None = None
    """The image of the learning-rate test."""

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch over the whole training split, validation left out."""
        return self.epoch_inputs / self.profile.inputs_per_second

    @property
    def batch_size(self) -> int | None:
        """The batch size that was found."""
        return self.batches[-1].batch_size if self.batches else None

    @property
    def lr(self) -> float | None:
        """The peak learning rate that was found."""
        return suggested_rate(self.rates)

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "model": self.model,
            "num_parameters": self.num_parameters,
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "memory_bytes": self.memory.total,
            "available_bytes": self.available,
            "seconds": self.profile.seconds,
            "inputs_per_second": self.profile.inputs_per_second,
            "data_share": self.profile.data_share,
            "epoch_seconds": self.epoch_seconds,
            "operations": [dataclasses.asdict(one) for one in self.profile.operations],
            "batches": [dataclasses.asdict(one) for one in self.batches],
            "batch_size": self.batch_size,
            "rates": [dataclasses.asdict(one) for one in self.rates],
            "lr": self.lr,
        }


def bench_training(
    recipe: Recipe,
    *,
    num_steps: int = 10,
    operations: bool = False,
    find_batch: bool = False,
    find_lr: bool = False,
    curve: Path | None = None,
    progress: Progress = SILENT,
) -> TrainingBench:
    """Measure a recipe's training steps on real images; nothing is kept of the training.

    Args:
        recipe: what would be trained.
        num_steps: steps to measure.
        operations: name torch's operations that take most time too.
        find_batch: double the batch size while that pays.
        find_lr: run a learning-rate range test of 100 steps.
        curve: where that test's image goes.
        progress: told how far it is.

    Raises:
        UsageError: no data, unknown names.
        DataError: images that can't be read.
        TrainingError: not even two inputs fit into the memory.
    """
    if recipe.data.path is None:
        raise UsageError("which images? Give --data PATH (or `synthetic`), or data.path")
    device = resolve_device(recipe.train.device)
    precision = resolve_precision(recipe.train.precision, device, progress)
    bf16 = precision == "bf16"
    dataset = open_dataset(recipe.data, progress=progress)
    dataset = assign_splits(dataset, recipe.data.split).with_truth()
    records = dataset.of_split("train")
    # Time depends on sizes alone: a few batches of images are as good as all of them.
    wanted = max(256 if find_batch or find_lr else 0, 2 * recipe.train.batch_size)
    some = records[:: max(1, len(records) // wanted)][:wanted]
    cache = open_training_pixels(some, dataset.rule, recipe, progress=progress)

    def build() -> nn.Module:
        return build_model(recipe).to(device)

    model = build()
    free = available_memory(device)
    memory = estimate_memory(model, recipe, bf16=bf16)
    profile = profile_steps(
        model,
        recipe,
        cache,
        device=device,
        bf16=bf16,
        num_steps=num_steps,
        operations=operations,
        progress=progress,
    )
    batches: list[BatchTrial] = []
    if find_batch:
        batches = find_batch_size(build, recipe, cache, device=device, bf16=bf16, progress=progress)
    rates: list[RateTrial] = []
    if find_lr:
        rates = find_learning_rate(
            build(), recipe, cache, device=device, bf16=bf16, progress=progress
        )
    if rates and curve is not None:
        plot_rates(
            [one.lr for one in rates],
            [one.loss for one in rates],
            curve,
            suggested=suggested_rate(rates),
        )
    return TrainingBench(
        model=recipe.model.name,
        num_parameters=num_parameters(model),
        device=str(device),
        precision=precision,
        threads=torch.get_num_threads(),
        num_train=len(records),
        epoch_inputs=_epoch_inputs(recipe, cache, device, share=len(some) / len(records)),
        memory=memory,
        available=free,
        profile=profile,
        batches=tuple(batches),
        rates=tuple(rates),
        curve=curve if rates else None,
    )


def _epoch_inputs(
    recipe: Recipe, cache: PixelCache | ImageCache, device: torch.device, *, share: float
) -> int:
    """Count an epoch's inputs from a part of the images."""
    if recipe.draws_patches:
        if recipe.patches.per_epoch != "auto":
            return int(recipe.patches.per_epoch)
        of_part = len(build_batches(cache, recipe, device=device)) * recipe.train.batch_size
        return round(of_part / share)
    if recipe.train.per_epoch != "all":
        return int(recipe.train.per_epoch)
    return round(len(cache) / share)
