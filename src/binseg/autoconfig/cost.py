"""The cost model of a plan: how much a run sees in its time, and how long scoring takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from binseg.autoconfig.fingerprint import Fingerprint

Value = object  # the value of a setting: whatever the recipe's field takes
USUAL_STEP = 0.3  # megapixels of a step: 16 inputs of 128x128, or 8 of 192x192
STEP_SHARE = 0.88
"""Share of the epochs' time that is spent in steps; validation and files take the rest."""
SHRINK = ((0.5, 0.35), (0.75, 0.30))
"""Sizes of the first epochs relative to the last one, each with its share of the time."""
PATCH_SHRINK = ((0.5, 0.5),)
MIN_SIZE, MIN_PRETRAINED = 96, 128
"""Pixels; the deepest maps of smaller inputs have no more than 2x2 cells, and what ImageNet's
weights (trained at 224) tell of them is wrong."""
UNLIMITED_INPUTS = (20_000, 300_000)  # inputs of a run without a budget: at least, and at most
UNLIMITED_PASSES = 150
NO_COST: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device that trains, and each network's cost by megapixel of inputs and by step."""

    device: str  # cpu or cuda
    cores: int
    seconds_per_megapixel: Mapping[str, float]
    seconds_per_step: Mapping[str, float] = field(default_factory=lambda: NO_COST)
    free_bytes: int | None = None  # memory that is free on the device
    bytes_per_megapixel: Mapping[str, float] = field(default_factory=lambda: NO_COST)
    pretrained: frozenset[str] = frozenset()  # encoders whose ImageNet weights are on this machine

    def typical(self, model: str) -> float:
        """Seconds per million pixels of training inputs, in steps of the usual size."""
        return self.seconds_per_megapixel[model] + self.seconds_per_step.get(model, 0) / USUAL_STEP


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The data, the machine, the budget and the settings decided so far: all that a rule knows."""

    fingerprint: Fingerprint
    machine: Machine
    budget: float | None  # seconds for the whole run; None if time doesn't matter
    decided: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    """Settings by their keys, `section.field`; what the user gave is there from the start."""
    given: frozenset[str] = frozenset()  # keys of the settings that the user gave

    @property
    def training_seconds(self) -> float | None:
        """The part of the budget that will probably be left for training."""
        return None if self.budget is None else max(0.4 * self.budget, 0.82 * self.budget - 15.0)

    @property
    def is_tiled(self) -> bool:
        """True if the network sees patches."""
        return self.text("input.resize") == "tile"

    @property
    def is_pretrained(self) -> bool:
        """True if the encoder begins with weights that were trained before."""
        names = ("model.encoder_weights", "model.start_from")
        return any(self.decided.get(name) is not None for name in names)

    def having(self, settings: Mapping[str, Value]) -> "Situation":
        """Return the situation with these settings decided, too."""
        return replace(self, decided={**self.decided, **settings})

    def number(self, key: str) -> float:
        """Return a decided number."""
        value = self.decided[key]
        assert isinstance(value, int | float), (key, value)
        return float(value)

    def text(self, key: str) -> str:
        """Return a decided word."""
        value = self.decided[key]
        assert isinstance(value, str), (key, value)
        return value


Choice = tuple[Value, str] | None
"""A value and its reason, or None where the recipe's default stays."""
Rule = Callable[[Situation], Choice]


def first_sizes(at: Situation, size: int) -> dict[int, float]:
    """Return the sizes before the last one, with each one's share of the run."""
    least = MIN_PRETRAINED if at.is_pretrained else MIN_SIZE
    steps: dict[int, float] = {}
    for factor, share in PATCH_SHRINK if at.is_tiled else SHRINK:
        smaller = round(size * factor / 32) * 32
        if least <= smaller < size:
            steps[smaller] = steps.get(smaller, 0.0) + share
    return steps


def seen_megapixels(at: Situation, model: str) -> float:
    """Return how many million pixels of inputs a network is trained on within the budget."""
    seconds = at.training_seconds
    assert seconds is not None
    return STEP_SHARE * seconds / at.machine.typical(model)


def num_views(at: Situation, size: int) -> float:
    """Return how many inputs, at last of `size`, fit into the budget; smaller ones count alike."""
    steps = first_sizes(at, size)
    gain = 1 + sum(share * ((size / small) ** 2 - 1) for small, share in steps.items())
    return seen_megapixels(at, at.text("model.name")) / (size**2 / 1e6) * gain


def patch_passes(at: Situation, model: str) -> float:
    """Return how often patches cover the area of all training images within the budget."""
    facts, scale = at.fingerprint, at.number("input.scale")
    area = facts.num_train * facts.height[1] * facts.width[1] * scale**2 / 1e6
    return seen_megapixels(at, model) / area


def inputs_per_image(at: Situation) -> float:
    """Return how many inputs cover the typical image."""
    if not at.is_tiled:
        return 1.0
    reduced = at.number("input.scale") / at.number("input.size")
    height, width = at.fingerprint.height[1], at.fingerprint.width[1]
    return max(1.0, height * reduced) * max(1.0, width * reduced)


def num_inputs(at: Situation) -> float:
    """Return how many inputs the run sees: as the budget or its epochs allow, or enough."""
    if at.budget is not None:
        return num_views(at, int(at.number("input.size")))
    whole = at.fingerprint.num_train * inputs_per_image(at)
    if "train.epochs" in at.decided:
        each = at.decided.get("patches.per_epoch", at.decided.get("train.per_epoch"))
        return at.number("train.epochs") * (each if isinstance(each, int) else whole)
    low, high = UNLIMITED_INPUTS
    return min(max(UNLIMITED_PASSES * whole, low), high)


def run_seconds(at: Situation) -> float:
    """Return the budget, or about how long the epochs take that the user asked for."""
    if at.budget is not None:
        return at.budget
    if "train.epochs" not in at.decided:
        return math.inf
    size = at.number("input.size")
    return num_inputs(at) * size**2 / 1e6 * at.machine.typical(at.text("model.name"))


def num_passes(at: Situation) -> float:
    """Return how often the run sees each image; patches count by the area that they cover."""
    if at.is_tiled and at.budget is not None:
        return patch_passes(at, at.text("model.name"))
    return num_inputs(at) / (at.fingerprint.num_train * inputs_per_image(at))


def num_mirrored(at: Situation) -> int:
    """Return how many views of an image test-time augmentation averages, itself included."""
    return {"any": 4, "upright": 2}.get(at.text("augment.orientation"), 1)


def scoring_seconds(at: Situation) -> float:
    """Estimate the time to predict validation twice, a pixel at half its cost in training."""
    facts = at.fingerprint
    if at.is_tiled:
        pixels = facts.height[1] * facts.width[1] * at.number("input.scale") ** 2 * 1.2
    else:
        pixels = at.number("input.size") ** 2
    per_megapixel = 0.5 * at.machine.typical(at.text("model.name"))
    return 2 * facts.num_val * pixels / 1e6 * per_megapixel


def times(num: float) -> str:
    """Say how often in words.

    >>> times(0.2), times(1.3), times(1234.0)
    ('less than once', 'about once', '1,234 times')
    """
    words = {0: "less than once", 1: "about once", 2: "about twice"}
    return words.get(round(num), f"{num:,.0f} times")
