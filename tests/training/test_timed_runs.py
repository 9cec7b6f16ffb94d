"""Runs with a budget of time: they end in it, with the rate at nothing, also after a stop."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from binseg.config.recipe import Recipe
from binseg.errors import BinsegError
from binseg.training.clock import Clock
from binseg.training.loop import FitResult
from binseg.training.run_folder import LAST

Run = Callable[..., FitResult]
PLAN = {
    "schedule__name": "onecycle",
    "train__epochs": 1000,
    "train__progressive": {8: 0.5},
    "train__per_epoch": 16,
}


@pytest.mark.slow  # the clock decides, which other work on the machine disturbs
def test_the_clock_ends_the_run_and_the_rate(run: Run) -> None:
    """Hardly a thousand epochs fit in two seconds; the last rate is next to nothing."""
    result = run(seconds=2.0, **PLAN)
    assert 1 <= len(result.history) < 1000
    assert result.history[-1]["lr"] < 0.02 * max(row["lr"] for row in result.history)
    assert result.seconds < 20


def test_a_checkpoint_tells_every_process_the_time(
    run: Run, listen: Any, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Not only the leader's callbacks: the first batch after a resume has the epoch's own size."""
    heard: list[int] = []

    def press(step: int) -> None:
        heard.append(step)
        if len(heard) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(BinsegError, match="--resume"):
        run(seconds=600.0, progress=listen(at_step=press), **PLAN)
    kept = torch.load(tmp_path / "run" / LAST, weights_only=True)["clock"]
    clock = Clock(recipe(**PLAN), seconds=600.0)
    clock.load_state_dict(kept)
    assert clock.elapsed == kept["elapsed"] > 0
    assert clock.training_size(0) == kept["sizes"][0]


@pytest.mark.slow  # the clock decides, which other work on the machine disturbs
def test_a_stopped_run_goes_on_with_the_time_that_is_left(
    run: Run, listen: Any, tmp_path: Path
) -> None:
    """Ctrl-C, then --resume: the epochs are counted on, and the rate ends at nothing."""
    pressed: list[int] = []

    def press(step: int) -> None:
        if step >= 200 and not pressed:  # a fifth of the bar, which shows thousandths of the time
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(BinsegError, match="--resume"):
        run(seconds=4.0, progress=listen(at_step=press), **PLAN)
    result = run(seconds=4.0, resume=True, **PLAN)
    epochs = [row["epoch"] for row in result.history]
    assert epochs == [float(n + 1) for n in range(len(epochs))]
    assert result.history[-1]["lr"] < 0.02 * max(row["lr"] for row in result.history)
    # Resuming what is over does nothing.
    assert run(seconds=4.0, resume=True, **PLAN).history == result.history
