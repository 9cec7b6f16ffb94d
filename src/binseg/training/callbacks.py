"""What happens around the steps: the watch and the bar; and after each epoch: the books."""

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn

from binseg import storage
from binseg.config.recipe import Recipe, TrainConfig
from binseg.errors import OutputError, TrainingError
from binseg.progress import Progress, Task
from binseg.training.guard import diverged
from binseg.training.interrupts import StopAskedError
from binseg.training.keeping import BEST, Keeper
from binseg.training.loggers import log_row
from binseg.training.module import SegmentationModule
from binseg.training.pace import Pace
from binseg.training.position import Position
from binseg.training.symptoms import symptom_of, tell
from binseg.training.validation import ValidationScores

__all__ = ["COLUMNS", "METRICS", "Books", "Watch"]

METRICS = "metrics.csv"
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


BAR_UNITS = 1000
"""Of the progress bar of a run with a budget: thousandths of its time."""


class Watch(Callback):
    """Times steps and waits, and moves the progress bar."""

    def __init__(self, task: Task, *, steps_per_epoch: int, pace: Pace) -> None:
        self._task = task
        self._pace = pace
        self._shown = 0
        self._steps_per_epoch = steps_per_epoch
        self._mark = 0.0
        self._epoch_start = 0.0
        self._waited = 0.0
        self._worked = 0.0
        self._before = 0.0
        """Seconds of the epoch before a resume."""

    @property
    def epoch_seconds(self) -> float:
        """Since this epoch's start."""
        return time.perf_counter() - self._epoch_start

    @property
    def training_seconds(self) -> float:
        """Of the epoch's steps so far."""
        return self._waited + self._worked

    @property
    def data_share(self) -> float:
        """Share of the epoch's step time that was spent waiting for the loader."""
        return self._waited / max(self._waited + self._worked, 1e-9)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps before a resume as done, and the epoch's seconds as passed."""
        del trainer
        assert isinstance(pl_module, SegmentationModule)
        start = pl_module.start
        if self._pace.is_timed:
            self._task.advance(self._time_passed())
        else:
            self._task.advance(start.epoch * self._steps_per_epoch + start.step)
        self._mark = time.perf_counter()
        self._epoch_start = self._mark - self._before

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
        """Note the step, show its figures, and end the last epoch when the time is over."""
        del outputs, batch, batch_idx
        assert isinstance(pl_module, SegmentationModule)
        now = time.perf_counter()
        self._worked += now - self._mark
        self._mark = now
        self._task.advance(self._time_passed() if self._pace.is_timed else 1, **pl_module.figures)
        if self._pace.is_over:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume within an epoch needs."""
        return {"seconds": self.epoch_seconds, "waited": self._waited, "worked": self._worked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._before = state_dict["seconds"]
        self._epoch_start = time.perf_counter() - self._before
        self._waited, self._worked = state_dict["waited"], state_dict["worked"]

    def _time_passed(self) -> int:
        """Units of the bar since it was last moved."""
        before, self._shown = self._shown, int(self._pace.time_share * BAR_UNITS)
        return self._shown - before


class Books(Callback):
    """After each epoch: validate, keep the best weights, write the line and the checkpoint.

    The order matters to a run that is killed: the best weights are on disk before the checkpoint
    that counts them as such, and an epoch that is run again after a resume gives the same ones.
    A run that is stopped while it validates goes on with that validation.

    Args:
        folder: of the run.
        recipe: what is trained.
        progress: hears one line an epoch.
        watch: knows the seconds.
        pace: knows how far the run is, and hears what epochs take.
        keeper: writes weights and checkpoints.
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
        pace: Pace,
        keeper: Keeper,
        shipped: nn.Module,
        score: Callable[[nn.Module], ValidationScores],
    ) -> None:
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self._folder = folder
        self._recipe = recipe
        self._progress = progress
        self._watch = watch
        self._pace = pace
        self._keeper = keeper
        self._shipped = shipped
        self._score = score
        self._symptom: str | None = None
        self._num_symptom = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of the epochs so far, and stay stopped if the run had stopped early."""
        assert isinstance(pl_module, SegmentationModule)
        self._write_table()
        if self.history and not (self._folder / BEST).is_file():
            self._progress.say(f"{BEST} is gone: the next epoch counts as the best so far")
            self.best_epoch = 0
        self.catch_up(trainer, pl_module)
        trainer.should_stop = self._is_hopeless() or (self._pace.is_over and bool(self.history))

    def catch_up(self, trainer: Trainer, module: SegmentationModule) -> None:
        """Close the books of an epoch that was trained before a resume, but not validated."""
        epoch = module.start.epoch
        if module.start.step == module.num_steps and len(self.history) == epoch:
            self._close(trainer, module, epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the books of an epoch."""
        assert isinstance(pl_module, SegmentationModule)
        self._close(trainer, pl_module, trainer.current_epoch)

    def _close(self, trainer: Trainer, module: SegmentationModule, epoch: int) -> None:
        trained = Position(epoch=epoch, step=module.num_steps)
        self._keeper.save_if_due(trainer, module, trained)
        try:
            row, scores = self._row(epoch + 1, module)
        except StopAskedError:
            self._keeper.save_and_stop(trainer, module, trained)
            raise
        better = self.best_epoch == 0 or is_better(
            row, self.history[self.best_epoch - 1], self._recipe.train
        )
        self.history.append(row)
        if better:
            self.best_epoch = len(self.history)
            self._keeper.keep_best(self._shipped)
        assert module.schedule is not None
        module.schedule.observe(row["val_loss"])
        try:
            self._write_table()
        except OutputError as problem:
            self._progress.say(f"{problem}; training goes on, and it is written after a later one")
        module.guard.close_epoch(epoch)
        self._look_for_symptoms(scores)
        self._pace.validated(self._watch.epoch_seconds - self._watch.training_seconds)
        self._keeper.save(trainer, module, Position(epoch=epoch + 1, step=0))
        self._tell(trainer.loggers, row, better=better)
        self._end_or_go_on(trainer, module)

    def _look_for_symptoms(self, scores: ValidationScores) -> None:
        symptom = symptom_of(scores)
        self._num_symptom = self._num_symptom + 1 if symptom == self._symptom else 1
        self._symptom = symptom
        if symptom is not None:
            line = tell(symptom, scores, self._recipe, num_epochs=self._num_symptom)
            if line is not None:
                self._progress.say(line)

    def _tell(self, loggers: list[Logger], row: dict[str, float], *, better: bool) -> None:
        for logger in loggers:
            log_row(logger, row, step=len(self.history), progress=self._progress)
        self._progress.say(_line(row, self._of_what(), better=better))

    def _end_or_go_on(self, trainer: Trainer, module: SegmentationModule) -> None:
        position = Position(epoch=len(self.history), step=0)
        if self._pace.is_over:
            trainer.should_stop = True
        if self._is_hopeless():
            trainer.should_stop = True
            self._progress.say(
                f"stopped early: no better validation {self._recipe.train.monitor} for "
                f"{self._recipe.train.early_stopping} epochs"
            )
        if self._keeper.stop.is_asked:
            self._keeper.save_and_stop(trainer, module, position)

    def finish(self) -> None:
        """Write what a full disk has kept from being written.

        Raises:
            OutputError: it still can't be.
        """
        self._keeper.finish()
        self._write_table()

    def _row(
        self, epoch: int, module: SegmentationModule
    ) -> tuple[dict[str, float], ValidationScores]:
        averages = module.averages
        if not math.isfinite(averages["loss"]):
            raise diverged("the training loss", self._recipe, epoch)
        try:
            scores = self._score(self._shipped)
        except TrainingError:
            raise diverged("the answer to a validation image", self._recipe, epoch) from None
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
        return dict(zip(COLUMNS, figures, strict=True)), scores

    def _of_what(self) -> str:
        if self._pace.is_timed:
            return f" ({self._pace.time_share:.0%} of the time)"
        return f"/{self._recipe.train.epochs}"

    def _is_hopeless(self) -> bool:
        patience = self._recipe.train.early_stopping
        return self.best_epoch > 0 and 0 < patience <= len(self.history) - self.best_epoch

    def _write_table(self) -> None:
        """Write the whole table each time: it is small, and a kill can't leave half a line."""
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        storage.write_text(self._folder / METRICS, table.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs."""
        return {
            "history": self.history,
            "best_epoch": self.best_epoch,
            "symptom": self._symptom,
            "num_symptom": self._num_symptom,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.history = [dict(row) for row in state_dict["history"]]
        self.best_epoch = state_dict["best_epoch"]
        self._symptom, self._num_symptom = state_dict["symptom"], state_dict["num_symptom"]


def is_better(row: dict[str, float], best: dict[str, float], config: TrainConfig) -> bool:
    """Tell whether an epoch beats the best so far; of two equal ones the earlier stays."""
    if config.monitor == "loss":
        return row["val_loss"] < best["val_loss"]
    return row["val_dice"] > best["val_dice"]


def _line(row: dict[str, float], of_what: str, *, better: bool) -> str:
    return (
        f"epoch {row['epoch']:.0f}{of_what}: training loss {row['train_loss']:.4f}, "
        f"Dice {row['train_dice']:.4f}; validation loss {row['val_loss']:.4f}, "
        f"Dice {row['val_dice']:.4f}{' (best)' if better else ''}; "
        f"{row['seconds']:.1f} s, {row['data_share']:.1%} of the steps waiting for data"
    )
