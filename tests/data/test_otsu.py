"""Otsu's threshold, compared with scikit-image's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from binseg.data import MaskRule
from binseg.data.sources.synthetic import otsu_dice, otsu_threshold
from binseg.errors import DataError
from binseg.types import Record

Save = Callable[..., Path]


@pytest.mark.parametrize("seed", range(8))
def test_threshold_parts_pixels_as_scikit_image_does(seed: int) -> None:
    """Both thresholds put the same pixels above."""
    random = np.random.default_rng(seed)
    low, high = random.normal(80, 20, 500), random.normal(160, 25, 300)
    grey_HW = np.clip(np.concatenate([low, high]), 0, 255).astype(np.uint8).reshape(20, 40)
    theirs = threshold_otsu(grey_HW)  # type: ignore[no-untyped-call]
    assert np.array_equal(grey_HW > otsu_threshold(grey_HW), grey_HW > theirs)


def test_a_flat_image_has_a_threshold_too() -> None:
    """One grey level alone divides nothing, and no warning is given."""
    assert 0 <= otsu_threshold(np.full((3, 3), 9, np.uint8)) <= 255


@pytest.mark.parametrize("inverted", [False, True])
def test_bright_or_dark_objects_score_1(
    save: Save, tmp_path: Path, rule: MaskRule, inverted: bool
) -> None:
    """Where grey tells all, the score is 1 whichever side is the object."""
    mask_HW = np.zeros((8, 8), np.uint8)
    mask_HW[2:5] = 255
    image = 255 - mask_HW if inverted else mask_HW
    record = Record(
        id="a",
        image_path=save(tmp_path / "a.png", image),
        mask_path=save(tmp_path / "m.png", mask_HW),
    )
    assert otsu_dice([record], rule) == 1.0


def test_nothing_to_score(save: Save, tmp_path: Path, rule: MaskRule) -> None:
    """No images, or one without truth, is an error."""
    with pytest.raises(DataError, match="no images to score"):
        otsu_dice([], rule)
    with pytest.raises(DataError, match="has no mask"):
        otsu_dice([Record(id="a", image_path=save(tmp_path / "a.png"))], rule)
