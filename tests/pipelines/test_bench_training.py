import numpy as np
import pytest
import torch
from torch import nn

from binseg.config.recipe import InputConfig, ModelConfig, Recipe, TrainConfig
from binseg.data.cache import PixelCache
from binseg.models import create_model
from binseg.pipelines.bench_training import PHASES, Steps, profile_steps

CPU = torch.device("cpu")
RECIPE = Recipe(
    input=InputConfig(size=32),
    model=ModelConfig(name="unet-compact", options={"width": 4}),
    train=TrainConfig(batch_size=2),
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model(**ModelConfig(name="unet-compact", options={"width": 4}).arguments())


def steps(recipe: Recipe = RECIPE, model: nn.Module | None = None) -> Steps:
    """The steps of a network on eight images."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    cache = PixelCache(
        inputs_NHWC=inputs,
        targets_NHW=(inputs[..., 0] > 128).astype(np.uint8),
        record_of_N=np.arange(8),
    )
    return Steps(model or network(), recipe, cache, device=CPU, precision="fp32")


def test_every_phase_of_a_step_is_timed() -> None:
    """Each phase takes time, and throughput is inputs over their sum."""
    profile = profile_steps(steps(), 2)
    assert tuple(profile.seconds) == PHASES
    assert all(seconds > 0 for seconds in profile.seconds.values())
    assert profile.inputs_per_second == pytest.approx(2 / sum(profile.seconds.values()))
    assert "aten::convolution_backward" in {one["name"] for one in profile.operations}
    assert 0 < sum(one["share"] for one in profile.operations) <= 1


def test_steps_are_measured_at_full_size_and_with_whole_batches() -> None:
    """Neither a progressive start nor an epoch's smaller last batch is taken for the usual step."""
    train = TrainConfig(batch_size=3, progressive={16: 0.9})
    recipe = RECIPE.model_copy(update={"train": train})
    sizes = []
    model = network()
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    profile = profile_steps(steps(recipe, model), 4)
    assert profile.num_inputs == 3  # of 3, 3 and 2 in turn
    assert set(sizes) == {32}


def test_the_measured_steps_are_training_steps() -> None:
    """The weights move as training would move them: the loss of a fixed batch falls."""
    preset = RECIPE.augment.model_copy(update={"preset": "none"})
    measured = steps(RECIPE.model_copy(update={"augment": preset}))
    losses = [measured.take()[0] for _ in range(24)]  # six passes over the eight images
    assert sum(losses[-4:]) < sum(losses[:4])
