"""Thresholds that keep a promise about new images: risk control on the validation images.

A threshold is taken only where the validation images would be a surprise (5 % at most) if the
promise were false: the betting bound of Waudby-Smith and Ramdas (2024), which needs no normal
distribution and few images, walked along the thresholds from the safe end (Bates et al. 2021). Of
100 such calibrations at least 95 keep their promise; an ordinary conformal one keeps it on average.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, cast

import numpy as np
from jaxtyping import Float64, Num

from binseg.errors import DataError, UsageError, suggest
from binseg.metrics.probabilities import NUM_THRESHOLDS
from binseg.metrics.scores import score_table
from binseg.packaging import Guarantee

SURE = 0.95
"""Confidence of a guarantee."""
PROMISES = ("recall", "fpr", "dice")


def parse_guarantee(text: str) -> tuple[str, float]:
    """Read `recall=0.95`; UsageError for an unknown score, or a value outside of 0 to 1.

    >>> parse_guarantee("fpr=0.01")
    ('fpr', 0.01)
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in PROMISES:
        raise UsageError(
            f"--guarantee {text!r}: {suggest(name, PROMISES)}, for example recall=0.95"
        )
    try:
        wanted = float(value)
    except ValueError:
        wanted = math.nan
    if not 0 < wanted < 1:
        raise UsageError(f"--guarantee {text!r}: give a share between 0 and 1: {name}=0.95")
    return name, wanted


def choose_guaranteed(
    score: str,
    wanted: float,
    counts: Sequence[Num[np.ndarray, "T 4"]],
    *,
    groups: Sequence[Hashable],
    own_threshold: float,
) -> Guarantee:
    """Choose the threshold that keeps mean recall or Dice above, or mean fpr below, a value.

    `counts` are tp, fp, fn, tn of each image at each threshold; images of one group count as one,
    since they are alike. For the Dice the model's own threshold alone is tried: its best value is
    there, and one promise costs one test. Raises DataError where images are too few (it says how
    many are needed) or the model is too poor.
    """
    risk = wanted if score == "fpr" else 1 - wanted
    table_NT = np.stack([_losses(score, one) for one in counts])
    units_UT = np.stack(
        [
            table_NT[[index for index, one in enumerate(groups) if one == group]].mean(axis=0)
            for group in dict.fromkeys(groups)
        ]
    )
    units_UT = units_UT[np.random.default_rng(0).permutation(len(units_UT))]
    walk = range(NUM_THRESHOLDS)
    if score == "fpr":
        walk = range(NUM_THRESHOLDS - 1, -1, -1)
    if score == "dice":
        own = min(NUM_THRESHOLDS - 1, round(own_threshold * NUM_THRESHOLDS))
        walk = range(own, own + 1)
    best: int | None = None
    for place in walk:
        if not _is_shown(units_UT[:, place], risk):
            break
        best = place
    if best is None:
        raise DataError(_refusal(score, wanted, units_UT[:, walk[0]], risk))
    threshold = own_threshold if score == "dice" else best / NUM_THRESHOLDS
    kind = cast("Literal['recall', 'fpr', 'dice']", score)
    return Guarantee(score=kind, wanted=wanted, threshold=threshold, num_images=len(units_UT))


def _losses(score: str, counts_T4: Num[np.ndarray, "T 4"]) -> Float64[np.ndarray, " T"]:
    """Give the loss at each threshold: what recall or Dice lack of 1, or the fpr."""
    _, fp_T, _, tn_T = counts_T4.astype(np.float64).T
    if score == "fpr":
        return np.asarray(fp_T / np.maximum(1, fp_T + tn_T))
    loss_T: Float64[np.ndarray, " T"] = 1 - np.asarray(score_table(counts_T4)[score])
    # Without any foreground nothing can be missed, whatever the empty rule says of alarms.
    nothing_T = counts_T4[:, [0, 2]].sum(axis=1) == 0
    return np.where(nothing_T, 0.0, loss_T) if score == "recall" else loss_T


def _is_shown(losses_U: Float64[np.ndarray, " U"], risk: float) -> bool:
    """Tell whether losses of a true mean of `risk` would make a gambler rich with 5 % at most."""
    num = len(losses_U)
    # Each bet knows only the images before it.
    before_U = np.arange(1, num + 1)
    mean_U = np.concatenate([[0.5], (0.5 + np.cumsum(losses_U)[:-1]) / before_U[1:]])
    square_U = (losses_U - mean_U) ** 2
    spread_U = np.concatenate([[0.25], (0.25 + np.cumsum(square_U)[:-1]) / before_U[1:]])
    bet_U = np.sqrt(2 * math.log(1 / (1 - SURE)) / (num * np.maximum(spread_U, 1e-4)))
    bet_U = np.minimum(bet_U, 0.999 / (1 - risk))
    wealth_U = np.cumsum(np.log1p(bet_U * (risk - losses_U)))
    return bool(wealth_U.max() >= math.log(1 / (1 - SURE)))


def _refusal(score: str, wanted: float, losses_U: Float64[np.ndarray, " U"], risk: float) -> str:
    """Say why no threshold is taken, and how many images would do."""
    num, mean = len(losses_U), float(losses_U.mean())
    what = f"{score} {'below' if score == 'fpr' else 'of'} {wanted:g}"
    if mean < risk:
        for times in range(2, 200):
            if _is_shown(np.tile(losses_U, times), risk):
                return (
                    f"{num} validation images (or groups) are too few to guarantee {what}; about "
                    f"{num * times} are needed"
                )
    shown = f"{mean if score == 'fpr' else 1 - mean:.3f}"
    return f"{what} can't be guaranteed: validation itself shows {shown}; ask for less"
