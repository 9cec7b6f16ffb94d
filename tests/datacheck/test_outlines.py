"""Masks in numbers, and the one that is unlike the others."""

from dataclasses import replace

import numpy as np
import pytest
from skimage.measure import label, regionprops

from binseg.datacheck.findings import unlike_others
from binseg.datacheck.looks import Outline, measure_outline


def test_measures_agree_with_skimage() -> None:
    """Objects and solidity are those of scikit-image."""
    rows, columns = np.mgrid[:80, :90]
    mask_HW = (abs(rows - 30) < 20) & (abs(columns - 40) < 25) & ~((rows > 25) & (columns < 35))
    mask_HW[70:76, 80:86] = True
    found = measure_outline(mask_HW)
    assert found is not None
    regions = regionprops(label(mask_HW, connectivity=1))  # type: ignore[no-untyped-call]
    largest = max(regions, key=lambda region: region.area)
    assert found.num_objects == len(regions) == 2
    assert found.share == mask_HW.mean()
    assert found.solidity == pytest.approx(largest.solidity, abs=0.04)
    assert found.rim == 0


def test_empty_and_full_masks_have_no_outline() -> None:
    """There is nothing to measure."""
    assert measure_outline(np.zeros((8, 8), np.bool_)) is None
    assert measure_outline(np.ones((8, 8), np.bool_)) is None


def test_the_odd_one_out() -> None:
    """Exchanged classes and scribbles are named with what is odd; 20 usual masks are needed."""
    random = np.random.default_rng(0)
    usual: list[Outline | None] = [
        Outline(share=share, num_objects=1, solidity=0.9, rim=0.0)
        for share in random.uniform(0.1, 0.3, 30)
    ]
    one = usual[0]
    assert one is not None
    assert not unlike_others(usual)
    exchanged, scribble = replace(one, rim=1.0), replace(one, num_objects=120)
    odd = unlike_others([*usual, None, exchanged, scribble])
    assert set(odd) == {31, 32}
    assert "rim 100%, usually 0%" in odd[31]
    assert "objects 120, usually 1" in odd[32]
    assert not unlike_others([*usual[:10], exchanged])
