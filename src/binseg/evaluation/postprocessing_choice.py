"""Which small corrections of masks help, told by validation; what a model brings is the default."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from binseg.metrics import count, score_image
from binseg.postprocess import NOTHING, PostProcessing, clean

__all__ = ["Answered", "choose_postprocessing"]

LEAST_IMAGES = 10
"""Below, a mean gain and its error mean nothing."""
MOST_PIXELS = 60_000_000
"""240 MB; of the validation answers that are kept for the choice; of more, the first ones."""
LEAST_GAIN = 0.001
"""Dice below which a correction isn't worth having to be explained."""
ERRORS = 2.0
"""Standard errors that a gain must exceed: several corrections are tried, so that one would do so
by chance too often."""
SINGLE = 0.95
"""Share of the true masks that must be one object before the largest one alone is tried."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A validation image: what the model answers at its threshold, and the truth."""

    mask_HW: Bool[np.ndarray, "H W"]
    truth_HW: Bool[np.ndarray, "H W"]
    valid_HW: Bool[np.ndarray, "H W"]


def choose_postprocessing(answers: Sequence[Answered]) -> tuple[PostProcessing, str]:
    """Try each correction, and keep those that raise the mean Dice beyond chance.

    Args:
        answers: images that the model wasn't trained on.

    Returns:
        The corrections, and a clause about them for people.
    """
    if len(answers) < LEAST_IMAGES:
        return NOTHING, f"not tried: {len(answers)} validation images are too few to tell"
    before_N = _dices(answers, NOTHING)
    chosen, dice_N = NOTHING, before_N
    for changes in _candidates(answers):
        tried = replace(chosen, **changes)  # type: ignore[arg-type]
        tried_N = _dices(answers, tried)
        if _is_better(tried_N - dice_N):
            chosen, dice_N = tried, tried_N
    if chosen.is_empty:
        return NOTHING, "none helps beyond chance on validation"
    gain_N = dice_N - before_N
    error = float(gain_N.std(ddof=1) / np.sqrt(len(gain_N)))
    return chosen, (
        f"{chosen.describe()}: validation Dice {gain_N.mean():+.4f} (standard error {error:.4f})"
    )


def _candidates(answers: Sequence[Answered]) -> list[dict[str, int | bool]]:
    """Corrections worth a try: areas follow from the true objects' areas."""
    areas, numbers = [], []
    for one in answers:
        labels_HW, num = ndimage.label(one.truth_HW, structure=np.ones((3, 3), bool))
        areas.append(np.bincount(labels_HW.ravel(), minlength=num + 1)[1:])
        numbers.append(num)
    every = np.concatenate(areas)
    if not len(every):
        return []
    candidates: list[dict[str, int | bool]] = []
    if np.mean([num <= 1 for num in numbers]) >= SINGLE:
        candidates.append({"largest_only": True})
    # Only specks that are smaller than almost every true object are removed.
    smallest, typical = np.quantile(every, 0.02), np.median(every)
    candidates += [{"min_area": int(share * smallest)} for share in (0.25, 0.5, 1.0)]
    candidates += [{"fill_holes": int(share * typical)} for share in (0.05, 0.25)]
    return [one for one in candidates if next(iter(one.values())) > 0]


def _dices(answers: Sequence[Answered], postprocessing: PostProcessing) -> np.ndarray:
    """Dice of each image, empty masks as everywhere else."""
    values = []
    for one in answers:
        counts = count(clean(one.mask_HW, postprocessing), one.truth_HW, one.valid_HW)
        values.append(score_image("", {"original": counts}).scores["original"]["dice"])
    return np.array(values)


def _is_better(gain_N: np.ndarray) -> bool:
    error = gain_N.std(ddof=1) / np.sqrt(len(gain_N))
    return bool(gain_N.mean() > max(LEAST_GAIN, ERRORS * error))
