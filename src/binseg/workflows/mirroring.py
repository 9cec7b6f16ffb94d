"""Which mirror images of a picture are worth predicting too, told by validation."""

import math

import numpy as np

from binseg.config import Recipe
from binseg.data.dataset import Dataset, spread
from binseg.data.presets import resolve_preset
from binseg.metrics import count, score_image
from binseg.predictor import Predictor
from binseg.progress import SILENT, Progress, track
from binseg.structures import FLIP_TIMES, Flips, Sample
from binseg.workflows.scoring import read_ahead

__all__ = ["NUM_TRIED", "allowed_flips", "choose_flips"]

NUM_TRIED = 64
"""Validation pictures that tell."""
LEAST_PICTURES = 3
LEAST_GAIN = 0.001
"""Dice below which it isn't worth its time."""


def allowed_flips(recipe: Recipe) -> Flips:
    """The mirror images that the network has learnt from."""
    preset = resolve_preset(recipe.augment)
    if preset.flip and (preset.flip_vertical or preset.quarter_turn):
        return "all"
    return "horizontal" if preset.flip else "none"


def choose_flips(
    recipe: Recipe, judge: Predictor, val: Dataset, *, progress: Progress = SILENT
) -> Flips:
    """Average over mirror images where that raises the mean Dice on validation beyond its error.

    Both sides cut at 0.5, since no threshold is chosen yet.

    Args:
        recipe: tells which mirror images the network has learnt from.
        judge: the model, without flips.
        val: the validation pictures; some of them tell.
        progress: told of every picture, and what was found.
    """
    flips = allowed_flips(recipe)
    if flips == "none" or len(val.records) < LEAST_PICTURES:
        return "none"
    chosen = spread(val.records, NUM_TRIED)
    samples = track(
        read_ahead(chosen, val.rule), progress=progress, label="trying flips", total=len(chosen)
    )
    mirrored = judge.with_flips(flips)
    gain_N = np.array([_dice(mirrored, one) - _dice(judge, one) for one in samples])
    gain, error = float(gain_N.mean()), float(gain_N.std(ddof=1) / math.sqrt(len(gain_N)))
    told = f"validation Dice {gain:+.4f} (standard error {error:.4f}, {len(gain_N)} pictures)"
    if gain <= max(LEAST_GAIN, error):
        progress.say(f"flips: none, since {flips} gives {told}")
        return "none"
    progress.say(
        f"flips {flips}: {told}; predictions take {FLIP_TIMES[flips]} times as long (--flips none "
        "leaves them out)"
    )
    return flips


def _dice(predictor: Predictor, sample: Sample) -> float:
    assert sample.mask_HW is not None
    mask_HW = predictor.predict(sample.image_HWC).probability > 0.5
    counts = count(mask_HW, sample.mask_HW, sample.valid_HW)
    return score_image("", {"original": counts}).scores["original"]["dice"]
