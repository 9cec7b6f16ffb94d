"""Experiment trackers beside metrics.csv; one that doesn't work is told, and training goes on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from binseg.errors import MissingExtraError
from binseg.progress import Progress

__all__ = ["open_loggers"]

PROJECT = "binseg"
"""The project or experiment under which trackers file our runs."""


def open_loggers(names: Sequence[str], folder: Path, progress: Progress) -> list[Logger]:
    """Open the trackers of a recipe.

    Args:
        names: of `LOGGERS`.
        folder: the run's; what trackers write on this machine goes there.
        progress: hears which are missing or fail.
    """
    opened = []
    for name in names:
        try:
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
            opened.append(logger)
    return opened


def _tensorboard(folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=folder, name="", version="tensorboard")


def _wandb(folder: Path) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    offline = os.environ.get("WANDB_MODE") == "offline"
    return WandbLogger(name=folder.name, save_dir=folder, project=PROJECT, offline=offline)


def _mlflow(folder: Path) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
    return MLFlowLogger(experiment_name=PROJECT, run_name=folder.name, tracking_uri=where)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
