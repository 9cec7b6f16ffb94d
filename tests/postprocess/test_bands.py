"""Post-processing across bands: what `clean` makes of the whole mask."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binseg.errors import DataError
from binseg.postprocess import (
    PostProcessing,
    clean,
    clean_bands,
    find_objects,
    find_objects_in_bands,
    mask_cleaning,
)


def cut(mask_HW: np.ndarray, height: int) -> Callable[[], Iterator[np.ndarray]]:
    """The mask as bands."""
    return lambda: (mask_HW[top : top + height] for top in range(0, len(mask_HW), height))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 40),
    width=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.8, 1.0]),
    band=st.integers(1, 12),
    postprocessing=st.builds(
        PostProcessing,
        min_area=st.sampled_from([0, 1, 2, 5, 20]),
        fill_holes=st.sampled_from([0, 1, 3, 30]),
        largest_only=st.booleans(),
    ),
)
def test_bands_are_cleaned_like_the_whole(
    *, seed: int, height: int, width: int, share: float, band: int, postprocessing: PostProcessing
) -> None:
    """Objects and holes that cross any number of bands count as one, whatever their shape."""
    mask_HW = np.random.default_rng(seed).random((height, width)) < share
    cleaned_HW = np.concatenate(list(clean_bands(cut(mask_HW, band), postprocessing)()))
    np.testing.assert_array_equal(cleaned_HW, clean(mask_HW, postprocessing))
    assert find_objects_in_bands(cut(mask_HW, band)()) == find_objects(mask_HW)


def test_a_snake_through_all_bands_is_one_object() -> None:
    """Parts that only meet further down belong to one object from the top on."""
    mask_HW = np.zeros((41, 41), bool)
    mask_HW[:, ::2] = True
    mask_HW[40, :] = True  # joins all the columns in the last row
    postprocessing = PostProcessing(min_area=int(mask_HW.sum()))
    cleaned_HW = np.concatenate(list(clean_bands(cut(mask_HW, 4), postprocessing)()))
    np.testing.assert_array_equal(cleaned_HW, mask_HW)
    more = PostProcessing(min_area=int(mask_HW.sum()) + 1)
    assert not np.concatenate(list(clean_bands(cut(mask_HW, 4), more)())).any()


def test_noise_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of too many specks gives one line instead of filling the memory."""
    monkeypatch.setattr(mask_cleaning, "_MOST_PARTS", 10)
    mask_HW = np.zeros((20, 20), bool)
    mask_HW[::2, ::2] = True
    with pytest.raises(DataError, match="too many to clean up"):
        list(clean_bands(cut(mask_HW, 5), PostProcessing(min_area=2))())
