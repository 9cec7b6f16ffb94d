"""Masks become `Counts`; nothing else in the package compares a mask with its truth."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from binseg.types import Counts, ImageScores, Size


def count(
    mask_HW: Bool[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"],
) -> Counts:
    """Count the valid pixels of one image by truth and prediction.

    Args:
        mask_HW: True where foreground is predicted.
        truth_HW: True where foreground is.
        valid_HW: False where a pixel counts neither for nor against.

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
