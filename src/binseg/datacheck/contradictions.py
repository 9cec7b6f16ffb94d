"""Masks that a model contradicts: an object missed or too many, a shift, another file's mask.

A model that learns from many masks rarely repeats the mistake of one. Where it does disagree it may
be wrong itself, so that these are suspicions in an order, never corrections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy import ndimage

from binseg.metrics import dice_of
from binseg.postprocess import label_objects
from binseg.transforms.geometry import resize_mask
from binseg.types import Mask, Probability

SUSPICIOUS = 0.5  # score from which on somebody should look
_SIDE = 48  # pixels; masks are compared with those of other images at this size
_SHIFTS = 0.06  # shifts that are tried, as a share of the shorter side
_CLEAR = 0.15  # Dice that another reading of the mask must gain over the mask as it is
_EXPLAINS = 0.15  # score from which on another reading of the whole mask explains what objects show


@dataclass(frozen=True)
class Contradiction:
    """One mask beside a model's prediction of the same image."""

    id: str
    score: float  # from 0 (they agree) to 1; comparable between the images of one data set
    kind: str  # the kind of mistake that would explain it, in words
    dice: float
    expected_dice: float  # Dice that the model expected of its own mask


@dataclass(frozen=True)
class Compared:
    """One mask compared with a model's: the facts of it, of which the largest is a thumbnail."""

    id: str
    dice: float
    expected: float
    inverted: float
    shifted: float
    missed: tuple[float, float]
    extra: tuple[float, float]  # area and conviction of the most suspicious object
    area: float  # size of the mask's typical object
    mask_hw: Float32[np.ndarray, "h w"]
    model_hw: Float32[np.ndarray, "h w"]


def compare_mask(
    id_: str,
    *,
    probability_HW: Probability,
    model_HW: Mask,
    mask_HW: Mask,
    valid_HW: Mask,
    expected_dice: float,
) -> Compared:
    """Compare the mask that is checked with a model's probability and mask."""
    model_HW, mask_HW = model_HW & valid_HW, mask_HW & valid_HW
    probability_HW = np.where(valid_HW, probability_HW, np.float32(0))
    labels_HW, num = label_objects(mask_HW)
    sizes = np.bincount(labels_HW.ravel())[1:] if num else np.zeros(1)
    small = (resize_mask(one, _SIDE, _SIDE).astype(np.float32) for one in (mask_HW, model_HW))
    return Compared(
        id_,
        dice_of(model_HW, mask_HW),
        expected_dice,
        dice_of(model_HW, ~mask_HW & valid_HW),
        _best_shift(model_HW, mask_HW),
        _object(model_HW & ~_grown(mask_HW), probability_HW),
        _object(mask_HW & ~_grown(model_HW), 1 - probability_HW),
        float((sizes**2).sum() / max(1, sizes.sum())),
        *small,
    )


def rank_masks(compared: Sequence[Compared]) -> list[Contradiction]:
    """Rank all masks of a data set, the most suspicious first."""
    areas = [one.area for one in compared if one.area]
    typical = float(np.median(areas)) if areas else 1.0
    pairs = zip(compared, _swaps(compared), strict=True)
    # Its own objects tell the size of one: magnifications differ within a data set.
    found = [_judge(one, one.area or typical, swap) for one, swap in pairs]
    return sorted(found, key=lambda one: (-one.score, one.id))


def _judge(one: Compared, typical: float, swap: float) -> Contradiction:
    lack = one.expected - one.dice
    kinds = {
        "background and foreground are exchanged": one.inverted - one.dice - _CLEAR,
        "the mask fits another image better": min(swap - one.dice - _CLEAR, lack),
        "the mask is shifted": min(3 * (one.shifted - one.dice), 1.0),
        "an object is missed": _weight(one.missed, typical),
        "an object is too many": _weight(one.extra, typical),
        "mask and model disagree": lack,
    }
    # What explains the whole mask comes before what explains an object of it.
    whole = [name for name in [*kinds][:3] if kinds[name] >= _EXPLAINS]
    kind = whole[0] if whole else max(kinds, key=lambda name: kinds[name])
    score = float(np.clip(max(kinds.values()), 0, 1))
    return Contradiction(one.id, score, kind, one.dice, one.expected)


def _grown(mask_HW: Mask) -> Mask:
    """Grow a mask by two pixels: outlines differ by so much without being wrong."""
    return np.asarray(ndimage.binary_dilation(mask_HW, iterations=2))


def _object(left_HW: Mask, conviction_HW: Probability) -> tuple[float, float]:
    """Find the object that contradicts most: its area, and the mean conviction in it."""
    labels_HW, num = label_objects(left_HW)
    if not num:
        return 0.0, 0.0
    areas = np.bincount(labels_HW.ravel())[1:].astype(np.float64)
    sums = np.bincount(labels_HW.ravel(), weights=conviction_HW.ravel())[1:]
    worst = int(np.argmax(sums * sums / areas))
    return float(areas[worst]), float(sums[worst] / areas[worst])


def _weight(found: tuple[float, float], typical: float) -> float:
    """Weigh an object by its size beside the usual one: a speck is no object."""
    area, conviction = found
    return conviction * min(1.0, area / (0.5 * typical + 1e-9))


def _best_shift(model_HW: Mask, mask_HW: Mask) -> float:
    every = max(1, min(mask_HW.shape) // 128)
    model, mask = (one[::every, ::every].astype(np.float32) for one in (model_HW, mask_HW))
    total = float(model.sum() + mask.sum())
    if not total:
        return 1.0
    fits_HW = np.fft.irfft2(np.fft.rfft2(model) * np.conj(np.fft.rfft2(mask)), s=model.shape)
    far = max(2, round(_SHIFTS * min(model.shape)))
    near = np.r_[0 : far + 1, -far:0]
    # Round the edges nothing may wrap that counts: shifts are small beside the image.
    return 2 * float(fits_HW[np.ix_(near, near)].max()) / total


def _swaps(seen: Sequence[Compared]) -> Float64[np.ndarray, " N"]:
    if len(seen) < 2:
        return np.zeros(len(seen))
    masks_NP = np.stack([one.mask_hw.ravel() for one in seen])
    models_NP = np.stack([one.model_hw.ravel() for one in seen])
    both_NN = 2 * masks_NP @ models_NP.T
    total_NN = masks_NP.sum(axis=1)[:, None] + models_NP.sum(axis=1)[None]
    dice_NN = both_NN / np.maximum(total_NN, 1)
    np.fill_diagonal(dice_NN, 0)
    return np.asarray(dice_NN.max(axis=1), np.float64)
