"""Numbers that go bad: one step is left out, many end the run, and no bad weight is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.errors import TrainingError
from binseg.training.checkpoint import parse_checkpoint
from binseg.training.diagnostics import MANY, StepGuard, is_finite
from binseg.training.loop import FitResult
from binseg.training.run_folder import LAST

Run = Callable[..., FitResult]


class Bad(nn.Module):
    """A convolution with batch norm that gives NaN at some training steps."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)
        self.steps = steps
        self.step = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step += self.training
        bad = self.training and self.step in self.steps
        logits: torch.Tensor = self.norm(self.layer(x) * (float("nan") if bad else 1.0))
        return logits


def read(path: Path) -> dict[str, Any]:
    return parse_checkpoint(path.read_bytes(), path)


def test_a_bad_step_changes_nothing(run: Run, listen: Any, tmp_path: Path) -> None:
    """Neither weights nor batch norm's statistics nor Adam's memory hear of it, and it is said."""
    settings: dict[str, Any] = {
        "train__epochs": 1,
        "train__batch_size": 1,
        "schedule__name": "none",
        "augment__preset": "none",
    }
    listener = listen()
    run(model=Bad({5}), folder=tmp_path / "bad", progress=listener, **settings)
    state = read(tmp_path / "bad" / LAST)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["model"]["norm.num_batches_tracked"] == 8
    steps = {float(value["step"]) for value in state["optimizer"]["state"].values()}
    assert steps == {8.0}
    told = [line for line in listener.lines if "left out" in line]
    assert len(told) == 1
    assert told[0].startswith("the gradient is infinite or not a number at a step of epoch 1")


def test_several_bad_steps_are_counted(run: Run, listen: Any) -> None:
    """Their number comes with the epoch, and with the setting to change."""
    listener = listen()
    result = run(model=Bad({2, 5, 6}), progress=listener, train__epochs=1, train__batch_size=1)
    assert np.isfinite(result.history[0]["train_loss"])
    assert any(line.startswith("3 steps of epoch 1 were left out") for line in listener.lines)
    assert any("lower optimizer.lr (now 0.01)" in line for line in listener.lines)


def test_many_bad_steps_in_a_row_end_the_run(run: Run, tmp_path: Path) -> None:
    """The line names cause and setting; what was good before stays on disk, and is good."""
    bad = set(range(12, 12 + MANY))
    with pytest.raises(TrainingError, match=rf"{MANY} steps in a row .* in epoch 3: training div"):
        run(
            model=Bad(bad),
            train__batch_size=1,
            train__epochs=4,
            train__checkpoint_minutes=1e-9,
        )
    best = safetensors.torch.load_file(tmp_path / "run" / "best.safetensors")
    assert all(value.isfinite().all() for value in best.values())
    state = read(tmp_path / "run" / LAST)
    assert (state["binseg"]["epoch"], state["binseg"]["step"]) == (1, 2)


def test_a_guard_goes_on_where_it_was(recipe: Callable[..., Recipe], listen: Any) -> None:
    """Bad steps before a resume count."""
    model = nn.Conv2d(1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    first = StepGuard(model, recipe=recipe(), progress=listen())
    for _ in range(MANY - 1):
        first.judge(float("inf"), optimizer, epoch=0)
    second = StepGuard(model, recipe=recipe(), progress=listen())
    second.load_state_dict(first.state_dict())
    with pytest.raises(TrainingError):
        second.judge(float("nan"), optimizer, epoch=0)


@pytest.mark.parametrize(("last", "told"), [(1.0, False), (50.0, False), (500.0, True)])
def test_an_exploding_gradient_is_told_within_its_epoch(
    recipe: Callable[..., Recipe], listen: Any, last: float, told: bool
) -> None:
    """A norm that has grown a hundredfold by the end of an epoch, and stays there."""
    listener = listen()
    model = nn.Conv2d(1, 1, 1)
    guard = StepGuard(model, recipe=recipe(train__gradient_clip=0), progress=listener)
    optimizer = torch.optim.SGD(model.parameters())
    for norm in (1.0,) * 15 + (last,) * 5:
        guard.judge(norm, optimizer, epoch=0)
    guard.close_epoch(0)
    assert ("about to diverge" in "".join(listener.lines)) is told
    assert ("set train.gradient_clip to 1" in "".join(listener.lines)) is told


def test_finite_weights_are_told_from_others() -> None:
    """A single infinity in a statistic is enough."""
    model = nn.BatchNorm2d(3)
    assert is_finite(model)
    assert model.running_var is not None
    model.running_var[1] = float("inf")
    assert not is_finite(model)
