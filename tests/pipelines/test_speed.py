"""How fast a machine trains: a line through two steps, or told from the network that was timed."""

from types import SimpleNamespace

import pytest
from torch import nn

from binseg.autoconfig import Machine
from binseg.config import Recipe, load_recipe
from binseg.pipelines import speed
from binseg.progress import SILENT


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Seconds of a step and of a million pixels by network, instead of real steps."""
    costs = {"unet-compact": (0.03, 0.5), "unet-small": (0.02, 0.8), "unet": (0.01, 1.0)}

    def profile(model: nn.Module, recipe: Recipe, *_: object, **__: object) -> SimpleNamespace:
        step, megapixel = costs[recipe.model.name]
        pixels = recipe.train.batch_size * recipe.input.size**2
        return SimpleNamespace(step_seconds=step + megapixel * pixels / 1e6)

    monkeypatch.setattr(speed, "profile_steps", profile)
    monkeypatch.setattr(speed, "estimate_memory", lambda *_, **__: SimpleNamespace(per_input=1))
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    return costs


def measure(budget: float) -> Machine:
    asked = load_recipe(sections={"train": {"device": "cpu", "precision": "fp32"}})
    return speed.measure_machine(asked, {}, budget, SILENT)


@pytest.mark.parametrize("budget", [120.0, 1200.0])
def test_two_steps_tell_a_line(steps: dict[str, tuple[float, float]], budget: float) -> None:
    """What a step costs, and what a pixel adds, for each network that the rules choose from."""
    machine = measure(budget)
    for name, (step, megapixel) in steps.items():
        assert machine.seconds_per_step[name] == pytest.approx(step)
        assert machine.seconds_per_megapixel[name] == pytest.approx(megapixel)
        assert machine.typical(name) == pytest.approx(megapixel + step / 0.3)


def test_a_slow_machine_is_told_from_one_network(steps: dict[str, tuple[float, float]]) -> None:
    """Where the others would take longer than the time for measuring."""
    steps["unet-compact"] = (1.0, 20.0)
    machine = measure(1200.0)
    assert machine.seconds_per_megapixel["unet"] == pytest.approx(20 * 2.1)
    assert machine.seconds_per_step["unet"] == pytest.approx(1.0)


def test_noise_gives_no_nonsense(steps: dict[str, tuple[float, float]]) -> None:
    """A larger step that took no longer than the smaller one still has a speed."""
    steps["unet-compact"] = (0.03, -0.1)
    machine = measure(1200.0)
    assert machine.seconds_per_megapixel["unet-compact"] > 0
    assert machine.seconds_per_step["unet-compact"] == 0
