"""The order in which images are labelled: at random, those that seem empty seldom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

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
