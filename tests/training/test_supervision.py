"""Deep supervision: the side maps learn, and what is shipped is the plain network."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from binseg.config import ModelConfig, Recipe
from binseg.errors import StoppedError, UsageError
from binseg.losses import build_loss
from binseg.models import create_model
from binseg.models.decoders import UNetDecoder
from binseg.models.skeleton import EncoderDecoder
from binseg.training.loop import FitResult
from binseg.training.step import check_model, supervised

WITH_SIDES = ("unet", "unet-compact", "unet-small", "resnet34-unet", "unetplusplus")
WITHOUT = ("resnet34-fpn", "resnet34-psp", "segformer-b0")


def asked(name: str = "unet", **options: Any) -> Recipe:
    return Recipe.model_validate(
        {"model": {"name": name, "options": options}, "loss": {"deep_supervision": True}}
    )


@pytest.mark.parametrize("name", WITH_SIDES)
def test_the_first_level_is_the_networks_own_answer(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(**ModelConfig(name=name, options={"width": 4}).arguments()).eval()
    learner, _ = supervised(model, build_loss("bce"), asked(name))
    images = torch.rand(1, 3, 45, 37)
    with torch.no_grad():
        levels, alone = learner(images), model(images)
    assert levels.shape[1] > 2
    assert levels.shape[-2:] == (45, 37)
    assert torch.equal(levels[:, :1], alone)


def test_each_level_counts_half_of_the_one_before() -> None:
    loss = build_loss("bce")
    model = create_model("unet", encoder="unet", width=2, depth=2)
    _, of_levels = supervised(model, loss, asked())
    target = (torch.rand(2, 1, 8, 8) > 0.5).float()
    valid = torch.rand(2, 1, 8, 8) > 0.2
    logits = torch.randn(2, 3, 8, 8)
    one, two, three = (loss(level, target, valid) for level in torch.split(logits, 1, dim=1))
    expected = (one + two / 2 + three / 4) / 1.75
    assert of_levels(logits, target, valid).item() == pytest.approx(expected.item())


def test_coarse_blocks_are_taught_past_a_dead_end() -> None:
    """The answer's own head is cut: what still reaches the coarse block is its own lesson."""
    torch.manual_seed(0)
    model = create_model("unet", encoder="unet", width=2, depth=2)
    assert isinstance(model, EncoderDecoder)
    assert isinstance(model.decoder, UNetDecoder)
    learner, loss = supervised(model, build_loss("bce"), asked())
    heads = [one for name, one in learner.named_parameters() if name.startswith("heads")]
    with torch.no_grad():
        for one in heads:
            one.fill_(0.5)
        for name, one in model.named_parameters():
            if name.startswith("head"):
                one.zero_()
    target, valid = torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    lesson = loss(learner(torch.rand(1, 3, 16, 16)), target, valid)
    coarse, fine = (next(block.parameters()) for block in model.decoder.blocks)
    of_coarse, of_fine = torch.autograd.grad(lesson, [coarse, fine])
    assert of_coarse.abs().sum() > 0
    assert of_fine.abs().sum() == 0


def test_a_run_ships_the_plain_network_and_resumes_to_the_same_bits(
    run: Callable[..., FitResult],
    listen: Any,
    network: Callable[..., torch.nn.Module],
    tmp_path: Path,
) -> None:
    """The heads are kept in checkpoints and nowhere else."""

    def train(folder: str, **others: Any) -> FitResult:
        model = network(depth=2, dropout=0.2)
        return run(folder=tmp_path / folder, model=model, train__epochs=3, **others)

    def press(step: int) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    whole = train("whole", loss__deep_supervision=True)
    assert set(whole.best_state) == set(network(depth=2).state_dict())
    assert not same(whole, train("plain"))
    with pytest.raises(StoppedError, match="up to epoch 2, step 2"):
        train("parts", loss__deep_supervision=True, progress=listen(at_step=press))
    assert same(whole, train("parts", loss__deep_supervision=True, resume=True))


def same(one: FitResult, other: FitResult) -> bool:
    return all(np.array_equal(one.best_state[key], other.best_state[key]) for key in one.best_state)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_network_without_side_maps_is_refused(name: str) -> None:
    with pytest.raises(
        UsageError, match=f"the decoder of {asked(name).model.name} has no maps on its way"
    ):
        check_model(lambda: create_model(**asked(name).model.arguments()), asked(name))
