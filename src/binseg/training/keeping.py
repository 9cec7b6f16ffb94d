"""Keeps a run: its best weights and its checkpoints, whatever stops it and however full the disk.

A disk that is full doesn't end a run: what can't be written waits in memory for the next try, and
the checkpoint before stays. Only when the run ends, and its result still can't be written, it is an
error.
"""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from binseg import storage
from binseg.errors import OutputError, StoppedError, TrainingError
from binseg.progress import Progress
from binseg.training.checkpoints import LAST
from binseg.training.guard import is_finite
from binseg.training.interrupts import StopRequest
from binseg.training.module import SegmentationModule
from binseg.training.position import Position

__all__ = ["BEST", "Keeper", "read_best", "resume_command"]

BEST = "best.safetensors"


class Keeper(Callback):
    """Writes checkpoints every few minutes, and one when the run is asked to stop.

    It has no state of its own in a checkpoint, and is to be called last of all callbacks: what it
    saves must hold what the others did at this step.

    Args:
        folder: of the run.
        minutes: between two checkpoints within an epoch.
        num_steps: of an epoch.
        accumulate: steps whose gradients are added up; between them there is nothing to save.
        progress: hears what couldn't be saved.
        stop: says whether to stop.
        command: goes on with the run.
        clock: seconds that only rise, whatever happens to the time of day.
    """

    def __init__(
        self,
        folder: Path,
        *,
        minutes: float,
        num_steps: int,
        accumulate: int,
        progress: Progress,
        stop: StopRequest,
        command: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stop = stop
        self._folder = folder
        self._minutes = minutes
        self._num_steps = num_steps
        self._accumulate = accumulate
        self._progress = progress
        self._command = command
        self._clock = clock
        self._mark = clock()
        self._saved: Position | None = None
        self._here: Position | None = None
        """Where the run is, while that is a place to go on from."""
        self._best: bytes | None = None
        """Best weights that couldn't be written yet."""

    @property
    def way_on(self) -> str:
        """What to do after the run has stopped without an error of its own."""
        if self._saved is None:
            return "nothing was saved yet: start again"
        return f"the run is kept up to {self._saved}: go on with `{self._command}`"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        del trainer
        assert isinstance(pl_module, SegmentationModule)
        if pl_module.start != Position(epoch=0, step=0):
            self._saved = pl_module.start
        self._mark = self._clock()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that a step is being made."""
        del trainer, pl_module, batch, batch_idx
        self._here = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop where that is asked for, or save where it is time."""
        del outputs, batch
        step = batch_idx + 1
        if step == self._num_steps or step % self._accumulate:
            return  # the epoch's end has its own turn
        self._here = Position(epoch=trainer.current_epoch, step=step)
        if self.stop.is_asked:
            self.save_and_stop(trainer, pl_module, self._here)
        self.save_if_due(trainer, pl_module, self._here)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what the last step gave, where the loader failed after it."""
        if isinstance(exception, Exception) and self._here is not None:
            self._save_once(trainer, pl_module, self._here)

    def save_if_due(self, trainer: Trainer, pl_module: LightningModule, position: Position) -> None:
        """Save where the last checkpoint is old enough."""
        if self._clock() - self._mark >= 60 * self._minutes:
            self.save(trainer, pl_module, position)

    def save_and_stop(
        self, trainer: Trainer, pl_module: LightningModule, position: Position
    ) -> None:
        """Save, and raise what tells how to go on.

        Raises:
            StoppedError: always.
        """
        self._save_once(trainer, pl_module, position)
        self._here = None
        raise self.stopped()

    def stopped(self) -> StoppedError:
        """Give the error that ends a run which was asked to stop."""
        return StoppedError(f"interrupted; {self.way_on}", signal_number=self.stop.number)

    def _save_once(self, trainer: Trainer, pl_module: LightningModule, position: Position) -> None:
        if self._saved != position:
            self.save(trainer, pl_module, position)

    def save(self, trainer: Trainer, pl_module: LightningModule, position: Position) -> None:
        """Write a checkpoint, or say why that can't be done now."""
        assert isinstance(pl_module, SegmentationModule)
        self._mark = self._clock()
        if not pl_module.guard.is_calm or not is_finite(pl_module.model):
            self._progress.say(
                f"no checkpoint at {position}: the numbers went bad; {self._what_stays()}"
            )
            return
        pl_module.position = position
        try:
            self._write_best()
            trainer.save_checkpoint(self._folder / LAST)
        except OutputError as problem:
            self._progress.say(f"{problem}; training goes on, {self._what_stays()}")
        else:
            self._saved = position

    def _what_stays(self) -> str:
        if self._saved is None:
            return "and there is no checkpoint yet"
        return f"and the checkpoint of {self._saved} stays"

    def keep_best(self, model: nn.Module) -> None:
        """Write the best weights, or hold them until that can be done."""
        state = {
            name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
        }
        self._best = safetensors.torch.save(state)
        try:
            self._write_best()
        except OutputError as problem:
            self._progress.say(f"{problem}; the best weights wait in memory for the next try")

    def _write_best(self) -> None:
        if self._best is not None:
            storage.write_bytes(self._folder / BEST, self._best)
            self._best = None

    def finish(self) -> None:
        """Write what still waits.

        Raises:
            OutputError: it still can't be written.
        """
        self._write_best()


def resume_command(folder: Path) -> str:
    """Give the line that goes on with a run."""
    return f"binseg train --out {shlex.quote(str(folder))} --resume"


def read_best(folder: Path) -> dict[str, Any]:
    """Read the best weights of a run as numpy arrays, by the model's own names.

    Raises:
        TrainingError: they are absent or damaged.
    """
    path = folder / BEST
    try:
        return {name: value.numpy() for name, value in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as problem:
        raise TrainingError(f"can't read the best weights {path}: {problem}") from None
