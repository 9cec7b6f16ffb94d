"""Masks become counts of pixels and of objects; nothing else compares a mask with its truth."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64
from scipy import ndimage

from binseg.types import Counts, ImageScores, Mask, ObjectCounts, Size

OBJECT_RULE = (
    "Objects: connected pixels (8 neighbours); a predicted one is found where its IoU with a true "
    "one is above 0.5, which no two can be for the same. Ignored pixels belong to no object. "
    "Objects of all images are pooled; where none is there and none is predicted, all scores are 1."
)
"""The sentences that go with every table of object scores."""

_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def count(mask_HW: Mask, truth_HW: Mask, valid_HW: Mask) -> Counts:
    """Count the valid pixels of one image by truth and prediction.

    >>> mask = np.array([[True, True, False, False]])
    >>> truth = np.array([[True, False, True, False]])
    >>> count(mask, truth, np.array([[True, True, True, False]]))
    Counts(tp=1, fp=1, fn=1, tn=0)
    """
    assert mask_HW.dtype == truth_HW.dtype == valid_HW.dtype == np.bool_, "masks are bool"
    assert mask_HW.shape == truth_HW.shape == valid_HW.shape, "masks are of one size"
    num_valid = int(np.count_nonzero(valid_HW))
    predicted_HW = mask_HW & valid_HW
    num_predicted = int(np.count_nonzero(predicted_HW))
    num_true = int(np.count_nonzero(truth_HW & valid_HW))
    tp = int(np.count_nonzero(predicted_HW & truth_HW))
    fp, fn = num_predicted - tp, num_true - tp
    return Counts(tp=tp, fp=fp, fn=fn, tn=num_valid - tp - fp - fn)


def pool(counts: Iterable[Counts]) -> Counts:
    """Add up the counts of many images, so that every pixel weighs the same.

    >>> pool([Counts(tp=1, fp=0, fn=2, tn=3), Counts(tp=4, fp=1, fn=0, tn=5)])
    Counts(tp=5, fp=1, fn=2, tn=8)
    """
    return sum(counts, start=Counts(tp=0, fp=0, fn=0, tn=0))


def as_array(counts: Sequence[Counts]) -> Int64[np.ndarray, "N 4"]:
    """Put the counts of N images in rows of tp, fp, fn, tn."""
    rows = [(one.tp, one.fp, one.fn, one.tn) for one in counts]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 4)


def scored_images(images: Sequence[ImageScores], size: Size) -> list[ImageScores]:
    """Keep the images that have a valid pixel at this size: the others say nothing."""
    return [one for one in images if one.counts[size].num_valid]


def count_objects(mask_HW: Mask, truth_HW: Mask, valid_HW: Mask | None = None) -> ObjectCounts:
    """Count and match the objects of one image, by OBJECT_RULE.

    >>> truth = np.array([[1, 1, 0, 0, 1]], dtype=bool)
    >>> count_objects(np.array([[1, 1, 0, 0, 0]], dtype=bool), truth)
    ObjectCounts(num_true=2, num_predicted=1, num_matched=1, sum_iou=1.0)
    """
    assert mask_HW.dtype == truth_HW.dtype == np.bool_, "masks are bool"
    assert mask_HW.shape == truth_HW.shape, "masks are of one size"
    if valid_HW is not None:
        mask_HW, truth_HW = mask_HW & valid_HW, truth_HW & valid_HW
    predicted_HW, num_predicted = ndimage.label(mask_HW, structure=_NEIGHBOURS)
    true_HW, num_true = ndimage.label(truth_HW, structure=_NEIGHBOURS)
    both_HW = mask_HW & truth_HW
    # Only pairs that overlap are listed: noise makes many objects, and their table would be huge.
    codes_N = predicted_HW[both_HW].astype(np.int64) * (num_true + 1) + true_HW[both_HW]
    pairs_P, overlap_P = np.unique(codes_N, return_counts=True)
    area_of_predicted = np.bincount(predicted_HW.ravel())[pairs_P // (num_true + 1)]
    area_of_true = np.bincount(true_HW.ravel())[pairs_P % (num_true + 1)]
    iou_P = overlap_P / (area_of_predicted + area_of_true - overlap_P)
    matched_P = iou_P > 0.5
    matched, sum_iou = int(matched_P.sum()), float(iou_P[matched_P].sum())
    both = {"num_true": int(num_true), "num_predicted": int(num_predicted)}
    return ObjectCounts(**both, num_matched=matched, sum_iou=sum_iou)
