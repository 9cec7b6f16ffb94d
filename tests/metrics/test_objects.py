"""Objects: torchmetrics' panoptic quality, skimage's components, brute force, the empty rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from torchmetrics.detection import PanopticQuality

from binseg.metrics import count_objects
from binseg.metrics.scores import object_table
from binseg.types import ObjectCounts

Pair = tuple[np.ndarray, np.ndarray]
NOTHING = ObjectCounts(num_true=0, num_predicted=0, num_matched=0, sum_iou=0.0)


def score_objects(counts: ObjectCounts) -> dict[str, float]:
    """The scores of one row of counts."""
    row = (counts.num_true, counts.num_predicted, counts.num_matched, counts.sum_iou)
    return {name: float(values[0]) for name, values in object_table(np.array([row])).items()}


def by_brute_force(mask_HW: np.ndarray, truth_HW: np.ndarray) -> ObjectCounts:
    """Compare every object with every other."""
    predicted, true = (numbered(each) for each in (mask_HW, truth_HW))
    ious = []
    for p in range(1, predicted.max() + 1):
        for t in range(1, true.max() + 1):
            one, other = predicted == p, true == t
            ious.append((one & other).sum() / (one | other).sum())
    good = [iou for iou in ious if iou > 0.5]
    return ObjectCounts(
        num_true=int(true.max()),
        num_predicted=int(predicted.max()),
        num_matched=len(good),
        sum_iou=float(sum(good)),
    )


def numbered(mask_HW: np.ndarray) -> np.ndarray:
    """Number the objects by skimage."""
    found: np.ndarray = label(mask_HW, connectivity=2)  # type: ignore[no-untyped-call]
    return found


def near(truth: np.ndarray, seed: int) -> np.ndarray:
    """Change a few pixels."""
    changed: np.ndarray = truth ^ (np.random.default_rng(seed).random(truth.shape) < 0.05)
    return changed


def test_counts_are_those_of_brute_force(filled_pairs: list[Pair], empty_pairs: list[Pair]) -> None:
    """Every object compared with every other gives the same matches."""
    pairs = [*filled_pairs, *empty_pairs]
    for number, (mask, truth) in enumerate(pairs):
        for answer in (mask, near(truth, number)):
            expected = by_brute_force(answer, truth)
            found = count_objects(answer, truth)
            assert found.sum_iou == pytest.approx(expected.sum_iou)
            assert (found.num_true, found.num_predicted, found.num_matched) == (
                expected.num_true,
                expected.num_predicted,
                expected.num_matched,
            )


def test_panoptic_quality_is_torchmetrics(filled_pairs: list[Pair]) -> None:
    """PQ, SQ and RQ of the pooled objects equal those of torchmetrics, fed with our objects."""
    referee = PanopticQuality(things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    total = NOTHING
    for number, (_, truth) in enumerate(filled_pairs):
        answer = near(truth, number)
        total += count_objects(answer, truth)
        maps = [
            torch.tensor(np.stack([each > 0, each], axis=-1).astype(np.int64))[None]
            for each in (numbered(answer), numbered(truth))
        ]
        referee.update(*maps)
    pq, sq, rq = referee.compute()[0].tolist()  # of the class 1; class 0 is the background
    found = score_objects(total)
    assert total.num_matched > 10
    assert (found["pq"], found["sq"], found["object_f1"]) == pytest.approx((pq, sq, rq))


def test_no_two_predictions_match_one_object() -> None:
    """An object cut in halves isn't found: at an IoU of exactly 0.5, either half would do."""
    truth = np.ones((1, 7), dtype=bool)
    halves = truth.copy()
    halves[0, 3] = False
    counts = count_objects(halves, truth)
    assert (counts.num_predicted, counts.num_matched) == (2, 0)
    exact = np.array([[True, False]])
    assert count_objects(exact, np.ones((1, 2), dtype=bool)).num_matched == 0


def test_corners_join_objects() -> None:
    """Pixels that touch at a corner are one object (8 neighbours)."""
    assert count_objects(np.eye(4, dtype=bool), np.eye(4, dtype=bool)).num_true == 1


def test_empty_masks() -> None:
    """Neither objects nor predictions: all scores 1; only one of them: all 0."""
    assert set(score_objects(NOTHING).values()) == {1.0}
    missed = ObjectCounts(num_true=2, num_predicted=0, num_matched=0, sum_iou=0.0)
    assert set(score_objects(missed).values()) == {0.0}
    alarm = ObjectCounts(num_true=0, num_predicted=3, num_matched=0, sum_iou=0.0)
    assert set(score_objects(alarm).values()) == {0.0}


def test_ignored_pixels_belong_to_no_object() -> None:
    """What is predicted or true where pixels are ignored makes no object and joins none."""
    mask, truth = np.ones((1, 5), dtype=bool), np.zeros((1, 5), dtype=bool)
    truth[0, :2] = True
    counts = count_objects(mask, truth, np.array([[True, True, False, False, False]]))
    assert counts == ObjectCounts(num_true=1, num_predicted=1, num_matched=1, sum_iou=1.0)


def test_noise_takes_little_memory() -> None:
    """Tens of thousands of objects on both sides are matched without a table of all pairs."""
    random = np.random.default_rng(0)
    mask, truth = np.zeros((2, 400, 400), dtype=bool)
    mask[::2, ::2] = truth[::2, ::2] = True
    mask &= random.random(mask.shape) < 0.9
    counts = count_objects(mask, truth)
    assert counts.num_true == 40_000
    assert counts.num_matched == counts.num_predicted == counts.sum_iou


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_pooling_has_no_order(seed: int) -> None:
    """Objects of images added up in any order, or two at a time, have the same scores."""
    random = np.random.default_rng(seed)
    counts = [
        count_objects(random.random((9, 9)) < 0.3, random.random((9, 9)) < 0.3) for _ in range(4)
    ]
    forward = counts[0] + counts[1] + counts[2] + counts[3]
    pairs = (counts[3] + counts[0]) + (counts[2] + counts[1])
    assert score_objects(forward) == pytest.approx(score_objects(pairs))
    rows = [(c.num_true, c.num_predicted, c.num_matched, c.sum_iou) for c in counts]
    table = object_table(np.array(rows))
    for row, one in enumerate(counts):
        assert {name: values[row] for name, values in table.items()} == score_objects(one)
