"""Masks that tests of several scores share."""

import numpy as np
import pytest

SHAPE = (17, 23)
Pair = tuple[np.ndarray, np.ndarray]


def _boxes(random: np.random.Generator) -> np.ndarray:
    """Draw one to three overlapping boxes."""
    mask_HW = np.zeros(SHAPE, dtype=bool)
    for _ in range(random.integers(1, 4)):
        top, left = random.integers(0, SHAPE[0]), random.integers(0, SHAPE[1])
        height, width = random.integers(1, 8, size=2)
        mask_HW[top : top + height, left : left + width] = True
    return mask_HW


@pytest.fixture(scope="session")
def filled_pairs() -> list[Pair]:
    """Masks and truths that both hold something: boxes, noise, one pixel, all pixels."""
    random = np.random.default_rng(0)
    boxes = [(_boxes(random), _boxes(random)) for _ in range(30)]
    noise = [(random.random(SHAPE) < 0.4, random.random(SHAPE) < 0.4) for _ in range(5)]
    corner, middle, full = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    corner[0, 0] = middle[8, 11] = True
    special = [(corner, middle), (corner, corner), (full, middle), (full, full), (middle, full)]
    return [*boxes, *noise, *special]


@pytest.fixture(scope="session")
def empty_pairs() -> list[Pair]:
    """Masks and truths of which exactly one is empty."""
    random = np.random.default_rng(1)
    nothing = np.zeros(SHAPE, dtype=bool)
    boxes = _boxes(random)
    return [(nothing, boxes), (boxes, nothing), (nothing, ~nothing), (~nothing, nothing)]
