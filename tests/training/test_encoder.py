"""Fine-tuning: an encoder that learns more slowly, later, or with batch norm as it came."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from binseg.config.recipe import OptimizerConfig, Recipe
from binseg.errors import StoppedError, UsageError
from binseg.models import create_model
from binseg.training.loop import FitResult
from binseg.training.optim import Schedule, build_optimizer
from binseg.training.step import check_model, encoder_of

Run = Callable[..., FitResult]


def of_encoder(result: FitResult, before: nn.Module, *, statistics: bool) -> list[bool]:
    """Tell of each of the encoder's weights, or statistics, whether training left it alone."""
    state = before.state_dict()
    names = [name for name in state if name.startswith("encoder.")]
    chosen = [name for name in names if ("running" in name) == statistics and "num_" not in name]
    assert chosen
    return [np.array_equal(result.best_state[name], state[name].numpy()) for name in chosen]


def test_a_frozen_encoder_keeps_weights_and_statistics(
    run: Run, network: Callable[..., nn.Module]
) -> None:
    """To the bit, weight decay or not, while the decoder learns; afterwards it learns too."""
    settings = {"train__epochs": 2, "optimizer__weight_decay": 0.1}
    result = run(model=network(), train__freeze_encoder_epochs=2, **settings)
    assert all(of_encoder(result, network(), statistics=False))
    assert all(of_encoder(result, network(), statistics=True))
    before = network().state_dict()
    others = [name for name in before if not name.startswith("encoder.")]
    assert any(not np.array_equal(result.best_state[one], before[one].numpy()) for one in others)
    later = run(model=network(), train__freeze_encoder_epochs=1, train__monitor="loss", **settings)
    assert later.best_epoch == 2
    assert not any(of_encoder(later, network(), statistics=False))


def test_frozen_batch_norm_keeps_its_statistics_alone(
    run: Run, network: Callable[..., nn.Module]
) -> None:
    """The encoder's weights learn; the decoder's batch norm does as ever."""
    result = run(model=network(), train__freeze_batch_norm=True)
    assert all(of_encoder(result, network(), statistics=True))
    assert not any(of_encoder(result, network(), statistics=False))
    before = network().state_dict()
    own = [name for name in before if "running_mean" in name and "encoder." not in name]
    assert own
    assert not any(np.array_equal(result.best_state[one], before[one].numpy()) for one in own)


def test_a_run_that_freezes_resumes_to_the_same_bits(
    run: Run, network: Callable[..., nn.Module], listen: Any, tmp_path: Path
) -> None:
    """Stopped within the frozen epoch, and within the one after it."""
    settings: dict[str, Any] = {
        "train__epochs": 3,
        "train__freeze_encoder_epochs": 1,
        "train__freeze_batch_norm": True,
        "optimizer__encoder_lr_factor": 0.3,
    }
    whole = run(model=network(), folder=tmp_path / "whole", **settings)
    for step in (1, 3):

        def press(done: int, step: int = step) -> None:
            if done == step:
                signal.raise_signal(signal.SIGINT)

        folder = tmp_path / f"at-{step}"
        with pytest.raises(StoppedError):
            run(model=network(), folder=folder, progress=listen(at_step=press), **settings)
        parts = run(model=network(), folder=folder, resume=True, **settings)
        for name, value in whole.best_state.items():
            assert np.array_equal(value, parts.best_state[name]), (step, name)


def test_the_encoders_rate_is_a_share_of_the_others_at_every_step(
    network: Callable[..., nn.Module], recipe: Callable[..., Recipe]
) -> None:
    """Two groups hold each weight once, under one schedule; the decoder's rate is shown."""
    model = network()
    config = OptimizerConfig(lr=0.01, encoder_lr_factor=0.3)
    optimizer = build_optimizer(model, config, encoder=encoder_of(model))
    others, encoder = (group["params"] for group in optimizer.param_groups)
    assert {id(one) for one in encoder} == {id(one) for one in encoder_of(model).parameters()}  # type: ignore[union-attr]
    assert len(others) + len(encoder) == len(list(model.parameters()))
    asked = recipe(schedule__warmup_epochs=1.0)
    schedule = Schedule(optimizer, asked.schedule, epochs=4, steps_per_epoch=3)
    for _ in range(12):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[1] == pytest.approx(0.3 * rates[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("optimizer", {"encoder_lr_factor": 0.1}),
        ("train", {"freeze_encoder_epochs": 1}),
        ("train", {"freeze_batch_norm": True}),
    ],
)
def test_a_network_without_an_encoder_is_refused(section: str, change: dict[str, Any]) -> None:
    """A setting that would do nothing is an error that names it; a U-Net takes it."""
    asked = Recipe.model_validate({section: change})
    with pytest.raises(UsageError, match=rf"{section}\.{next(iter(change))}: .* no encoder"):
        check_model(lambda: nn.Conv2d(3, 1, 1), asked)
    check_model(lambda: create_model("unet", encoder="unet", width=2, depth=1), asked)


def test_nothing_is_built_where_nothing_is_asked() -> None:
    """The check costs a recipe without such settings nothing."""

    def build() -> torch.nn.Module:
        raise AssertionError

    check_model(build, Recipe())
