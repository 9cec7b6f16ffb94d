"""A run that learns nothing is told so, with what to change."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.training.diagnostics import ValidationScores, symptom_line, symptom_of
from binseg.training.loop import FitResult
from binseg.types import IGNORE

Run = Callable[..., FitResult]
STILL: dict[str, Any] = {
    "optimizer__lr": 1e-12,
    "augment__preset": "none",
    "train__epochs": 4,
}
"""Nothing is learnt."""


def always(logit: float) -> nn.Module:
    """A network that gives one logit everywhere."""
    layer = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        assert layer.bias is not None
        layer.bias.fill_(logit)
    return layer


@pytest.mark.parametrize(
    ("logit", "sign", "advice"),
    [
        (-1.0, "Dice 0.000, since nothing is found", "raise optimizer.lr (now 1e-12)"),
        (1.0, "which an all-white mask scores", "binseg check"),
    ],
    ids=["empty", "full"],
)
def test_a_stuck_dice_is_told_in_its_first_epoch(
    run: Run, listen: Any, logit: float, sign: str, advice: str
) -> None:
    """Once when it begins, and once when it has lasted; with the setting to change."""
    listener = listen()
    run(model=always(logit), progress=listener, **STILL)
    told = [line for line in listener.lines if sign in line]
    assert len(told) == 2
    assert "normal early on" in told[0]
    assert "3 epochs now" in told[1]
    assert all(advice in line for line in told)
    first = next(n for n, line in enumerate(listener.lines) if line.startswith("epoch 1/"))
    assert listener.lines.index(told[0]) <= first + 1


def test_the_shares_are_those_of_the_pixels(
    run: Run, pixels: Callable[..., PixelCache], listen: Any
) -> None:
    """The foreground that is named is the share of valid pixels."""
    val = pixels(3, seed=1)
    share = float((val.targets_NHW == 1).sum() / (val.targets_NHW != IGNORE).sum())
    listener = listen()
    run(model=always(-1.0), val=val, progress=listener, **STILL)
    assert any(f"foreground is {share:.2%} of" in line for line in listener.lines)


def scores(dice: float, answered: float, true: float) -> ValidationScores:
    return ValidationScores(loss=1.0, dice=dice, answered_share=answered, true_share=true)


def test_the_signs(recipe: Callable[..., Recipe]) -> None:
    """Empty, full and wrong answers; nothing where there is no foreground to find."""
    assert symptom_of(scores(0.0, 0.0, 0.1)) == "empty"
    assert symptom_of(scores(0.18, 1.0, 0.1)) == "full"
    assert symptom_of(scores(0.0, 0.3, 0.1)) == "elsewhere"
    assert symptom_of(scores(0.6, 0.1, 0.1)) is None
    assert symptom_of(scores(1.0, 1.0, 1.0)) is None
    assert symptom_of(scores(float(np.nan), 0.2, 0.0)) is None
    line = symptom_line("elsewhere", scores(0.0, 0.3, 0.1), recipe(), num_epochs=1)
    assert line is not None
    assert "data.foreground" in line
    rare = symptom_line("empty", scores(0.0, 0.0, 0.002), recipe(loss__name="bce"), num_epochs=1)
    assert rare is not None
    assert "set loss.name to bce-dice" in rare
    assert symptom_line("empty", scores(0.0, 0.0, 0.1), recipe(), num_epochs=2) is None
