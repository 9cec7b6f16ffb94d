"""Thickness and what a resize keeps, against figures that are known by construction."""

import numpy as np
import pytest
from skimage import draw, morphology, transform

from binseg.autoconfig.fingerprint import kept_by_resize, measure_shapes, thickness_quantiles


def stroke(width: int) -> np.ndarray:
    mask_HW = np.zeros((120, 120), bool)
    mask_HW[draw.line(20, 15, 90, 100)] = True  # type: ignore[no-untyped-call]
    ball = morphology.disk((width - 1) // 2)  # type: ignore[no-untyped-call]
    return np.asarray(morphology.dilation(mask_HW, ball))


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    mask_HW = np.zeros(shape, bool)
    mask_HW[draw.disk(centre, radius)] = True  # type: ignore[no-untyped-call]
    return mask_HW


@pytest.mark.parametrize("width", [3, 7, 13])
def test_a_strokes_thickness_is_its_width(width: int) -> None:
    """Of a slanted line, to within the raster."""
    thin, thick = thickness_quantiles(stroke(width))
    assert width - 2 <= thin <= thick <= width + 2


def test_thin_branches_show_beside_a_thick_trunk() -> None:
    """Half the area is thick, a tenth of the length is thin."""
    mask_HW = np.zeros((200, 200), bool)
    mask_HW[:, 90:120] = True
    mask_HW[50:53, :90] = mask_HW[120:123, :90] = True
    thin, thick = thickness_quantiles(mask_HW)
    assert thin == 3
    assert thick == pytest.approx(30, abs=2)


def test_objects_have_the_diameters_of_discs_of_their_area() -> None:
    """Two discs are two objects; specks below four pixels are none."""
    mask_HW = disc((100, 100), (30, 30), 10) | disc((100, 100), (70, 70), 20)
    mask_HW[5, 95] = True
    shapes = measure_shapes(mask_HW)
    assert shapes is not None
    assert sorted(shapes.diameters) == pytest.approx([20, 40], rel=0.05)


def test_an_empty_mask_has_no_shapes_and_loses_nothing() -> None:
    """There is nothing to measure and nothing to lose."""
    empty_HW = np.zeros((20, 20), bool)
    assert measure_shapes(empty_HW) is None
    assert kept_by_resize(empty_HW, [(4, 4)]).tolist() == [1.0]


def _resized(mask_HW: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    soft = transform.resize(mask_HW.astype(float), shape, order=1, anti_aliasing=True)  # type: ignore[no-untyped-call]
    return np.asarray(soft > 0.5)


def test_what_a_resize_keeps_agrees_with_skimage() -> None:
    """The same round trip with another library's resize, nearly."""
    mask_HW = stroke(5)
    for size in (30, 48, 90):
        small = _resized(mask_HW, (size, size))
        back_HW = _resized(small, mask_HW.shape)
        dice = 2 * (back_HW & mask_HW).sum() / (back_HW.sum() + mask_HW.sum())
        assert kept_by_resize(mask_HW, [(size, size)])[0] == pytest.approx(dice, abs=0.06)


def test_thin_things_lose_more_than_thick_ones_and_nothing_at_their_own_size() -> None:
    """Dice falls with the size, faster for what is thin."""
    sizes = [(20, 20), (40, 40), (120, 120)]
    thin, thick = kept_by_resize(stroke(3), sizes), kept_by_resize(stroke(21), sizes)
    assert thin[0] < thin[1] < thin[2] == 1.0
    assert (thick[:2] > thin[:2]).all()
