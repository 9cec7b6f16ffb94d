"""The files that a run goes on from: sealed, written whole, two deep, read without running code.

`last.ckpt` is the newest state and `previous.ckpt` the one before it. Each ends in the SHA-256 of
what comes before, so that a file that a disk has torn is known as such, and the other one taken.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from binseg import storage
from binseg.config.recipe import Recipe
from binseg.errors import TrainingError
from binseg.progress import Progress

__all__ = ["LAST", "PREVIOUS", "WholeFiles", "check_same_recipe", "newest_whole", "seal"]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SEAL = b"\nbinseg sha256 "
SEAL_LENGTH = len(SEAL) + 64
CHUNK = 1 << 20
FREE = frozenset({"about", "data.path", "data.download", "data.group"}) | {
    f"train.{name}"
    for name in (
        "epochs",
        "device",
        "devices",
        "num_nodes",
        "compile",
        "early_stopping",
        "threshold",
        "workers",
        "loggers",
        "checkpoint_minutes",
    )
}
"""Settings that may change when a run goes on; all others must be as they were."""


class _Hashing:
    """A file that hashes what is written to it, and remembers why it couldn't be.

    torch's zip writer hides the reason, and an exception in its callback may end the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.problem: OSError | None = None

    def write(self, data: Any) -> int:
        """Write a piece; 0 where that failed."""
        if self.problem is None:
            try:
                written = self._file.write(data)
            except OSError as problem:
                self.problem = problem
            else:
                self._hash.update(data)
                return written
        return 0

    def flush(self) -> None:
        """Do nothing: `close` does."""

    def close(self) -> None:
        """Write the seal, and wait until all is on the disk."""
        if self.problem is not None:
            raise self.problem
        self._file.write(SEAL + self._hash.hexdigest().encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def seal(checkpoint: Mapping[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint with its seal, and wait until it is on the disk.

    Raises:
        OSError: the disk refused.
    """
    hashing = _Hashing(file)
    try:
        torch.save(dict(checkpoint), hashing)  # type: ignore[arg-type]  # it asks for `write` alone
    except RuntimeError:
        if hashing.problem is None:
            raise
    hashing.close()


def _flaw(path: Path) -> str | None:
    """Tell why a checkpoint can't be trusted, or None."""
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - SEAL_LENGTH
            found = hashlib.sha256()
            while left > 0:
                piece = file.read(min(CHUNK, left))
                if not piece:
                    break
                found.update(piece)
                left -= len(piece)
            end = file.read()
    except OSError as problem:
        return f"can't be read ({problem.strerror})"
    if not end.startswith(SEAL):
        return "is torn or no checkpoint of ours (its checksum is missing)"
    if end != SEAL + found.hexdigest().encode():
        return "is damaged (its checksum is wrong)"
    return None


class WholeFiles(CheckpointIO):
    """Writes checkpoints through `storage`, and reads tensors and plain values only."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write a checkpoint; the one before stays until this one is on the disk, and after."""
        assert storage_options is None
        path = Path(path)
        with storage.atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                seal(checkpoint, file)
            _step_back(path)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,  # noqa: FBT001  # Lightning's signature
    ) -> dict[str, Any]:
        """Read a checkpoint; it is never unpickled."""
        del map_location, weights_only
        if not Path(path).is_file():
            raise TrainingError(f"nothing to resume: there is no {path}; start without --resume")
        flaw = _flaw(Path(path))
        if flaw is not None:
            raise TrainingError(f"can't resume: {path} {flaw}; start a new run")
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as problem:  # noqa: BLE001  # zip and pickle fail as they please
            raise TrainingError(
                f"can't resume from {path}: it is torn or no checkpoint of ours "
                f"({_first_line(problem)}); start a new run"
            ) from None
        if "binseg" not in checkpoint:
            raise TrainingError(f"can't resume from {path}: it is no checkpoint of binseg")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _step_back(path: Path) -> None:
    """Let a checkpoint be the one before, without a moment in which there is none."""
    if not path.exists():
        return
    previous = path.with_name(PREVIOUS)
    link = path.with_name(f".tmp-{PREVIOUS}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: `newest_whole` finds it under this name
        path.replace(previous)
        return
    link.replace(previous)
    with contextlib.suppress(OSError):  # where both were one file already, the rename did nothing
        link.unlink(missing_ok=True)


def newest_whole(folder: Path, progress: Progress) -> Path:
    """Give the newest checkpoint of a run that is whole.

    Args:
        folder: of the run.
        progress: hears where the newest is damaged, and the one before it is taken.

    Raises:
        TrainingError: there is none.
    """
    flaws: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        flaw = _flaw(path)
        if flaw is None:
            if flaws:
                progress.say(f"{flaws[0]}: going on from {PREVIOUS}, the one before it")
            return path
        flaws.append(f"{path.name} {flaw}")
    if not flaws:
        raise TrainingError(
            f"nothing to resume: there is no {folder / LAST}; start without --resume"
        )
    raise TrainingError(
        f"can't resume {folder}: {'; '.join(flaws)}; delete what is damaged, and --resume starts "
        "with the first epoch"
    )


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def check_same_recipe(before: str, now: Recipe, progress: Progress) -> None:
    """Refuse to go on with other settings than those that the run began with.

    Args:
        before: the recipe of the checkpoint as JSON.
        now: the recipe that is asked for.
        progress: hears of another number of epochs, which bends most schedules.
    """
    # What the run's own binseg didn't know yet it did as today's default does.
    known = _with_defaults(json.loads(before), Recipe().model_dump(mode="json"))
    old, new = _flat(known), _flat(now.model_dump(mode="json"))
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


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the settings of all sections that are left out."""
    sections = {
        name: _with_defaults(values[name], default)
        for name, default in defaults.items()
        if isinstance(default, Mapping) and name in values
    }
    return {**defaults, **values, **sections}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one table with dotted names."""
    table: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            table |= _flat(value, f"{prefix}{name}.")
        else:
            table[prefix + name] = value
    return table
