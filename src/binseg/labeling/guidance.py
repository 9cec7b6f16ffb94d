"""Guidance for whoever labels: the next image, the engines' honest score, and when to stop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from binseg.metrics.scores import bootstrap_interval
from binseg.types import Figure

RULES = ("random", "uncertainty")
"""random: foreground-aware, the default; uncertainty: where the model doubts, no two alike."""
_EMPTY_SHARE = 0.0005  # predicted foreground below which an image counts as empty
_EMPTY_CHANCE = 0.2  # chance of an empty image against that of another
_THUMB = 16


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The facts about an unlabelled image by which it is chosen."""

    foreground: float  # share of the image that is predicted to be foreground
    doubt: float  # mean of 1 - |2p - 1|: 0 where the model is sure of each pixel, 1 where of none
    look: Float[np.ndarray, " D"]  # its colours and shape, for telling images apart


def outlook_of(rgb_HW3: np.ndarray, probability_hw: np.ndarray | None) -> Outlook:
    """Sum up an image and the prediction for it."""
    thumb = np.asarray(Image.fromarray(rgb_HW3).resize((_THUMB, _THUMB), Image.Resampling.BOX))
    look = thumb.astype(np.float32).ravel() / 255
    if probability_hw is None:
        return Outlook(foreground=1.0, doubt=1.0, look=look)
    p = np.asarray(probability_hw, np.float32)
    # Where nothing is near a border all is sure; the mean over what is in question ranks.
    doubt_hw = 1 - np.abs(2 * p - 1)
    in_question = (p > 0.5) | (doubt_hw > 0.2)
    doubt = float(doubt_hw[in_question].mean()) if in_question.any() else 0.0
    return Outlook(foreground=float((p > 0.5).mean()), doubt=doubt, look=look)


def rank(
    outlooks: Mapping[str, Outlook],
    *,
    rule: str = "random",
    seed: int = 0,
    labelled: Sequence[Outlook] = (),
) -> list[str]:
    """Order images, the one to label next first; `uncertainty` avoids the like of `labelled`."""
    names = sorted(outlooks)
    random = np.random.default_rng(seed)
    if rule == "random":
        # Efraimidis and Spirakis: by u^(1/weight) the order is a weighted draw without replacement.
        weights = [_EMPTY_CHANCE if outlooks[n].foreground < _EMPTY_SHARE else 1.0 for n in names]
        keys = random.random(len(names)) ** (1 / np.array(weights, float))
        return [names[place] for place in np.argsort(-keys)]

    def apart(name: str, other: Outlook) -> float:
        return float(np.linalg.norm(outlooks[name].look - other.look))

    nearest = {name: min((apart(name, o) for o in labelled), default=1.0) for name in names}
    ordered = []
    while nearest:
        best = max(nearest, key=lambda name: outlooks[name].doubt * nearest[name])
        ordered.append(best)
        del nearest[best]
        nearest = {name: min(d, apart(name, outlooks[best])) for name, d in nearest.items()}
    return ordered


MORE = 20  # further masks whose worth is told
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
        facts: Any = {"num_checked": len(latest), "curve": curve, "gain": expected_gain(curve)}
        found.append(Standing(engine=engine, dice=value, **facts))
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
