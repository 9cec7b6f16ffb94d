"""Whatever stops a run, it goes on to the same bits."""

import itertools
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from binseg.errors import OutputError, StoppedError, TrainingError
from binseg.training import batches, loggers
from binseg.training.checkpoint import Checkpointer, Position
from binseg.training.loop import FitResult
from binseg.training.run_folder import BEST, LAST, PREVIOUS

Run = Callable[..., FitResult]

STATEFUL: dict[str, Any] = {
    "train__ema_decay": 0.9,
    "train__batch_size": 1,
    "train__epochs": 3,
    "schedule__name": "plateau",
    "schedule__patience": 0,
    "schedule__warmup_epochs": 0.5,
    "augment__preset": "pet-augmented",
    "augment__invert": 0.5,
}
"""Nine steps an epoch, with all state there is."""
TIMES = {"seconds", "data_share"}


def same(one: FitResult, other: FitResult) -> bool:
    """Equal to the last bit, but for the clock."""
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in result.history]
        for result in (one, other)
    ]
    weights = (np.array_equal(one.best_state[k], other.best_state[k]) for k in one.best_state)
    return rows[0] == rows[1] and one.best_epoch == other.best_epoch and all(weights)


def pressing(*steps: int) -> Callable[[int], None]:
    """What presses Ctrl-C at these steps of a bar."""

    def press(step: int) -> None:
        if step in steps:
            signal.raise_signal(signal.SIGINT)

    return press


def stopped_and_resumed(run: Run, listen: Any, folder: Path, steps: int, **settings: Any) -> Any:
    """Stop a run after every `steps` steps until it is done."""
    for attempt in itertools.count():
        listener = listen(at_step=pressing(*range(steps, 99, steps)))
        if attempt:  # its bar begins where the run was
            listener = listen(at_step=pressing(*range(steps * (attempt + 1), 99, steps)))
        try:
            return run(folder=folder, progress=listener, resume=attempt > 0, **settings)
        except StoppedError:
            continue
    raise AssertionError


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_run_in_pieces_is_the_whole_run(
    run: Run, listen: Any, tmp_path: Path, steps: int
) -> None:
    """Stopped after each step, each fourth, or in each validation: every bit is the same."""
    whole = run(folder=tmp_path / "whole", **STATEFUL)
    parts = stopped_and_resumed(run, listen, tmp_path / "parts", steps, **STATEFUL)
    assert same(whole, parts)
    assert all(0 < row["seconds"] < 60 for row in parts.history)


def test_accumulated_steps_are_finished_first(run: Run, listen: Any, tmp_path: Path) -> None:
    """Half-added gradients aren't saved: the stop waits for the optimiser's step."""
    settings = STATEFUL | {"train__accumulate": 3, "train__epochs": 2}
    whole = run(folder=tmp_path / "whole", **settings)
    with pytest.raises(StoppedError, match="up to epoch 1, step 6"):
        run(folder=tmp_path / "parts", progress=listen(at_step=pressing(4)), **settings)
    assert same(whole, run(folder=tmp_path / "parts", resume=True, **settings))


def test_a_run_that_is_killed_goes_on_from_its_checkpoint(
    run: Run, listen: Any, tmp_path: Path
) -> None:
    """SIGKILL in the second epoch; what was saved by time alone leads to the same bits."""
    settings = STATEFUL | {"train__checkpoint_minutes": 1e-9}
    whole = run(folder=tmp_path / "whole", **STATEFUL)
    folder = tmp_path / "killed"
    child = os.fork()
    if child == 0:

        def die(step: int) -> None:
            if step == 13:
                os.kill(os.getpid(), signal.SIGKILL)

        run(folder=folder, progress=listen(at_step=die), **settings)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert {LAST, PREVIOUS, BEST} <= {file.name for file in folder.iterdir()}
    assert same(whole, run(folder=folder, resume=True, **settings))


def test_a_torn_checkpoint_costs_a_step(run: Run, listen: Any, tmp_path: Path) -> None:
    """The one before it is taken, that is said, and the result is the same."""
    settings = STATEFUL | {"train__checkpoint_minutes": 1e-9}
    whole = run(folder=tmp_path / "whole", **STATEFUL)
    folder = tmp_path / "torn"
    with pytest.raises(StoppedError):
        run(folder=folder, progress=listen(at_step=pressing(14)), **settings)
    os.truncate(folder / LAST, 5000)
    listener = listen()
    assert same(whole, run(folder=folder, progress=listener, resume=True, **settings))
    assert "going on from previous.ckpt" in listener.lines[0]


def test_without_the_best_weights_the_next_epoch_is_the_best(
    run: Run, listen: Any, tmp_path: Path
) -> None:
    """A run whose best.safetensors was deleted says so, and ships what it still can."""
    with pytest.raises(StoppedError):
        run(progress=listen(at_step=pressing(12)), **STATEFUL)
    (tmp_path / "run" / BEST).unlink()
    listener = listen()
    result = run(progress=listener, resume=True, **STATEFUL)
    assert result.best_epoch in {2, 3}
    assert any("best.safetensors is gone" in line for line in listener.lines)


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)


def test_a_full_disk_does_not_stop_a_run(run: Run, listen: Any, tmp_path: Path) -> None:
    """What can't be written is said, the last checkpoint stays, and space makes all good."""
    whole = run(folder=tmp_path / "whole", **STATEFUL)
    with ExitStack() as stack:

        def fill(step: int) -> None:
            if step == 10:
                stack.enter_context(full_disk(600))
            if step == 20:
                stack.close()

        listener = listen(at_step=fill)
        result = run(folder=tmp_path / "full", progress=listener, **STATEFUL)
    assert same(whole, result)
    told = [line for line in listener.lines if "can't write" in line]
    assert any("the checkpoint of epoch 1 stays" in line for line in told)


def test_results_that_cannot_be_written_are_an_error(run: Run, listen: Any, tmp_path: Path) -> None:
    """A disk that stays full lets the run end in an error, not in silence."""
    with ExitStack() as stack:
        listener = listen(at_step=lambda step: step == 1 and stack.enter_context(full_disk(200)))
        with pytest.raises(OutputError, match="can't write"):
            run(progress=listener, **STATEFUL)


class Broken:
    """A tracker whose disk is full."""

    def log(self, row: Any, *, step: int) -> None:
        raise OSError(28, f"epoch {row['epoch']:.0f}, {step}: no space left")

    def close(self) -> None:
        raise OSError(28, "no space left")


def test_a_logger_that_fails_does_not_stop_a_run(
    run: Run, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker's full disk or dead server is said, and metrics.csv has it all."""
    monkeypatch.setitem(loggers.LOGGERS, "wandb", lambda folder: Broken())
    listener = listen()
    result = run(train__loggers=["wandb"], train__epochs=1, progress=listener)
    assert len(result.history) == 1
    assert any("a logger failed at epoch 1" in line for line in listener.lines)


def test_a_killed_loader_process_is_one_line(run: Run, listen: Any, tmp_path: Path) -> None:
    """It says what is kept and how to go on, which leads to the same bits without processes."""
    whole = run(folder=tmp_path / "whole", **STATEFUL)

    def shoot(step: int) -> None:
        if step == 12:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    folder = tmp_path / "shot"
    with pytest.raises(TrainingError, match=r"loader process died.*kept up to epoch.*--resume"):
        run(folder=folder, progress=listen(at_step=shoot), train__workers=1, **STATEFUL)
    assert same(whole, run(folder=folder, resume=True, **STATEFUL))


def test_a_loader_that_hangs_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a batch for long, the run ends and says what to set, instead of waiting for ever."""
    here = os.getpid()

    def hang(self: Any, key: Any) -> Any:
        while os.getpid() != here:
            time.sleep(60)
        return read(self, key)

    read = batches._CachedBatches.read
    monkeypatch.setattr(batches._CachedBatches, "read", hang)
    monkeypatch.setattr(batches, "LOADER_SECONDS", 1)
    with pytest.raises(TrainingError, match=r"gave nothing for a long time.*train\.workers to 0"):
        run(train__workers=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /dev/shm")
@pytest.mark.parametrize("kind", ["absent", "small"])
def test_without_shared_memory_the_main_process_loads(
    run: Run, listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A container's missing or tiny /dev/shm is said, and changes nothing."""
    whole = run(folder=tmp_path / "whole")
    if kind == "absent":
        monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path / "nowhere")
    else:
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    listener = listen()
    result = run(folder=tmp_path / "without", train__workers=2, progress=listener)
    assert same(whole, result)
    assert any("the main process loads the batches" in line for line in listener.lines)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_however_loader_processes_start_the_run_is_the_same(
    run: Run, tmp_path: Path, method: str
) -> None:
    """fork, spawn and forkserver give one result."""
    whole = run(folder=tmp_path / "whole", **STATEFUL)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        assert same(whole, run(folder=tmp_path / method, train__workers=2, **STATEFUL))
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can't be taken away")
def test_one_core_is_enough(run: Run, tmp_path: Path) -> None:
    """With a single core, loader processes neither hang nor change the run."""
    cores = os.sched_getaffinity(0)
    whole = run(folder=tmp_path / "whole")
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert same(whole, run(folder=tmp_path / "one", train__workers=2))
    finally:
        os.sched_setaffinity(0, cores)


def test_the_time_of_day_decides_nothing(
    run: Run, listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps by a century, either way, changes neither steps nor checkpoints."""
    whole = run(folder=tmp_path / "whole", **STATEFUL)
    jumps = itertools.cycle([0.0, 4e9, 1.0, -5.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    listener = listen()
    result = run(folder=tmp_path / "jumping", progress=listener, **STATEFUL)
    assert same(whole, result)
    assert all(row["seconds"] < 1000 for row in result.history)


def test_checkpoints_come_by_the_clock(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is written when the minutes are over, counted from the one before."""
    saved: list[Position] = []
    save = Checkpointer.save

    def note(self: Checkpointer, where: Position, state_of: Any) -> None:
        saved.append(where)
        save(self, where, state_of)

    ticks = itertools.count(0.0, 25.0)
    monkeypatch.setattr(Checkpointer, "save", note)
    assert Checkpointer.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(Checkpointer.__init__.__kwdefaults__, "clock", lambda: next(ticks))
    run(folder=tmp_path / "run", **STATEFUL | {"train__epochs": 1, "train__checkpoint_minutes": 1})
    # Each look at this clock takes 25 s; the ninth step is followed by the epoch's end.
    assert [(where.epoch, where.step) for where in saved] == [(0, 3), (0, 6), (0, 9), (1, 0)]
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["binseg"]["epoch"] == 1
