"""The generated families: seeded, of the stated kinds, and open to `binseg` like any folder."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.families import FAMILIES, draw_family, folder_of

from binseg.config.recipe import DataConfig
from binseg.data import open_dataset, read_sample

SHARES = {
    "cracks": (0.001, 0.05),
    "vessels": (0.02, 0.35),
    "dots": (0.001, 0.03),
    "huge": (0.15, 0.75),
    "micro": (0.01, 0.5),
    "bands": (0.02, 0.5),
}
"""Foreground of most images."""


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_has_its_share_of_foreground_and_its_pixels(kind: str) -> None:
    """On average over a few images; index and seed decide every pixel."""
    drawn = [draw_family(kind, index, size=160, seed=0) for index in range(4)]
    low, high = SHARES[kind]
    assert low < np.mean([mask_HW.mean() for _, mask_HW in drawn]) < high
    image_HWC, mask_HW = drawn[1]
    assert image_HWC.shape[:2] == mask_HW.shape
    assert mask_HW.dtype == bool
    again_HWC, _ = draw_family(kind, 1, size=160, seed=0)
    other_HWC, _ = draw_family(kind, 1, size=160, seed=1)
    assert np.array_equal(image_HWC, again_HWC)
    assert not np.array_equal(image_HWC, other_HWC)


def test_grey_levels_alone_do_not_solve_them() -> None:
    """Hardly any single threshold finds the cracks: stains and joints are as dark."""
    image_HWC, mask_HW = draw_family("cracks", 0, size=240, seed=0)
    grey_HW = image_HWC.mean(axis=2)
    scores = []
    for level in np.percentile(grey_HW, np.linspace(0.2, 20, 40)):
        found_HW = grey_HW < level
        scores.append(2 * (found_HW & mask_HW).sum() / (found_HW.sum() + mask_HW.sum()))
    assert max(scores) < 0.75


def test_they_open_by_name_with_bits_and_bands(tmp_path: Path) -> None:
    """16 bits stay 16 bits, five bands stay five; data of another name is a path."""
    micro = open_dataset(DataConfig(path=folder_of("micro,num=3,size=48", tmp_path)))
    image_HWC = read_sample(micro.records[0], micro.rule).image_HWC
    assert image_HWC.dtype == np.uint16
    assert image_HWC.shape == (36, 48, 1)
    bands = open_dataset(DataConfig(path=folder_of("bands,num=3,size=48", tmp_path)))
    assert read_sample(bands.records[0], bands.rule).image_HWC.shape == (48, 48, 5)
    assert folder_of("crack,num=3", tmp_path) == "crack,num=3"
