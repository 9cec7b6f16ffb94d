import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import morphology

from binseg.errors import UsageError
from binseg.postprocess import NOTHING, PostProcessing, clean, label_objects

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def drawn(*rows: str) -> np.ndarray:
    """A mask from a drawing: # is foreground."""
    return np.array([[letter == "#" for letter in row] for row in rows])


@given(MASKS)
def test_nothing_changes_nothing(mask: np.ndarray) -> None:
    """The empty post-processing gives the mask back."""
    assert np.array_equal(clean(mask, NOTHING), mask)


@given(MASKS, st.integers(0, 20))
def test_small_objects_go_as_in_scikit_image(mask: np.ndarray, area: int) -> None:
    """Objects of fewer pixels are removed, by 8 neighbours; the argument is not changed."""
    before = mask.copy()
    expected = morphology.remove_small_objects(mask, max_size=max(0, area - 1), connectivity=2)
    assert np.array_equal(clean(mask, PostProcessing(min_area=area)), expected)
    assert np.array_equal(mask, before)


@given(MASKS, st.integers(1, 20))
def test_holes_are_filled_unless_they_reach_the_edge(mask: np.ndarray, area: int) -> None:
    """Padded with background, an image has the same holes and no others."""
    padded = np.pad(mask, 1)
    expected = morphology.remove_small_holes(np.pad(padded, 20), max_size=area, connectivity=1)[
        21:-21, 21:-21
    ]
    assert np.array_equal(clean(mask, PostProcessing(fill_holes=area)), expected)


@given(MASKS)
def test_one_object_is_left(mask: np.ndarray) -> None:
    """The largest stays whole, and nothing else."""
    left = clean(mask, PostProcessing(largest_only=True))
    labels, num = label_objects(mask)
    if num == 0:
        assert not left.any()
        return
    areas = np.bincount(labels.ravel())[1:]
    assert left.sum() == areas.max()
    assert np.array_equal(left, labels == 1 + areas.argmax())


def test_holes_are_filled_before_objects_are_weighed() -> None:
    """A ring of 8 pixels is an object of 9 once it is filled."""
    ring = drawn("###", "#.#", "###")
    assert clean(np.pad(ring, 1), PostProcessing(min_area=9, fill_holes=1)).sum() == 9
    assert clean(np.pad(ring, 1), PostProcessing(min_area=9)).sum() == 0


def test_negative_areas_are_refused() -> None:
    """The message names the setting."""
    with pytest.raises(UsageError, match="fill_holes -1"):
        PostProcessing(fill_holes=-1)
    assert PostProcessing(min_area=3).as_dict() == {
        "min_area": 3,
        "fill_holes": 0,
        "largest_only": False,
        "separate": False,
    }
    assert NOTHING.is_empty
    assert not PostProcessing(min_area=3).is_empty
