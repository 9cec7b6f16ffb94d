"""How far a run is, by its epochs or by the clock."""

import pytest

from binseg.config import Recipe
from binseg.config.recipe import InputConfig, TrainConfig
from binseg.training.clock import Clock


class Seconds:
    """Seconds that the test counts."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


RECIPE = Recipe(train=TrainConfig(epochs=10))


def test_without_a_budget_the_epochs_decide() -> None:
    """Each is its share, and the sizes are the recipe's."""
    recipe = Recipe(input=InputConfig(size=64), train=TrainConfig(epochs=10, progressive={32: 0.4}))
    clock = Clock(recipe, seconds=None)
    assert [clock.share(epoch) for epoch in (0, 2.5, 10)] == [0, 0.25, 1]
    assert [clock.training_size(epoch) for epoch in range(10)] == [32] * 4 + [64] * 6
    assert not clock.is_over
    assert not clock.is_timed


def test_with_a_budget_the_clock_decides() -> None:
    """The share is that of the time for steps, and ends at 1; a validation's time is kept aside."""
    seconds = Seconds()
    clock = Clock(RECIPE, seconds=200.0, clock=seconds)
    assert clock.share(0) == 0
    clock.validated(20.0)
    seconds.now += 90
    clock.read()
    assert clock.share(5) == clock.time_share == pytest.approx(0.5)
    over = []
    for passed in (89, 1, 1000):
        seconds.now += passed
        clock.read()
        over.append(clock.is_over)
    assert over == [False, True, True]
    assert clock.share(7) == 1


def test_an_epoch_keeps_the_size_that_it_began_with() -> None:
    """Sizes change between epochs, where the time says."""
    seconds = Seconds()
    recipe = Recipe(input=InputConfig(size=64), train=TrainConfig(progressive={32: 0.5}))
    clock = Clock(recipe, seconds=100.0, clock=seconds)
    seconds.now += 40
    clock.read()
    assert clock.training_size(3) == 32
    seconds.now += 20
    clock.read()
    assert clock.training_size(3) == 32
    assert clock.training_size(4) == 64


def test_a_long_validation_never_takes_all_of_the_time() -> None:
    """However slow it was, most of the time remains for learning."""
    clock = Clock(RECIPE, seconds=100.0, clock=Seconds())
    clock.validated(1000.0)
    clock.read()
    assert not clock.is_over


def test_a_resumed_run_goes_on_where_it_was_in_time() -> None:
    """What lies between does not count; sizes stay as they were."""
    seconds = Seconds()
    recipe = Recipe(input=InputConfig(size=64), train=TrainConfig(progressive={32: 0.5}))
    clock = Clock(recipe, seconds=100.0, clock=seconds)
    size = clock.training_size(0)
    seconds.now += 60
    state = clock.state_dict()
    seconds.now += 10_000
    resumed = Clock(recipe, seconds=100.0, clock=seconds)
    resumed.load_state_dict(state)
    assert resumed.elapsed == pytest.approx(60)
    assert resumed.training_size(0) == size == 32
