"""The record of a run's epochs: metrics.csv, the lines on the screen, and experiment trackers.

A tracker that is missing or fails costs a line, and training goes on.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from binseg import storage
from binseg.config.recipe import Recipe
from binseg.errors import MissingExtraError, OutputError
from binseg.progress import Detail, Progress
from binseg.report.overlay import Rgb
from binseg.training.checkpoint import Stateful
from binseg.training.diagnostics import ValidationScores, symptom_line, symptom_of

METRICS = "metrics.csv"
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_dice", "val_loss", "val_dice"),
    *("val_scored", "val_inputs", "seconds", "data_share"),
)
"""For `val_inputs` validation inputs, `val_scored` made the epoch's validation figures."""
GALLERY_EVERY = 5  # epochs between two drawings of the validation, beside the first
GALLERY = "validation"  # name of these drawings in trackers
PROJECT = "binseg"  # the project or experiment under which trackers file our runs


class Logger(Protocol):
    """An experiment tracker."""

    def log(self, row: Mapping[str, float], *, step: int) -> None:
        """File the figures of an epoch, from 1."""

    def show(self, image_HW3: Rgb, *, step: int) -> None:
        """File the drawing of an epoch's validation."""

    def close(self) -> None:
        """End the tracker's run, so that the process's next training is one of its own."""


class EpochLog(Stateful):
    """The epochs of a run so far (metrics.csv in its folder), and which of them was the best."""

    kept = ("history", "best_epoch", "_symptom", "_num_symptom")

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        loggers: Sequence[Logger],
        progress: Progress,
        writes: bool,
    ) -> None:
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0  # from 1; 0 where there is none yet
        self._path, self._recipe, self._progress = folder / METRICS, recipe, progress
        self._loggers, self._writes = loggers, writes
        self._symptom: str | None = None
        self._num_symptom = 0

    @property
    def is_hopeless(self) -> bool:
        """Return True if none of the last `early_stopping` epochs was the best."""
        patience = self._recipe.train.early_stopping
        return self.best_epoch > 0 and 0 < patience <= len(self.history) - self.best_epoch

    def add(self, row: dict[str, float]) -> bool:
        """Note an epoch; tell whether it is the best so far, of equal ones the earlier."""
        name, sign = ("val_loss", -1) if self._recipe.train.monitor == "loss" else ("val_dice", 1)
        best = self.history[self.best_epoch - 1][name] if self.best_epoch else None
        is_best = best is None or sign * row[name] > sign * best
        self.history.append(row)
        if is_best:
            self.best_epoch = len(self.history)
        return is_best

    def try_to_write(self) -> None:
        """Write metrics.csv, or say that it waits for a later epoch."""
        try:
            self.write()
        except OutputError as problem:
            self._progress.say(f"{problem}; training goes on, and it is written after a later one")

    def write(self) -> None:
        """Write the whole of metrics.csv: a kill can't leave half a line. Raises OutputError."""
        if self._writes:
            storage.write_text(self._path, storage.csv_text(self.history, COLUMNS))

    def look_for_symptoms(self, scores: ValidationScores) -> None:
        """Say where an epoch's predictions show that nothing is learnt."""
        symptom = symptom_of(scores)
        self._num_symptom = self._num_symptom + 1 if symptom == self._symptom else 1
        self._symptom = symptom
        num = self._num_symptom
        if symptom and (line := symptom_line(symptom, scores, self._recipe, num_epochs=num)):
            self._progress.say(line)

    def tell(self, share: str) -> None:
        """Show the latest epoch, `share` behind its number, and file it with the trackers."""
        row, num = self.history[-1], len(self.history)
        self._file(lambda logger: logger.log(row, step=num))
        best = " (best)" if self.best_epoch == num else ""
        scored, inputs = int(row["val_scored"]), int(row["val_inputs"])
        some = f" on {scored} of {inputs} inputs" if scored < inputs else ""
        told = (
            f"epoch {num}{share}: training loss {row['train_loss']:.4f}, Dice "
            f"{row['train_dice']:.4f}; validation loss {row['val_loss']:.4f}, Dice "
            f"{row['val_dice']:.4f}{some}{best}; {row['seconds']:.1f} s, {row['data_share']:.1%} "
            "of the steps waiting for data"
        )
        self._progress.say(Detail(told))

    def show(self, draw: Callable[[], Rgb]) -> None:
        """File what the model makes of validation images, where an epoch's turn has come."""
        num = len(self.history)
        if not self._loggers or (num != 1 and num % GALLERY_EVERY):
            return
        image_HW3 = draw()
        self._file(lambda logger: logger.show(image_HW3, step=num))

    def _file(self, tell: Callable[[Logger], None]) -> None:
        for logger in self._loggers:
            try:
                tell(logger)
            except Exception as problem:  # noqa: BLE001  # a tracker's server may fail in any way
                where = f"a logger failed at epoch {len(self.history)} ({_reason(problem)})"
                self._progress.say(f"{where}; {METRICS} has its figures")


def _reason(problem: Exception) -> str:
    return " ".join(str(problem).split())


@contextmanager
def running_loggers(
    names: Sequence[str], folder: Path, progress: Progress
) -> Iterator[list[Logger]]:
    """Open a run's trackers by name, and close them at its end; failures are said."""
    opened = [logger for name in names if (logger := _open(name, folder, progress)) is not None]
    try:
        yield opened
    finally:
        for logger in opened:
            try:
                logger.close()
            except Exception as problem:  # noqa: BLE001
                progress.say(f"a logger failed at its end ({_reason(problem)})")


def _open(name: str, folder: Path, progress: Progress) -> Logger | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return LOGGERS[name](folder)
    except ModuleNotFoundError:
        missing = MissingExtraError(name, extra=name, purpose=f"the logger {name}")
        progress.say(f"{missing}; training goes on without it")
    except Exception as problem:  # noqa: BLE001  # a tracker's server may fail in any way
        progress.say(
            f"the logger {name} doesn't start ({_reason(problem)}); training goes on without it"
        )
    return None


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self.close = self._writer.close

    def log(self, row: Mapping[str, float], *, step: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, image_HW3: Rgb, *, step: int) -> None:
        self._writer.add_image(GALLERY, image_HW3, step, dataformats="HWC")


class _Wandb:
    def __init__(self, folder: Path) -> None:
        import wandb

        self._run = wandb.init(project=PROJECT, name=folder.name, dir=str(folder))
        self.close = self._run.finish

    def log(self, row: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(row), step=step)

    def show(self, image_HW3: Rgb, *, step: int) -> None:
        import wandb

        self._run.log({GALLERY: wandb.Image(image_HW3)}, step=step)


class _MLflow:
    def __init__(self, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI")
        if where is None:
            # mlflow-skinny has no database, and plain files only for those who insist.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            where = (folder / "mlruns").resolve().as_uri()
        self._client = MlflowClient(where)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id

    def log(self, row: Mapping[str, float], *, step: int) -> None:
        for name, value in row.items():
            self._client.log_metric(self._id, name, value, step=step)

    def show(self, image_HW3: Rgb, *, step: int) -> None:
        self._client.log_image(self._id, image_HW3, f"{GALLERY}/{step:04d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow,
}  # fmt: skip
"""Every tracker by the name it has in recipes."""
