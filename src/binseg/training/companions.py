"""The leader's word before each step, and the process that follows it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.whole_images import ImageCache
from binseg.errors import TrainingError
from binseg.losses import build_loss
from binseg.progress import SILENT
from binseg.training.batches import Shares, build_batches
from binseg.training.compiling import compiled
from binseg.training.engine import build_trainer, quiet
from binseg.training.memory import check_memory
from binseg.training.module import SegmentationModule
from binseg.training.pace import Pace
from binseg.training.precision import resolve_device, resolve_precision
from binseg.training.supervision import supervised
from binseg.training.team import Team
from binseg.transforms.augmentation import build_augment

__all__ = ["Lead", "LeadClock", "follow", "leading"]


class LeadClock:
    """Seconds that stand still during a step, so that all processes take it at one rate."""

    def __init__(self) -> None:
        self._stopped: float | None = None

    def __call__(self) -> float:
        """Give the seconds."""
        return time.perf_counter() if self._stopped is None else self._stopped

    def stop(self) -> None:
        """Stand still at this moment."""
        self._stopped = time.perf_counter()

    def go_on(self) -> None:
        """Show the true time again."""
        self._stopped = None


class Lead(Callback):
    """Gives the leader's word before each epoch and step; to be called first of all callbacks."""

    def __init__(self, team: Team, pace: Pace, clock: LeadClock) -> None:
        self._team = team
        self._pace = pace
        self._clock = clock

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell how the schedule stands after the last validation."""
        del trainer
        assert isinstance(pl_module, SegmentationModule)
        assert pl_module.schedule is not None
        groups = pl_module.schedule.optimizer.param_groups
        self._say(schedule=pl_module.schedule.state_dict(), rates=[group["lr"] for group in groups])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell that there is a step to take."""
        del trainer, pl_module, batch, batch_idx
        self._say()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the time pass."""
        del trainer, pl_module, outputs, batch, batch_idx
        self._clock.go_on()

    def _say(self, **facts: Any) -> None:
        self._clock.stop()
        pace = self._pace.state_dict() if self._pace.is_timed else None
        self._team.tell({"go": True, "pace": pace, **facts})


@contextlib.contextmanager
def leading(team: Team) -> Iterator[None]:
    """Dismiss the other processes at the end, however it comes."""
    try:
        yield
    finally:
        if team.num > 1:
            # Where one of them has died, nobody hears it, and the reason is being told already.
            with contextlib.suppress(RuntimeError):
                team.tell({"go": False})


class _DismissedError(Exception):
    """Ends the training of a process whose leader has ended it."""


class _Follow(Callback):
    """Hears the leader's word before each epoch and step."""

    def __init__(self, team: Team, pace: Pace) -> None:
        self._team = team
        self._pace = pace

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the schedule."""
        del trainer
        assert isinstance(pl_module, SegmentationModule)
        assert pl_module.schedule is not None
        word = self._hear()
        pl_module.schedule.load_state_dict(word["schedule"])
        groups = pl_module.schedule.optimizer.param_groups
        for group, rate in zip(groups, word["rates"], strict=True):
            group["lr"] = rate

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Wait for the word to take a step."""
        del trainer, pl_module, batch, batch_idx
        self._hear()

    def _hear(self) -> dict[str, Any]:
        word: dict[str, Any] = self._team.tell()
        if not word["go"]:
            raise _DismissedError
        if word["pace"] is not None:
            self._pace.load_state_dict(word["pace"])
        return word


def follow(
    model: nn.Module,
    *,
    recipe: Recipe,
    train: PixelCache | ImageCache,
    team: Team,
    checkpoint: Path | None,
    seconds: float | None,
) -> None:
    """Take this process's share of every step until the leader ends the run.

    Args:
        model: built as the leader's.
        recipe: the leader's.
        train: what all learn from.
        team: the processes.
        checkpoint: where the run goes on from.
        seconds: of the run, where it has a budget.

    Raises:
        TrainingError: this process can't read the checkpoint, or has lost the leader.
    """
    if checkpoint is not None and not checkpoint.is_file():
        raise TrainingError(
            f"process {team.rank + 1} of {team.num} doesn't see {checkpoint}: to go on over "
            "several machines, the run's folder must be on a file system that all of them see"
        )
    device = resolve_device(recipe.train.device)
    precision = resolve_precision(recipe.train.precision, device, SILENT)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    memory = check_memory(
        model, recipe, bf16=precision == "bf16", place=team.place, progress=SILENT
    )
    augment = build_augment(recipe.augment)
    pace = Pace(recipe, seconds=seconds, clock=lambda: 0.0)  # the leader's word moves it
    batches = build_batches(
        train,
        recipe,
        device=device,
        context=augment.context,
        size_of=pace.training_size,
        shares=Shares(team.rank, team.num),
        reserve=memory.total,
    )
    learner, loss = supervised(model, build_loss(recipe.loss.name, recipe.loss.options), recipe)
    module = SegmentationModule(
        learner,
        recipe=recipe,
        loss=loss,
        augment=augment,
        batches=batches,
        progress=SILENT,
        pace=pace,
        team=team,
        forward=compiled(learner, asked=recipe.train.compile, device=device, progress=SILENT),
    )
    trainer = build_trainer(
        recipe,
        device=device,
        precision=precision,
        callbacks=[_Follow(team, pace)],
        loggers=[],
        max_epochs=-1 if pace.is_timed else recipe.train.epochs,
        team=team,
    )
    with quiet():
        try:
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            team.tell()  # the leader validates the last epoch, and then ends the run
        except _DismissedError:
            return
        except RuntimeError as problem:
            raise TrainingError(
                f"process {team.rank + 1} of {team.num} stopped: {str(problem).splitlines()[0]}"
            ) from None
