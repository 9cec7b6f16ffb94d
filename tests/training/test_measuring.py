import numpy as np
import pytest
import torch
from torch import nn

from binseg.config.recipe import InputConfig, ModelConfig, Recipe, TrainConfig
from binseg.data.cache import PixelCache
from binseg.errors import TrainingError
from binseg.models import create_model
from binseg.training import measuring
from binseg.training.devices import available_memory, estimate_memory
from binseg.training.measuring import (
    PHASES,
    RateTrial,
    find_batch_size,
    find_learning_rate,
    profile_steps,
    suggested_rate,
)

CPU = torch.device("cpu")
RECIPE = Recipe(
    input=InputConfig(size=32),
    model=ModelConfig(name="unet-compact", options={"width": 4}),
    train=TrainConfig(batch_size=2),
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model(**ModelConfig(name="unet-compact", options={"width": 4}).arguments())


@pytest.fixture
def cache() -> PixelCache:
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    return PixelCache(
        inputs_NHWC=inputs,
        targets_NHW=(inputs[..., 0] > 128).astype(np.uint8),
        record_of_N=np.arange(8),
    )


def test_every_phase_of_a_step_is_timed(cache: PixelCache) -> None:
    """Each phase takes time, and throughput is inputs over their sum."""
    profile = profile_steps(
        network(), RECIPE, cache, device=CPU, bf16=False, num_steps=2, operations=True
    )
    assert tuple(profile.seconds) == PHASES
    assert all(seconds > 0 for seconds in profile.seconds.values())
    assert profile.inputs_per_second == pytest.approx(2 / sum(profile.seconds.values()))
    assert "aten::convolution_backward" in {one.name for one in profile.operations}
    assert 0 < sum(one.share for one in profile.operations) <= 1


def test_steps_are_measured_at_full_size_and_with_whole_batches(cache: PixelCache) -> None:
    """Neither a progressive start nor an epoch's smaller last batch is taken for the usual step."""
    train = TrainConfig(batch_size=3, progressive={16: 0.9})
    recipe = RECIPE.model_copy(update={"train": train})
    sizes = []
    model = network()
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    profile = profile_steps(model, recipe, cache, device=CPU, bf16=False, num_steps=4)
    assert profile.num_inputs == 3  # of 3, 3 and 2 in turn
    assert set(sizes) == {32}


def test_the_measured_steps_are_training_steps(cache: PixelCache) -> None:
    """The weights move as training would move them: the loss of a fixed batch falls."""
    recipe = RECIPE.model_copy(
        update={"augment": RECIPE.augment.model_copy(update={"preset": "none"})}
    )
    model = network()
    trials = find_learning_rate(model, recipe, cache, device=CPU, bf16=False, num_steps=30)
    assert min(trial.loss for trial in trials) < trials[0].loss
    assert [trial.lr for trial in trials] == sorted(trial.lr for trial in trials)


def test_the_batch_grows_while_that_pays(
    cache: PixelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes double; what doesn't fit into the free memory is not tried."""
    monkeypatch.setattr(measuring, "GAIN", 100.0)  # every doubling pays
    trials = find_batch_size(network, RECIPE, cache, device=CPU, bf16=False, num_steps=1)
    assert [trial.batch_size for trial in trials] == [2, 4, 8]
    assert trials[0].memory < trials[1].memory < trials[2].memory
    monkeypatch.setattr(measuring, "available_memory", lambda device: trials[1].memory / 0.8 + 1)
    fewer = find_batch_size(network, RECIPE, cache, device=CPU, bf16=False, num_steps=1)
    assert [trial.batch_size for trial in fewer] == [2, 4]
    monkeypatch.setattr(measuring, "available_memory", lambda device: 1000)
    with pytest.raises(TrainingError, match=r"lower input\.size"):
        find_batch_size(network, RECIPE, cache, device=CPU, bf16=False, num_steps=1)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([1.0, 0.95, 0.8, 0.6], 1e-4), ([1.0, 1.0, 1.001, 1.2], None), ([], None)],
)
def test_the_suggested_rate_lies_where_the_fall_begins(
    losses: list[float], expected: float | None
) -> None:
    """A quarter of the fall decides; a loss that never falls suggests nothing."""
    trials = [RateTrial(lr=10.0 ** (at - 6), loss=loss) for at, loss in enumerate(losses)]
    found = suggested_rate(trials)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("name", ["unet-compact", "unet-small", "resnet34-unet"])
def test_memory_grows_with_the_area_and_the_weights(name: str) -> None:
    """Maps are counted by the pixel, weights once; neither weights nor statistics change."""
    model = create_model(**ModelConfig(name=name, options={"width": 8}).arguments()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = estimate_memory(model, RECIPE, size=64)
    large = estimate_memory(model, RECIPE, size=128)
    assert large.per_input == pytest.approx(4 * small.per_input, rel=0.1)
    weights = 4 * sum(one.numel() for one in model.parameters())
    assert small.fixed == pytest.approx(4 * weights, rel=0.01)  # with gradients, two moments
    assert small.total == small.fixed + 2 * small.per_input
    assert small.largest_batch(small.fixed + 5 * small.per_input) == 5
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_estimate_counts_what_autograd_keeps() -> None:
    """One convolution and a sigmoid keep their input and output: known to the byte."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
    estimate = estimate_memory(plain, RECIPE, size=16)
    kept = 4 * 16 * 16 * (3 + 4)
    assert estimate.per_input == round(2 * kept)


def test_free_memory_is_less_than_all() -> None:
    """The system's own figure, in bytes."""
    free = available_memory(CPU)
    assert free is None or 10**7 < free < 2**50
