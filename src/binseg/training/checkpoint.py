"""The state that a stopped run resumes from: its position, its checkpoints and its best weights.

`last.ckpt` is the newest state and `previous.ckpt` the one before it. Each ends in the SHA-256 of
what comes before, so that a torn file is known as such and the other one taken, and is read without
running code. A full disk doesn't end a run: what can't be written waits in memory for the next try.
"""

import contextlib
import hashlib
import io
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from binseg import storage
from binseg.config.recipe import Recipe
from binseg.errors import OutputError, TrainingError
from binseg.progress import Progress
from binseg.training.distributed import ProcessGroup
from binseg.training.run_folder import BEST, LAST, PREVIOUS

SEAL = b"\nbinseg sha256 "
SEAL_LENGTH = len(SEAL) + 64
_OF_TRAIN = "epochs device devices num_nodes compile early_stopping threshold workers loggers"
FREE = {"about", "data.path", "data.download", "data.group", "train.checkpoint_minutes"}
FREE |= {f"train.{name}" for name in _OF_TRAIN.split()}
"""Settings that may change when a run goes on; all others must be as they were."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """The step that a run trains on next, from which everything that comes then follows."""

    epoch: int  # from 0
    step: int  # from 0; the number of an epoch's steps where only its validation is left

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}" if self.step else f"epoch {self.epoch}"


class Stateful:
    """A part of a run that goes on after a resume from the attributes that `kept` names."""

    kept: tuple[str, ...]

    def state_dict(self) -> dict[str, Any]:
        """Give their values, which are plain data."""
        return {name.lstrip("_"): getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        for name in self.kept:
            setattr(self, name, state[name.lstrip("_")])


def sealed(checkpoint: Mapping[str, Any]) -> bytes:
    """Give the bytes of a checkpoint, which end in the SHA-256 of what comes before."""
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    buffer.write(SEAL + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
    return buffer.getvalue()


def _flaw(data: bytes) -> str | None:
    """Tell why the bytes of a checkpoint can't be trusted, or None."""
    content, end = memoryview(data)[:-SEAL_LENGTH], data[-SEAL_LENGTH:]
    if not end.startswith(SEAL):
        return "is torn or no checkpoint of ours (its checksum is missing)"
    if end != SEAL + hashlib.sha256(content).hexdigest().encode():
        return "is damaged (its checksum is wrong)"
    return None


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; the one before stays. Raises OutputError."""
    with storage.atomic_path(path) as temporary:
        temporary.write_bytes(sealed(checkpoint))
        storage.sync(temporary)
        _step_back(path)


def parse_checkpoint(data: bytes, path: Path) -> dict[str, Any]:
    """Read a checkpoint's bytes: tensors and plain values only; TrainingError if damaged."""
    flaw = _flaw(data)
    if flaw is not None:
        raise TrainingError(f"can't resume: {path} {flaw}; start a new run")
    try:
        checkpoint: dict[str, Any] = torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True
        )
    except Exception as problem:  # noqa: BLE001  # zip and pickle fail as they please
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise TrainingError(
            f"can't resume from {path}: it is torn or no checkpoint of ours ({reason}); start a "
            "new run"
        ) from None
    if "binseg" not in checkpoint:
        raise TrainingError(f"can't resume from {path}: it is no checkpoint of binseg")
    return checkpoint


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


def newest_whole(folder: Path, progress: Progress) -> tuple[Path, bytes]:
    """Give the newest whole checkpoint of a run, with its bytes; TrainingError if there is none."""
    flaws: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            data = storage.read_bytes(path)
            flaw = _flaw(data)
        except FileNotFoundError:
            continue
        except OSError as problem:
            flaw = f"can't be read ({problem.strerror})"
        if flaw is None:
            if flaws:
                progress.say(f"{flaws[0]}: going on from {PREVIOUS}, the one before it")
            return path, data
        flaws.append(f"{path.name} {flaw}")
    if not flaws:
        raise TrainingError(
            f"nothing to resume: there is no {folder / LAST}; start without --resume"
        )
    raise TrainingError(
        f"can't resume {folder}: {'; '.join(flaws)}; delete what is damaged, and --resume starts "
        "with the first epoch"
    )


def shared_state(
    folder: Path, recipe: Recipe, group: ProcessGroup, progress: Progress
) -> dict[str, Any]:
    """Read a run's newest checkpoint on rank 0, for all; TrainingError without a fit one."""
    path, data = newest_whole(folder, progress) if group.is_first else (folder, b"")
    state = parse_checkpoint(group.share(data), path)
    check_same_recipe(state["binseg"]["recipe"], recipe, progress)
    if group.share_json(bool(state["epochs"]["history"]) and not (folder / BEST).is_file()):
        progress.say(f"{BEST} is gone: the next epoch counts as the best so far")
        state["epochs"]["best_epoch"] = 0
    return state


def check_same_recipe(before: str, now: Recipe, progress: Progress) -> None:
    """Refuse to go on with other settings than `before` (JSON); other epochs are only said."""
    old, new = _flat(json.loads(before)), _flat(now.model_dump(mode="json"))
    changed = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and not {name, name.partition(".")[0]} & FREE
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


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested sections as one table with dotted names."""
    table: dict[str, Any] = {}
    for name, value in values.items():
        is_section = isinstance(value, Mapping) and value
        table |= _flat(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return table


class Checkpointer:
    """Writes checkpoints every few minutes, if this rank `writes`, and one at a stop."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        command: str | None,
        progress: Progress,
        writes: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.saved: Position | None = None
        """Position of the newest checkpoint; None before the first."""
        self._folder, self._minutes = folder, recipe.train.checkpoint_minutes
        self._command, self._progress = command or resume_command(folder), progress
        self._writes, self._clock, self._mark = writes, clock, clock()
        self._best: bytes | None = None  # best weights that couldn't be written yet

    @property
    def way_on(self) -> str:
        """Advice to the user after the run has stopped without an error of its own."""
        if self.saved is None:
            return "nothing was saved yet: start again"
        return f"the run is kept up to {self.saved}: go on with `{self._command}`"

    @property
    def is_due(self) -> bool:
        """Return True if the last checkpoint is old enough."""
        return self._clock() - self._mark >= 60 * self._minutes

    def save(self, position: Position, state_of: Callable[[], dict[str, Any] | None]) -> None:
        """Write a checkpoint of `state_of` (None: the numbers went bad), or say why not."""
        self._mark = self._clock()
        if not self._writes:
            return
        state = state_of()
        kept = "there is no checkpoint yet" if self.saved is None else ""
        stays = f"and {kept or f'the checkpoint of {self.saved} stays'}"
        if state is None:
            self._progress.say(f"no checkpoint at {position}: the numbers went bad; {stays}")
            return
        try:
            self.write_best()
            write_checkpoint(state, self._folder / LAST)
        except OutputError as problem:
            self._progress.say(f"{problem}; training goes on, {stays}")
        else:
            self.saved = position

    def keep_best(self, model: nn.Module) -> None:
        """Write the best weights, or hold them until that can be done."""
        if not self._writes:
            return
        values = model.state_dict().items()
        state = {name: value.detach().cpu().contiguous() for name, value in values}
        self._best = safetensors.torch.save(state)
        try:
            self.write_best()
        except OutputError as problem:
            self._progress.say(f"{problem}; the best weights wait in memory for the next try")

    def write_best(self) -> None:
        """Write best weights that still wait; OutputError if they still can't be."""
        if self._best is not None:
            storage.write_bytes(self._folder / BEST, self._best)
            self._best = None


def resume_command(folder: Path) -> str:
    """Give the line that goes on with a run."""
    return f"binseg train --out {shlex.quote(str(folder))} --resume"


def read_best(folder: Path) -> dict[str, Any]:
    """Read a run's best weights as numpy arrays, by the model's own names; or TrainingError."""
    path = folder / BEST
    try:
        return {name: value.numpy() for name, value in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as problem:
        raise TrainingError(f"can't read the best weights {path}: {problem}") from None
