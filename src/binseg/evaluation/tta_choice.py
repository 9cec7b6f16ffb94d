"""Which mirror images of an image are worth predicting too, told by validation."""

import math

import numpy as np

from binseg.config import Recipe
from binseg.data.dataset import Dataset, spread
from binseg.evaluation.scoring import read_ahead
from binseg.inference import PredictOptions, Predictor
from binseg.metrics import count, score_image
from binseg.progress import SILENT, Progress, track
from binseg.transforms.presets import resolve_preset
from binseg.types import TTA, TTA_PASSES, Sample

__all__ = ["NUM_TRIED", "allowed_tta", "choose_tta"]

NUM_TRIED = 64
"""Validation images that tell."""
LEAST_IMAGES = 3
LEAST_GAIN = 0.001
"""Dice below which it isn't worth its time."""


def allowed_tta(recipe: Recipe) -> TTA:
    """The mirror images that the network has learnt from."""
    preset = resolve_preset(recipe.augment)
    if preset.flip and (preset.flip_vertical or preset.quarter_turn):
        return "all"
    return "horizontal" if preset.flip else "none"


def choose_tta(
    recipe: Recipe, judge: Predictor, val: Dataset, *, progress: Progress = SILENT
) -> TTA:
    """Average over mirror images where that raises the mean Dice on validation beyond its error.

    Both sides cut at 0.5, since no threshold is chosen yet.

    Args:
        recipe: tells which mirror images the network has learnt from.
        judge: the model, without tta.
        val: the validation images; some of them tell.
        progress: told of every image, and what was found.
    """
    tta = allowed_tta(recipe)
    if tta == "none" or len(val.records) < LEAST_IMAGES:
        return "none"
    chosen = spread(val.records, NUM_TRIED)
    samples = track(
        read_ahead(chosen, val.rule), progress=progress, label="trying tta", total=len(chosen)
    )
    mirrored = judge.with_options(PredictOptions(tta=tta))
    gain_N = np.array([_dice(mirrored, one) - _dice(judge, one) for one in samples])
    gain, error = float(gain_N.mean()), float(gain_N.std(ddof=1) / math.sqrt(len(gain_N)))
    told = f"validation Dice {gain:+.4f} (standard error {error:.4f}, {len(gain_N)} images)"
    if gain <= max(LEAST_GAIN, error):
        progress.say(f"tta: none, since {tta} gives {told}")
        return "none"
    progress.say(
        f"tta {tta}: {told}; predictions take {TTA_PASSES[tta]} times as long (--tta none "
        "leaves them out)"
    )
    return tta


def _dice(predictor: Predictor, sample: Sample) -> float:
    assert sample.mask_HW is not None
    mask_HW = predictor.predict(sample.image_HWC).probability > 0.5
    counts = count(mask_HW, sample.mask_HW, sample.valid_HW)
    return score_image("", {"original": counts}).scores["original"]["dice"]
