"""Corrections of masks are chosen where they help, and only there."""

from collections.abc import Callable

import numpy as np
import pytest

from binseg.evaluation.tuning import Validation, choose_postprocessing
from binseg.postprocess import NOTHING


def _answers(
    spoil: Callable[[np.ndarray, np.random.Generator], None], num: int
) -> list[Validation]:
    """Discs of radius 8 to 12, two in an image, answered perfectly and then spoilt."""
    random = np.random.default_rng(0)
    rows_HW, columns_HW = np.mgrid[:64, :64]
    answers = []
    for _ in range(num):
        truth_HW = np.zeros((64, 64), bool)
        for column in (16, 48):
            radius = random.integers(8, 13)
            truth_HW |= (rows_HW - 32) ** 2 + (columns_HW - column) ** 2 < radius**2
        mask_HW = truth_HW.copy()
        spoil(mask_HW, random)
        answers.append((mask_HW, truth_HW, np.ones((64, 64), bool)))
    return answers


def _specks(mask_HW: np.ndarray, random: np.random.Generator) -> None:
    for row in (2, 6, 58):
        column = int(random.integers(0, 60))
        mask_HW[row : row + 3, column : column + 3] = True


def _holes(mask_HW: np.ndarray, random: np.random.Generator) -> None:
    del random
    mask_HW[31:34, 15:18] = False


def _nothing(mask_HW: np.ndarray, random: np.random.Generator) -> None:
    del mask_HW, random


def test_specks_are_removed_and_holes_filled_where_validation_gains() -> None:
    """What spoils every answer is mended, with an area below that of true objects."""
    specks, told = choose_postprocessing(_answers(_specks, 12))
    assert 9 < specks.min_area <= np.pi * 12**2
    assert not specks.fill_holes
    assert "validation Dice +" in told
    holes, _ = choose_postprocessing(_answers(_holes, 12))
    assert holes.fill_holes >= 9
    assert holes.min_area == 0


@pytest.mark.parametrize(("spoil", "num"), [(_nothing, 12), (_specks, 5)])
def test_without_gain_or_with_few_images_nothing_is_done(
    spoil: Callable[[np.ndarray, np.random.Generator], None], num: int
) -> None:
    """A correction that validation can't speak for isn't made."""
    assert choose_postprocessing(_answers(spoil, num))[0] == NOTHING
