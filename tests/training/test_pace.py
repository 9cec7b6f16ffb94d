"""How far a run is, by its epochs or by the clock."""

import pytest

from binseg.config import Recipe
from binseg.config.recipe import InputConfig, TrainConfig
from binseg.errors import TrainingError
from binseg.training.pace import Pace


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


RECIPE = Recipe(train=TrainConfig(epochs=10))


def test_without_a_budget_the_epochs_decide() -> None:
    """Each is its share, and the sizes are the recipe's."""
    recipe = Recipe(input=InputConfig(size=64), train=TrainConfig(epochs=10, progressive={32: 0.4}))
    pace = Pace(recipe, seconds=None)
    assert [pace.share(epoch) for epoch in (0, 2.5, 10)] == [0, 0.25, 1]
    assert [pace.training_size(epoch) for epoch in range(10)] == [32] * 4 + [64] * 6
    assert not pace.is_over
    assert not pace.is_timed


def test_with_a_budget_the_clock_decides() -> None:
    """The share is that of the time for steps, and ends at 1; a validation's time is kept aside."""
    clock = Clock()
    pace = Pace(RECIPE, seconds=200.0, clock=clock)
    assert pace.share(0) == 0
    pace.validated(20.0)
    clock.now += 90
    assert pace.share(5) == pace.time_share == pytest.approx(0.5)
    over = []
    for seconds in (89, 1, 1000):
        clock.now += seconds
        over.append(pace.is_over)
    assert over == [False, True, True]
    assert pace.share(7) == 1


def test_an_epoch_keeps_the_size_that_it_began_with() -> None:
    """Sizes change between epochs, where the time says."""
    clock = Clock()
    recipe = Recipe(input=InputConfig(size=64), train=TrainConfig(progressive={32: 0.5}))
    pace = Pace(recipe, seconds=100.0, clock=clock)
    clock.now += 40
    assert pace.training_size(3) == 32
    clock.now += 20
    assert pace.training_size(3) == 32
    assert pace.training_size(4) == 64


def test_a_long_validation_never_takes_all_of_the_time() -> None:
    """However slow it was, most of the time remains for learning."""
    pace = Pace(RECIPE, seconds=100.0, clock=Clock())
    pace.validated(1000.0)
    assert not pace.is_over


def test_a_resumed_run_goes_on_where_it_was_in_time() -> None:
    """What lies between does not count; sizes stay as they were."""
    clock = Clock()
    recipe = Recipe(input=InputConfig(size=64), train=TrainConfig(progressive={32: 0.5}))
    pace = Pace(recipe, seconds=100.0, clock=clock)
    size = pace.training_size(0)
    clock.now += 60
    state = pace.state_dict()
    clock.now += 10_000
    resumed = Pace(recipe, seconds=100.0, clock=clock)
    resumed.load_state_dict(state)
    assert resumed.elapsed == pytest.approx(60)
    assert resumed.training_size(0) == size == 32
    with pytest.raises(TrainingError, match="no record of its time"):
        resumed.load_state_dict({})
