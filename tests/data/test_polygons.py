"""Outlines become masks, compared with matplotlib's answer for every pixel centre."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from binseg.data.samples import rasterise
from binseg.types import Ring, Shape


def square(low: float, high: float) -> Ring:
    low, high = float(low), float(high)
    return ((low, low), (high, low), (high, high), (low, high))


def test_whole_pixels_are_filled_exactly() -> None:
    """A square on pixel edges fills exactly its pixels."""
    mask_HW = rasterise([Shape(rings=(square(1, 4),))], 6, 5)
    truth_HW = np.zeros((6, 5), bool)
    truth_HW[1:4, 1:4] = True
    assert np.array_equal(mask_HW, truth_HW)


def test_a_ring_inside_is_a_hole_and_one_inside_that_an_island() -> None:
    """Even-odd: hole and island alternate, whichever way the rings turn."""
    rings = (square(0, 9), tuple(reversed(square(2, 7))), square(4, 5))
    mask_HW = rasterise([Shape(rings=rings)], 9, 9)
    assert mask_HW.sum() == 81 - 25 + 1
    assert mask_HW[4, 4]


def test_shapes_are_united() -> None:
    """Two overlapping objects leave no gap where they overlap."""
    shapes = [Shape(rings=(square(0, 4),)), Shape(rings=(square(2, 6),))]
    assert rasterise(shapes, 6, 6).sum() == 16 + 16 - 4


def test_what_reaches_past_the_image_is_cut() -> None:
    """An outline larger than the image fills it; one outside it fills nothing."""
    assert rasterise([Shape(rings=(square(-50, 1e9),))], 3, 4).all()
    for ring in (square(-9, -2), square(100, 200)):
        assert not rasterise([Shape(rings=(ring,))], 3, 4).any()


def test_too_few_corners_have_no_area() -> None:
    """Nothing, points and lines fill nothing."""
    rings: tuple[Ring, ...] = ((), ((1.0, 1.0),), ((0.0, 0.0), (3.0, 3.0)))
    assert not rasterise([Shape(rings=rings)], 4, 4).any()
    assert not rasterise([], 2, 2).any()


corner = st.floats(-4, 14).map(lambda x: round(x, 3) + 0.0003)


@given(st.lists(st.tuples(corner, corner), min_size=3, max_size=3))
def test_triangles_agree_with_matplotlib(ring: list[tuple[float, float]]) -> None:
    """Inside is where matplotlib's point-in-polygon says so, edges aside."""
    mask_HW = rasterise([Shape(rings=(tuple(ring),))], 9, 10)
    y_HW, x_HW = np.mgrid[:9, :10] + 0.5
    centres = np.stack([x_HW.ravel(), y_HW.ravel()], axis=1)
    ours = mask_HW.ravel()
    inside = Outline(ring, closed=False).contains_points(centres, radius=0)
    a, b = np.array(ring), np.roll(np.array(ring), -1, axis=0)
    # Centres within a hair of an edge may go either way.
    side, length = b - a, np.maximum(np.hypot(*(b - a).T), 1e-9)
    to = centres[:, None] - a
    off = np.abs(side[:, 0] * to[..., 1] - side[:, 1] * to[..., 0]) / length
    clear = off.min(axis=1) > 1e-6
    assert np.array_equal(ours[clear], inside[clear])


def test_a_large_polygon_has_its_area() -> None:
    """The number of pixels comes close to the area of a circle."""
    turns = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = tuple((100 + 80 * np.cos(t), 100 + 80 * np.sin(t)) for t in turns)
    area = rasterise([Shape(rings=(ring,))], 200, 200).sum()
    assert area == pytest.approx(np.pi * 80**2, rel=0.002)


def test_many_edges_are_filled_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut anywhere, the work gives the same pixels as at once."""
    random = np.random.default_rng(0)
    for number in range(40):
        ring = tuple((x, y) for x, y in random.uniform(-9, 40, (number % 9 + 3, 2)).tolist())
        whole = rasterise([Shape(rings=(ring,))], 31, 29)
        with monkeypatch.context() as patched:
            patched.setattr("binseg.data.samples._ROWS_AT_ONCE", 7)
            assert np.array_equal(rasterise([Shape(rings=(ring,))], 31, 29), whole)
