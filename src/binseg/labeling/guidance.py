"""Guidance for whoever labels: the next image, the engines' honest score, and when to stop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from binseg.metrics.scores import bootstrap_interval
from binseg.types import Figure

_EMPTY_SHARE = 0.0005  # predicted foreground below which an image counts as empty
_EMPTY_CHANCE = 0.2  # chance of an empty image against that of another


def rank(shares: Mapping[str, float], *, seed: int = 0) -> list[str]:
    """Order images at random by their shares of predicted foreground, empty ones mostly late."""
    names = sorted(shares)
    # Efraimidis and Spirakis: by u^(1/weight) the order is a weighted draw without replacement.
    weights = [_EMPTY_CHANCE if shares[name] < _EMPTY_SHARE else 1.0 for name in names]
    keys = np.random.default_rng(seed).random(len(names)) ** (1 / np.array(weights, float))
    return [names[place] for place in np.argsort(-keys)]


MORE = 20  # further masks whose worth is shown
ENOUGH = 0.01  # gain of `MORE` masks below which one may stop
_LEAST_POINTS, _LAST_POINTS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Standing:
    """An engine's score on the check images, how it grew, and what more masks would add."""

    engine: str
    dice: Figure
    num_checked: int
    curve: tuple[tuple[int, float], ...]  # labelled images and mean Dice, as it was measured
    gain: float | None
    """Dice that `MORE` further masks would add by the curve; None where it doesn't tell yet."""

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data, with the sentence for people."""
        interval = self.dice.interval
        return {
            "engine": self.engine,
            "dice": self.dice.value,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "num_checked": self.num_checked,
            "curve": [list(point) for point in self.curve],
            "advice": self.advice,
        }

    @property
    def advice(self) -> str:
        """Say what more work would bring."""
        if self.gain is None:
            return "more check images will tell what further masks would add"
        told = f"{MORE} more masks would add about {max(self.gain, 0.0):.2f}"
        return f"{told}: you may stop" if self.gain < ENOUGH else told


def standings(scores: Sequence[tuple[str, int, Sequence[float]]]) -> list[Standing]:
    """Sum up scores in order of time (engine, labelled images, Dice of each check image)."""
    found = []
    for engine in dict.fromkeys(engine for engine, _, _ in scores):
        own = [(num, list(dice)) for one, num, dice in scores if one == engine and dice]
        if not own:
            continue
        latest = own[-1][1]
        # A later score of as many labelled images replaces the earlier one.
        curve = tuple(sorted({num: float(np.mean(dice)) for num, dice in own}.items()))
        value = Figure(value=float(np.mean(latest)), interval=bootstrap_interval(latest))
        gain = expected_gain(curve)
        found.append(
            Standing(engine=engine, dice=value, num_checked=len(latest), curve=curve, gain=gain)
        )
    return sorted(found, key=lambda one: -one.dice.value)


def expected_gain(curve: Sequence[tuple[int, float]]) -> float | None:
    """Read from a learning curve what `MORE` masks would add, within a Dice of 1.

    Scores grow about as the logarithm of the number of masks: a line through the last points goes
    on, if it doesn't fall.

    >>> round(expected_gain([(10, 0.7), (20, 0.75), (40, 0.8)]), 3)
    0.029
    """
    points = [(num, score) for num, score in curve if num > 0][-_LAST_POINTS:]
    if len(points) < _LEAST_POINTS:
        return None
    logs, dices = np.log([num for num, _ in points]), np.array([score for _, score in points])
    slope = float(np.polyfit(logs, dices, 1)[0])
    num, score = points[-1]
    return float(np.clip(slope * np.log((num + MORE) / num), 0.0, 1.0 - score))
