"""What happens around the steps: the watch, the bar, the stop; and after each epoch: the books."""

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from binseg import storage
from binseg.config.recipe import Recipe, TrainConfig
from binseg.errors import TrainingError
from binseg.progress import Progress, Task
from binseg.training.checkpoints import LAST
from binseg.training.module import SegmentationModule, diverged
from binseg.training.validation import ValidationScores

__all__ = ["BEST", "COLUMNS", "METRICS", "Books", "Watch", "read_best"]

BEST, METRICS = "best.safetensors", "metrics.csv"
COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_dice",
    "val_loss",
    "val_dice",
    "seconds",
    "data_share",
)


class Watch(Callback):
    """Times steps and waits, moves the progress bar, and stops between two steps when asked."""

    def __init__(self, task: Task, *, steps_per_epoch: int, stop_asked: Callable[[], bool]) -> None:
        self._task = task
        self._steps_per_epoch = steps_per_epoch
        self._stop_asked = stop_asked
        self._mark = 0.0
        self._epoch_start = 0.0
        self._waited = 0.0
        self._worked = 0.0

    @property
    def epoch_seconds(self) -> float:
        """Since this epoch's start."""
        return time.perf_counter() - self._epoch_start

    @property
    def data_share(self) -> float:
        """Share of the epoch's step time that was spent waiting for the loader."""
        return self._waited / max(self._waited + self._worked, 1e-9)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps of the epochs before a resume as done."""
        del pl_module
        self._task.advance(trainer.current_epoch * self._steps_per_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the watch."""
        del trainer, pl_module
        self._epoch_start = self._mark = time.perf_counter()
        self._waited = self._worked = 0.0

    def batch_arrived(self) -> None:
        """Note that the loader has given a batch; what follows is work, not waiting."""
        now = time.perf_counter()
        self._waited += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step, show its figures, and stop if that was asked."""
        del trainer, outputs, batch, batch_idx
        assert isinstance(pl_module, SegmentationModule)
        now = time.perf_counter()
        self._worked += now - self._mark
        self._mark = now
        self._task.advance(1, **pl_module.figures)
        if self._stop_asked():
            raise KeyboardInterrupt


class Books(Callback):
    """After each epoch: validate, keep the best weights, write the line and the checkpoint.

    The order matters to a run that is killed: the best weights are on disk before the checkpoint
    that counts them as such, and an epoch that is run again after a resume gives the same ones.

    Args:
        folder: of the run.
        recipe: what is trained.
        progress: hears one line an epoch.
        watch: knows the seconds.
        shipped: the network that is validated and kept (the average, where there is one).
        score: how it is validated.
    """

    def __init__(
        self,
        *,
        folder: Path,
        recipe: Recipe,
        progress: Progress,
        watch: Watch,
        shipped: nn.Module,
        score: Callable[[nn.Module], ValidationScores],
    ) -> None:
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self._folder = folder
        self._recipe = recipe
        self._progress = progress
        self._watch = watch
        self._shipped = shipped
        self._score = score

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of the epochs so far, and stay stopped if the run had stopped early."""
        del pl_module
        self._write_table()
        trainer.should_stop = self._is_hopeless()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the books of an epoch."""
        assert isinstance(pl_module, SegmentationModule)
        row = self._row(trainer.current_epoch + 1, pl_module)
        better = not self.history or is_better(
            row, self.history[self.best_epoch - 1], self._recipe.train
        )
        self.history.append(row)
        if better:
            self.best_epoch = len(self.history)
            _write_weights(self._folder / BEST, self._shipped)
        assert pl_module.schedule is not None
        pl_module.schedule.observe(row["val_loss"])
        self._write_table()
        trainer.save_checkpoint(self._folder / LAST)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=len(self.history))
        self._progress.say(_line(row, self._recipe.train.epochs, better=better))
        if self._is_hopeless():
            trainer.should_stop = True
            self._progress.say(
                f"stopped early: no better validation {self._recipe.train.monitor} for "
                f"{self._recipe.train.early_stopping} epochs"
            )

    def _row(self, epoch: int, module: SegmentationModule) -> dict[str, float]:
        averages = module.averages
        if not math.isfinite(averages["loss"]):
            raise diverged("the training loss", self._recipe, epoch)
        scores = self._score(self._shipped)
        if not math.isfinite(scores.loss):
            raise diverged("the validation loss", self._recipe, epoch)
        figures = (
            epoch,
            module.figures["lr"],
            averages["loss"],
            averages["dice"],
            scores.loss,
            scores.dice,
            self._watch.epoch_seconds,
            self._watch.data_share,
        )
        return dict(zip(COLUMNS, figures, strict=True))

    def _is_hopeless(self) -> bool:
        patience = self._recipe.train.early_stopping
        return 0 < patience <= len(self.history) - self.best_epoch

    def _write_table(self) -> None:
        """Write the whole table each time: it is small, and a kill can't leave half a line."""
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        storage.write_text(self._folder / METRICS, table.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs."""
        return {"history": self.history, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.history = [dict(row) for row in state_dict["history"]]
        self.best_epoch = state_dict["best_epoch"]


def is_better(row: dict[str, float], best: dict[str, float], config: TrainConfig) -> bool:
    """Tell whether an epoch beats the best so far; of two equal ones the earlier stays."""
    if config.monitor == "loss":
        return row["val_loss"] < best["val_loss"]
    return row["val_dice"] > best["val_dice"]


def _line(row: dict[str, float], epochs: int, *, better: bool) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: training loss {row['train_loss']:.4f}, "
        f"Dice {row['train_dice']:.4f}; validation loss {row['val_loss']:.4f}, "
        f"Dice {row['val_dice']:.4f}{' (best)' if better else ''}; "
        f"{row['seconds']:.1f} s, {row['data_share']:.1%} of the steps waiting for data"
    )


def _write_weights(path: Path, model: nn.Module) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with storage.atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state))


def read_best(folder: Path) -> dict[str, Any]:
    """Read the best weights of a run as numpy arrays, by the model's own names."""
    path = folder / BEST
    try:
        return {name: value.numpy() for name, value in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as problem:
        raise TrainingError(f"can't read the best weights {path}: {problem}") from None
