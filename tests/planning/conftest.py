"""What the tests of the planning room share: facts and machines to plan for."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest

from binseg.planning import Fingerprint, Machine, Situation
from binseg.planning.fingerprint import SCALES, SIZES, Intensities
from binseg.planning.orientation import Symmetry

NO_UP = Symmetry(share=0.0, p=0.5, num=100)

PHOTOS = Fingerprint(
    num_train=700,
    num_val=150,
    num_test=150,
    num_units=700,
    is_stack=False,
    height=(480.0, 480.0, 480.0),
    width=(640.0, 640.0, 640.0),
    aspect=(1.33, 1.33, 1.33),
    channels=3,
    dtype="uint8",
    is_grey=False,
    range_used=(0.7, 0.9, 1.0),
    by_dtype=Intensities(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
    by_percentile=Intensities(mean=(0.6, 0.5, 0.4), std=(0.3, 0.3, 0.3)),
    foreground=(0.1, 0.3, 0.5),
    mean_foreground=0.3,
    empty_share=0.0,
    num_objects=1.0,
    diameter=(100.0, 200.0, 300.0),
    spread_of_diameter=(0.2, 0.2),
    thin=30.0,
    thick=100.0,
    kept_at_size=dict.fromkeys(SIZES, 0.995),
    kept_at_scale=dict.fromkeys(SCALES, 0.99),
    up_down=NO_UP,
    left_right=NO_UP,
)
"""Large things in photos."""
CRACKS = replace(
    PHOTOS,
    num_train=42,
    num_units=42,
    num_val=9,
    height=(320.0, 320.0, 320.0),
    width=(480.0, 480.0, 480.0),
    mean_foreground=0.01,
    kept_at_size={size: min(1.0, size / 600) for size in SIZES},
    kept_at_scale={scale: min(1.0, 0.5 + scale / 2) for scale in SCALES} | {1.0: 1.0},
)
"""Lines of two pixels."""


@pytest.fixture
def photos() -> Fingerprint:
    return PHOTOS


@pytest.fixture
def cracks() -> Fingerprint:
    return CRACKS


@pytest.fixture
def machine() -> Machine:
    """Two cores: seconds for a million pixels of training inputs."""
    return Machine(
        device="cpu",
        cores=2,
        seconds_per_megapixel=MappingProxyType(
            {"unet-compact": 0.4, "unet-small": 0.75, "unet": 1.2}
        ),
        free_bytes=16 * 10**9,
        bytes_per_megapixel=MappingProxyType({"unet-compact": 5e8}),
    )


@pytest.fixture
def situation(machine: Machine) -> Callable[..., Situation]:
    """A situation with these settings decided; `unit__field` stands for unit.field."""

    def make(facts: Fingerprint, *, budget: float | None = 1200.0, **decided: object) -> Situation:
        table = {name.replace("__", "."): value for name, value in decided.items()}
        return Situation(fingerprint=facts, machine=machine, budget=budget, decided=table)

    return make
