"""Shifted masks: told with their direction where the image has edges, else not told."""

from collections.abc import Callable

import numpy as np
import pytest

from binseg.datacheck.alignment import agreement, constant_shift, shift_of

Draw = Callable[..., tuple[np.ndarray, np.ndarray]]


def grey(image_HW3: np.ndarray) -> np.ndarray:
    return np.asarray(image_HW3.mean(axis=2, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize(("down", "right"), [(9, 0), (0, -9), (-8, 8), (12, 10)])
def test_a_shifted_mask_is_told_with_its_way_back(photo: Draw, down: int, right: int) -> None:
    """The answer is the shift that undoes what was done, to two pixels."""
    image_HW3, mask_HW = photo(5)
    moved_HW = np.roll(mask_HW, (down, right), axis=(0, 1))
    surface = agreement(grey(image_HW3), moved_HW)
    assert surface is not None
    shift = shift_of(surface)
    assert shift is not None
    assert abs(shift.down + down) <= 2
    assert abs(shift.right + right) <= 2


def test_sound_masks_are_left_in_peace(photo: Draw) -> None:
    """None of 40 sound masks is called shifted, nor are all of them together."""
    surfaces = [agreement(grey(image), mask) for image, mask in map(photo, range(40))]
    known = [surface for surface in surfaces if surface is not None]
    assert len(known) == 40
    assert not any(shift_of(surface) for surface in known)
    assert constant_shift(known) is None


def test_a_constant_shift_is_told_once(photo: Draw) -> None:
    """Where all masks are shifted alike, that shift is found; a dozen images are needed."""
    surfaces = []
    for seed in range(14):
        image_HW3, mask_HW = photo(seed)
        surface = agreement(grey(image_HW3), np.roll(mask_HW, (-7, 5), axis=(0, 1)))
        assert surface is not None
        surfaces.append(surface)
    shift = constant_shift(surfaces)
    assert shift is not None
    assert abs(shift.down - 7) <= 2
    assert abs(shift.right + 5) <= 2
    assert constant_shift(surfaces[:11]) is None


def test_no_edges_no_verdict(photo: Draw) -> None:
    """Blank images, empty masks and specks say nothing."""
    image_HW3, mask_HW = photo(1)
    assert agreement(np.full((*mask_HW.shape, 1), 9, np.float32), mask_HW) is None
    assert agreement(grey(image_HW3), np.zeros_like(mask_HW)) is None
    speck_HW = np.zeros_like(mask_HW)
    speck_HW[50, 50] = True
    assert agreement(grey(image_HW3), speck_HW) is None
