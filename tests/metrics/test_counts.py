"""Counting: what scikit-learn's confusion matrix says, and ignored pixels in none of the four."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from binseg.metrics import count, pool
from binseg.types import Counts


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=30)
def test_counts_are_scikit_learns(seed: int, share: float) -> None:
    """Counts equal the confusion matrix of the valid pixels, whatever their share."""
    random = np.random.default_rng(seed)
    mask, truth = random.random((2, 7, 5)) < share
    valid = random.random((7, 5)) < 0.7
    table = confusion_matrix(truth[valid], mask[valid], labels=[False, True]) if valid.any() else 0
    (tn, fp), (fn, tp) = np.broadcast_to(table, (2, 2))
    assert count(mask, truth, valid) == Counts(tp=int(tp), fp=int(fp), fn=int(fn), tn=int(tn))


@given(seed=st.integers(0, 10_000))
def test_ignored_pixels_change_nothing(seed: int) -> None:
    """Turning answer and truth over where it is ignored leaves the counts as they were."""
    random = np.random.default_rng(seed)
    mask, truth, valid = random.random((3, 6, 6)) < 0.5
    turned = count(mask ^ ~valid, truth ^ ~valid, valid)
    assert turned == count(mask, truth, valid)
    assert turned.num_valid == valid.sum()


def test_counts_are_plain_integers() -> None:
    """Counts hold Python's integers, which JSON takes and which never overflow."""
    ones = np.ones((3, 3), dtype=bool)
    assert all(type(value) is int for value in vars(count(ones, ones, ones)).values())


def test_numbers_instead_of_bools_are_our_own_mistake() -> None:
    """A 0/255 array is no mask: it never gets as far as being counted."""
    ones = np.ones((3, 3), dtype=bool)
    # The shape checker of the tests gets there first, with a TypeError.
    with pytest.raises((AssertionError, TypeError)):
        count(ones.astype(np.uint8) * 255, ones, ones)


@given(seed=st.integers(0, 10_000))
def test_pooling_knows_no_order_and_no_batches(seed: int) -> None:
    """Pooled counts are those of all pixels side by side, in any order and any grouping."""
    random = np.random.default_rng(seed)
    masks, truths, valids = random.random((3, 6, 4, 4)) < 0.5
    singles = [count(*one) for one in zip(masks, truths, valids, strict=True)]
    shuffled = [singles[i] for i in random.permutation(6)]
    batches = [pool(shuffled[:2]), pool(shuffled[2:3]), pool(shuffled[3:])]
    whole = count(*(stack.reshape(-1, 4) for stack in (masks, truths, valids)))
    assert pool(singles) == pool(shuffled) == pool(batches) == whole
