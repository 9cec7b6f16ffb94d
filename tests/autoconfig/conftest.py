"""Shared by the tests of autoconfig: thin objects, and the situation that a rule sees."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from binseg.autoconfig import Fingerprint, Machine, Situation
from binseg.autoconfig.fingerprint import SCALES, SIZES
from binseg.autoconfig.planning import RULES


@pytest.fixture
def cracks(photos: Fingerprint) -> Fingerprint:
    """Lines of two pixels."""
    return replace(
        photos,
        num_train=42,
        num_units=42,
        num_val=9,
        height=(320.0, 320.0, 320.0),
        width=(480.0, 480.0, 480.0),
        mean_foreground=0.01,
        kept_at_size={size: min(1.0, size / 600) for size in SIZES},
        kept_at_scale={scale: min(1.0, 0.5 + scale / 2) for scale in SCALES} | {1.0: 1.0},
    )


@pytest.fixture
def stocked(machine: Machine) -> Machine:
    """The machine with ImageNet weights of EfficientNet-Lite0."""
    seconds = {"lite0-unet": 0.8, "unet": 1.2}
    return replace(
        machine, seconds_per_megapixel=seconds, pretrained=frozenset({"efficientnet_lite0"})
    )


@pytest.fixture
def situation(machine: Machine) -> Callable[..., Situation]:
    """A situation with these settings decided; `unit__field` stands for unit.field."""

    def make(facts: Fingerprint, *, budget: float | None = 1200.0, **decided: object) -> Situation:
        table = {name.replace("__", "."): value for name, value in decided.items()}
        return Situation(fingerprint=facts, machine=machine, budget=budget, decided=table)

    return make


@pytest.fixture
def decide() -> Callable[..., dict[str, object]]:
    """Apply rules in turn, each seeing what those before it decided."""

    def apply(at: Situation, *keys: str) -> dict[str, object]:
        found: dict[str, object] = {}
        for key in keys:
            choice = RULES[key](at)
            if choice is not None:
                value, reason = choice
                assert reason, "every setting has its reason"
                found[key] = value
                at = at.having({key: value})
        return found

    return apply
