"""How fast a machine trains: a line through two steps, or told from the network that was timed."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from binseg.autoconfig import Machine
from binseg.config import Recipe, load_recipe
from binseg.pipelines import budget as speed
from binseg.progress import SILENT
from binseg.training import devices


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Seconds of a step and of a million pixels by network, instead of real steps."""
    costs = {"unet-compact": (0.03, 0.5), "unet-small": (0.02, 0.8), "unet": (0.01, 1.0)}
    costs |= {"lite0-unet": (0.05, 1.2), "resnet18-unet": (0.02, 2.0)}

    def seconds(recipe: Recipe, num_steps: int) -> tuple[float, int]:
        step, megapixel = costs[recipe.model.name]
        pixels = recipe.train.batch_size * recipe.input.size**2
        return step + megapixel * pixels / 1e6, recipe.train.batch_size

    monkeypatch.setattr(speed, "Steps", lambda model, recipe, *_, **__: recipe)
    monkeypatch.setattr(speed, "time_steps", seconds)
    little = SimpleNamespace(per_input=1)
    monkeypatch.setattr(devices, "estimate_memory", lambda *_, **__: little)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(speed, "weights_path", lambda _: None)
    return costs


def measure(budget: float, **given: object) -> Machine:
    asked = load_recipe(sections={"train": {"device": "cpu", "precision": "fp32"}})
    settings = {name.replace("__", "."): value for name, value in given.items()}
    return speed.measure_machine(asked, settings, budget, SILENT)


FROM_SCRATCH = {"unet-compact", "unet-small", "unet"}


@pytest.mark.parametrize("budget", [120.0, 1200.0])
def test_two_steps_tell_a_line(steps: dict[str, tuple[float, float]], budget: float) -> None:
    """What a step costs, and what a pixel adds, for each network that the rules choose from."""
    machine = measure(budget)
    assert set(machine.seconds_per_megapixel) == FROM_SCRATCH
    for name, (step, megapixel) in ((name, steps[name]) for name in FROM_SCRATCH):
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


def test_networks_from_imagenet_are_measured_where_their_weights_are(
    steps: dict[str, tuple[float, float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their files decide, or who asks for them; who wants none gets the others."""
    assert set(measure(1200.0, model__encoder_weights="imagenet").seconds_per_step) == {
        "lite0-unet",
        "unet",
    }
    monkeypatch.setattr(
        speed, "weights_path", lambda one: tmp_path if "lite0" in one.file else None
    )
    machine = measure(1200.0)
    assert machine.pretrained == {"efficientnet_lite0"}
    assert machine.seconds_per_megapixel["lite0-unet"] == pytest.approx(steps["lite0-unet"][1])
    assert set(machine.seconds_per_step) == {"lite0-unet", "unet"}
    assert set(measure(1200.0, model__encoder_weights=None).seconds_per_step) == FROM_SCRATCH


def test_measuring_ends_where_small_steps_take_its_time(
    steps: dict[str, tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an overloaded machine the first trial tells all: each look at the clock is a minute."""
    minutes = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 60.0 * next(minutes))
    monkeypatch.setattr(speed, "time", clock)
    machine = measure(300.0)
    step, megapixel = steps["unet-compact"]
    small = step + megapixel * 2 * 64**2 / 1e6
    assert machine.seconds_per_step["unet-compact"] == pytest.approx(small)
    assert machine.seconds_per_megapixel["unet-compact"] == pytest.approx(28 * small)
