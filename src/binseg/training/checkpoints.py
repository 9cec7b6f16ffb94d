"""The file that a run goes on from: written whole or not at all, read without running its code."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from binseg import storage
from binseg.config.recipe import Recipe
from binseg.errors import OutputError, TrainingError
from binseg.progress import Progress

__all__ = ["LAST", "WholeFiles", "check_same_recipe"]

LAST = "last.ckpt"
FREE = frozenset({"about", "data.path", "data.download"}) | {
    f"train.{name}"
    for name in ("epochs", "device", "early_stopping", "threshold", "workers", "loggers")
}
"""Settings that may change when a run goes on; all others must be as they were."""


class WholeFiles(CheckpointIO):
    """Writes checkpoints through `storage`, and reads tensors and plain values only."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write a checkpoint; the one before stays until this one is on the disk."""
        assert storage_options is None
        with storage.atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as problem:
                # torch's zip writer hides why a write failed.
                raise OutputError(f"can't write {path}: {_first_line(problem)}") from None

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,  # noqa: FBT001  # Lightning's signature
    ) -> dict[str, Any]:
        """Read a checkpoint; it is never unpickled."""
        del map_location, weights_only
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise TrainingError(
                f"nothing to resume: there is no {path}; start without --resume"
            ) from None
        except Exception as problem:  # noqa: BLE001  # torn files fail as zip and pickle please
            raise TrainingError(
                f"can't resume from {path}: it is torn or no checkpoint of ours "
                f"({_first_line(problem)}); start again without --resume"
            ) from None
        if "binseg" not in checkpoint:
            raise TrainingError(f"can't resume from {path}: it is no checkpoint of binseg")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def check_same_recipe(before: str, now: Recipe, progress: Progress) -> None:
    """Refuse to go on with other settings than those that the run began with.

    Args:
        before: the recipe of the checkpoint as JSON.
        now: the recipe that is asked for.
        progress: hears of another number of epochs, which bends most schedules.
    """
    old, new = _flat(json.loads(before)), _flat(now.model_dump(mode="json"))
    changed = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and not _is_free(name)
    ]
    if changed:
        raise TrainingError(
            f"can't resume with other settings: {'; '.join(changed)}; "
            "put them back, or start a new run"
        )
    if old["train.epochs"] != new["train.epochs"]:
        progress.say(
            f"resuming for {new['train.epochs']} epochs instead of {old['train.epochs']}: the "
            "result is not that of one run of this length, since the schedule was another"
        )


def _is_free(name: str) -> bool:
    return name in FREE or name.split(".", maxsplit=1)[0] in FREE


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one table with dotted names."""
    table: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            table |= _flat(value, f"{prefix}{name}.")
        else:
            table[prefix + name] = value
    return table
