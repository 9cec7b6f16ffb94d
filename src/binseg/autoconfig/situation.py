"""What a rule knows, and what it gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from binseg.autoconfig.fingerprint import Fingerprint

__all__ = ["Machine", "Setting", "Situation"]

USUAL_STEP = 0.3
"""Millions of pixels in a step, such as 16 inputs of 128x128 or 8 of 192x192."""
Value = object
"""Of a setting: what a recipe's field takes."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One line of a plan."""

    key: str
    """As in a recipe: section.field."""
    value: Value
    reason: str
    """One clause, with the figures that decided."""
    is_given: bool = False
    """Whether the user gave the value, so that no rule decided it."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the run will compute on."""

    device: str
    """cpu or cuda."""
    cores: int
    seconds_per_megapixel: Mapping[str, float]
    """Of training inputs, forward, backward and augmentation, by model; measured."""
    seconds_per_step: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """What a step takes however few its pixels are, by model."""
    free_bytes: int | None = None
    """Memory of the device."""
    bytes_per_megapixel: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Of training inputs, by model."""

    def typical(self, model: str) -> float:
        """Seconds for a million pixels of training inputs, in steps of a usual size."""
        return self.seconds_per_megapixel[model] + self.seconds_per_step.get(model, 0) / USUAL_STEP


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A data set, a machine, a budget, and what has been decided so far."""

    fingerprint: Fingerprint
    machine: Machine
    budget: float | None
    """Seconds for the whole run; None where time doesn't matter."""
    decided: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def training_seconds(self) -> float | None:
        """What of the budget is likely left for the steps."""
        if self.budget is None:
            return None
        return max(0.4 * self.budget, 0.82 * self.budget - 15.0)

    def after(self, settings: "tuple[Setting, ...] | list[Setting]") -> "Situation":
        """The situation once these are decided too."""
        decided = {**self.decided, **{one.key: one.value for one in settings}}
        return Situation(
            fingerprint=self.fingerprint,
            machine=self.machine,
            budget=self.budget,
            decided=decided,
        )

    def number(self, key: str) -> float:
        """A decided number."""
        value = self.decided[key]
        assert isinstance(value, int | float), (key, value)
        return float(value)

    def text(self, key: str) -> str:
        """A decided word."""
        value = self.decided[key]
        assert isinstance(value, str), (key, value)
        return value
