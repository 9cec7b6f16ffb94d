"""Experiment trackers beside metrics.csv; one that doesn't work is told, and training goes on."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from binseg.errors import MissingExtraError
from binseg.progress import Progress

__all__ = ["log_row", "running_loggers"]

PROJECT = "binseg"
"""The project or experiment under which trackers file our runs."""


@contextlib.contextmanager
def running_loggers(
    names: Sequence[str], folder: Path, progress: Progress
) -> Iterator[list[Logger]]:
    """Open the trackers of a recipe, and close what they began.

    Args:
        names: of `LOGGERS`.
        folder: the run's; what trackers write on this machine goes there.
        progress: hears which are missing or fail.
    """
    opened = [logger for name in names if (logger := _open(name, folder, progress)) is not None]
    try:
        yield opened
    finally:
        for logger in opened:
            # wandb alone keeps its run open, and would file the process's next training under it.
            finish = getattr(getattr(logger, "experiment", None), "finish", None)
            if finish is not None:
                finish()


def _open(name: str, folder: Path, progress: Progress) -> Logger | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        logger = LOGGERS[name](folder)
        # Reading the property is what starts the tracker: better here than inside the Trainer.
        _ = getattr(logger, "experiment", None)
    except ModuleNotFoundError:
        missing = MissingExtraError(name, extra=name, purpose=f"the logger {name}")
        progress.say(f"{missing}; training goes on without it")
    except Exception as problem:  # noqa: BLE001  # a tracker's server may fail in any way
        reason = " ".join(str(problem).split())
        progress.say(f"the logger {name} doesn't start ({reason}); training goes on without it")
    else:
        return logger
    return None


def log_row(logger: Logger, row: dict[str, float], *, step: int, progress: Progress) -> None:
    """File an epoch with a tracker; one that fails (its disk, its server) doesn't end the run."""
    try:
        logger.log_metrics(row, step=step)
    except Exception as problem:  # noqa: BLE001  # a tracker's server may fail in any way
        reason = " ".join(str(problem).split())
        progress.say(f"a logger failed at epoch {step} ({reason}); metrics.csv has it")


def _tensorboard(folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=folder, name="", version="tensorboard")


def _wandb(folder: Path) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    offline = os.environ.get("WANDB_MODE") == "offline"
    return WandbLogger(name=folder.name, save_dir=folder, project=PROJECT, offline=offline)


def _mlflow(folder: Path) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    where = os.environ.get("MLFLOW_TRACKING_URI")
    if where is None:
        # mlflow-skinny has no database, and plain files only for those who insist.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        where = (folder / "mlruns").resolve().as_uri()
    return MLFlowLogger(experiment_name=PROJECT, run_name=folder.name, tracking_uri=where)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
