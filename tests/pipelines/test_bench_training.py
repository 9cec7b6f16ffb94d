import numpy as np
import pytest
import torch
from torch import nn

from binseg.config.recipe import InputConfig, ModelConfig, Recipe, TrainConfig
from binseg.data.cache import PixelCache
from binseg.errors import TrainingError
from binseg.models import create_model
from binseg.pipelines import bench_training
from binseg.pipelines.bench_training import (
    PHASES,
    RateTrial,
    Steps,
    find_batch_size,
    find_learning_rate,
    profile_steps,
    suggested_rate,
)
from binseg.training import devices

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
    recipe = RECIPE.model_copy(
        update={"augment": RECIPE.augment.model_copy(update={"preset": "none"})}
    )
    trials = find_learning_rate(steps(recipe), 30)
    assert min(trial.loss for trial in trials) < trials[0].loss
    assert [trial.lr for trial in trials] == sorted(trial.lr for trial in trials)


def test_the_batch_grows_while_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes double; what doesn't fit into the free memory is not tried."""
    monkeypatch.setattr(bench_training, "GAIN", 100.0)  # every doubling pays
    trials = find_batch_size(steps, RECIPE, num=8, num_steps=1)
    assert [trial.batch_size for trial in trials] == [2, 4, 8]
    assert trials[0].memory < trials[1].memory < trials[2].memory
    room = trials[1].memory / 0.8 + 1
    monkeypatch.setattr(devices, "available_memory", lambda device: room)
    fewer = find_batch_size(steps, RECIPE, num=8, num_steps=1)
    assert [trial.batch_size for trial in fewer] == [2, 4]
    monkeypatch.setattr(devices, "available_memory", lambda device: 1000)
    with pytest.raises(TrainingError, match=r"lower input\.size"):
        find_batch_size(steps, RECIPE, num=8, num_steps=1)


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
