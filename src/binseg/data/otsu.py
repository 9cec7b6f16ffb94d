"""The simplest segmenter: one grey threshold an image, to show how hard a data set is."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Num, UInt8

from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError
from binseg.types import Record


def otsu_threshold(grey_HW: UInt8[np.ndarray, "H W"]) -> int:
    """Find the grey level that parts an image's pixels into the two most distant classes.

    Returns:
        The last level of the darker class (Otsu 1979): pixels above it are the brighter class.
    """
    counts = np.bincount(grey_HW.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = sums / below - (sums[-1] - sums) / above
    between = np.nan_to_num(below * above * apart**2)
    return int(between.argmax())


def otsu_dice(records: Iterable[Record], rule: MaskRule) -> float:
    """Score Otsu's threshold: mean Dice over images, each with the polarity that suits it best.

    Choosing dark or bright by the truth flatters the threshold; a model must still beat it.
    """
    scores = []
    for record in records:
        sample = read_sample(record, rule)
        if sample.mask_HW is None:
            raise DataError(f"{record.image_path}: has no mask, so nothing can be scored")
        grey_HW = _grey(sample.image_HWC)
        bright_HW = grey_HW > otsu_threshold(grey_HW)
        valid_HW = sample.valid_HW
        truth = sample.mask_HW[valid_HW]
        bright = bright_HW[valid_HW]
        scores.append(max(_dice(bright, truth), _dice(~bright, truth)))
    if not scores:
        raise DataError("there are no images to score")
    return float(np.mean(scores))


def _dice(answer: Bool[np.ndarray, "P"], truth: Bool[np.ndarray, "P"]) -> float:
    total = int(answer.sum()) + int(truth.sum())
    # Nothing there and nothing found is right.
    return 2 * int((answer & truth).sum()) / total if total else 1.0


def _grey(image_HWC: Num[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W"]:
    """Mean of the channels, stretched to 0-255 where the image isn't 8-bit."""
    grey_HW = image_HWC.mean(axis=2, dtype=np.float64)
    if image_HWC.dtype != np.uint8:
        low, high = grey_HW.min(), grey_HW.max()
        grey_HW = (grey_HW - low) / max(high - low, 1e-12) * 255
    rounded_HW: UInt8[np.ndarray, "H W"] = grey_HW.round().astype(np.uint8)
    return rounded_HW
