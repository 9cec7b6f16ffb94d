"""Masks that a model contradicts: an object missed or too many, a shift, another file's mask.

A model that learns from many masks rarely repeats the mistake of one. Where it does disagree it may
be wrong itself, so that these are suspicions in an order, never corrections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Num
from scipy import ndimage

from binseg.metrics import dice_of
from binseg.postprocess import label_objects
from binseg.transforms.geometry import resize_mask
from binseg.types import Mask, Probability

SUSPICIOUS = 0.5  # score from which on somebody should look
_SIDE = 48  # pixels; masks are compared with those of other images at this size
_SHIFTS = 0.06  # shifts that are tried, as a share of the shorter side
_EXPLAINS = 0.15  # score from which on another reading of the whole mask explains what objects show


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """One mask beside a model's prediction of the same image."""

    id: str
    score: float  # from 0 (they agree) to 1; comparable between the images of one data set
    kind: str  # the kind of mistake that would explain it, in words
    dice: float
    expected_dice: float  # Dice that the model expected of its own mask


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One mask compared with a model's: the facts of it, of which the largest is a thumbnail."""

    id: str
    dice: float
    expected: float
    inverted: float  # by how much the model prefers the mask's background
    shifted: float
    missed: list[tuple[float, float]]
    extra: list[tuple[float, float]]  # areas of the most suspicious objects, and their evidence
    area: float  # size of the mask's typical object
    mask_hw: Float32[np.ndarray, "h w"]
    model_hw: Float32[np.ndarray, "h w"]


def compare_mask(
    id_: str,
    *,
    image_HWC: Num[np.ndarray, "H W C"],
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
    outside_HW = valid_HW & ~mask_HW
    both = mask_HW.any() and outside_HW.any()
    exchanged = probability_HW[outside_HW].mean() - probability_HW[mask_HW].mean() if both else 0
    like, unlike = _likeness(image_HWC, model_HW & mask_HW, ~_grown(model_HW | mask_HW))
    missed_HW, extra_HW = model_HW & ~_grown(mask_HW), mask_HW & ~_grown(model_HW)
    return Compared(
        id=id_,
        dice=dice_of(model_HW, mask_HW),
        expected=expected_dice,
        inverted=float(exchanged),
        shifted=_best_shift(model_HW, mask_HW),
        missed=_objects(missed_HW, (probability_HW, like), mask_HW),
        extra=_objects(extra_HW, (1 - probability_HW, unlike), model_HW),
        area=float((sizes**2).sum() / max(1, sizes.sum())),
        mask_hw=resize_mask(mask_HW, _SIDE, _SIDE).astype(np.float32),
        model_hw=resize_mask(model_HW, _SIDE, _SIDE).astype(np.float32),
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
        "background and foreground are exchanged": min(5 * one.inverted, 1.0),
        "the mask fits another image better": min(swap - one.dice, lack),
        "the mask is shifted": min(3 * (one.shifted - one.dice), 1.0),
        "an object is missed": _weight(one.missed, typical),
        "an object is too many": _weight(one.extra, typical),
        "mask and model disagree": lack / 2,  # which is as often the model's mistake
    }
    # What explains the whole mask comes before what explains an object of it.
    whole = [name for name in [*kinds][:3] if kinds[name] >= _EXPLAINS]
    kind = whole[0] if whole else max(kinds, key=lambda name: kinds[name])
    score = float(np.clip(max(kinds.values()), 0, 1))
    return Contradiction(
        id=one.id, score=score, kind=kind, dice=one.dice, expected_dice=one.expected
    )


def _grown(mask_HW: Mask) -> Mask:
    """Grow a mask by two pixels: outlines differ by so much without being wrong."""
    return np.asarray(ndimage.binary_dilation(mask_HW, iterations=2))


def _likeness(
    image_HWC: Num[np.ndarray, "H W C"], found_HW: Mask, around_HW: Mask
) -> tuple[Float64[np.ndarray, "H W"], Float64[np.ndarray, "H W"]]:
    """Tell how much pixels look like what mask and model both found, and like what lies around it.

    Where there is nothing to compare with, the model is believed in both.
    """
    if not found_HW.any() or not around_HW.any():
        return np.ones(found_HW.shape), np.ones(found_HW.shape)
    pixels_HWC = image_HWC / max(float(image_HWC.max()), 1e-9)
    base_C = pixels_HWC[around_HW].mean(axis=0)
    way_C = pixels_HWC[found_HW].mean(axis=0) - base_C
    like_HW = (pixels_HWC - base_C) @ way_C / (way_C @ way_C + 1e-4)
    return like_HW, 1 - like_HW


def _objects(
    left_HW: Mask, evidence: tuple[Probability, Float64[np.ndarray, "H W"]], other_HW: Mask
) -> list[tuple[float, float]]:
    """Find the objects that contradict most: the area of each, and the evidence for it, to 1.

    A whole object lies alone; what fills gaps of the `other` mask is a matter of outlines.
    """
    labels_HW, num = label_objects(left_HW)
    if not num:
        return []
    areas, sure, like = (
        np.bincount(labels_HW.ravel(), weights=one_HW.ravel())[1:]
        for one_HW in (np.ones(left_HW.shape), *evidence)
    )
    boxes = ndimage.find_objects(labels_HW)
    found = []
    for at in np.argsort(-sure * sure / areas)[:4]:
        near = tuple(slice(max(0, one.start - 5), one.stop + 5) for one in boxes[at])
        own_HW = labels_HW[near] == at + 1
        rim_HW = ndimage.binary_dilation(own_HW, iterations=4) & ~own_HW
        alone = 1 - float((other_HW[near] & rim_HW).sum()) / max(1, rim_HW.sum())
        means = sure[at] / areas[at], np.clip(like[at] / areas[at], 0, 1)
        found.append((float(areas[at]), float(alone * means[0] * means[1])))
    return found


def _weight(found: Sequence[tuple[float, float]], typical: float) -> float:
    """Weigh the worst object by its size beside the usual one: a speck is no object.

    Where there is a second such object, the model is the one that sees others.
    """
    weights = [evidence * min(1.0, area / (0.5 * typical + 1e-9)) for area, evidence in found]
    first, second = sorted([*weights, 0.0, 0.0], reverse=True)[:2]
    return first - second / 3


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
