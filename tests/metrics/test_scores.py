"""Scores against scikit-learn and torchmetrics, and the empty-mask rule in all its cases."""

from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics as referee
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as torch_referee

from binseg.metrics import METRICS, count, score_all
from binseg.metrics.registry import EMPTY_RULE
from binseg.metrics.scores import as_array, score_table
from binseg.types import Counts

COUNTS = st.builds(
    Counts,
    tp=st.integers(0, 5),
    fp=st.integers(0, 5),
    fn=st.integers(0, 5),
    tn=st.integers(0, 5),
)


def masks(seed: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    mask, truth = random.random((2, 6, 7)) < share
    valid = random.random((6, 7)) < 0.8
    valid[0, 0] = True
    return mask, truth, valid


def sklearn_scores(truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The same scores by scikit-learn; its value for 0/0 is told by the rule: 1 if all is right."""
    empty: dict[str, float] = {"zero_division": float((truth == mask).all())}
    iou = referee.jaccard_score(truth, mask, **empty)
    iou_background = referee.jaccard_score(truth, mask, pos_label=False, **empty)
    return {
        "dice": referee.f1_score(truth, mask, **empty),
        "iou": iou,
        "precision": referee.precision_score(truth, mask, **empty),
        "recall": referee.recall_score(truth, mask, **empty),
        "specificity": referee.recall_score(truth, mask, pos_label=False, **empty),
        "accuracy": referee.accuracy_score(truth, mask),
        "mean_iou": (iou + iou_background) / 2,
    }


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
@settings(max_examples=30)
def test_scores_are_scikit_learns(seed: int, share: float) -> None:
    """Every score equals scikit-learn's on the valid pixels, empty and full masks included."""
    mask, truth, valid = masks(seed, share)
    expected = sklearn_scores(truth[valid], mask[valid])
    assert score_all(count(mask, truth, valid)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("dice", torch_referee.binary_f1_score),
        ("iou", torch_referee.binary_jaccard_index),
        ("precision", torch_referee.binary_precision),
        ("recall", torch_referee.binary_recall),
        ("specificity", torch_referee.binary_specificity),
        ("accuracy", torch_referee.binary_accuracy),
    ],
)
def test_scores_are_torchmetrics(name: str, theirs: Callable[..., torch.Tensor]) -> None:
    """Scores equal torchmetrics', ignored pixels too, wherever there is something to divide."""
    for seed in range(10):
        mask, truth, valid = masks(seed, 0.4)
        marked = torch.from_numpy(np.where(valid, truth, -1))
        expected = theirs(torch.from_numpy(mask).int(), marked, ignore_index=-1).item()
        assert score_all(count(mask, truth, valid))[name] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("case", "counts", "expected"),
    [
        ("both empty", Counts(tp=0, fp=0, fn=0, tn=9), (1, 1, 1, 1, 1, 1)),
        ("truth empty", Counts(tp=0, fp=2, fn=0, tn=2), (0, 0, 0, 0, 0.5, 0.5)),
        ("answer empty", Counts(tp=0, fp=0, fn=2, tn=2), (0, 0, 0, 0, 1, 0.5)),
        ("both full", Counts(tp=9, fp=0, fn=0, tn=0), (1, 1, 1, 1, 1, 1)),
        ("truth full", Counts(tp=2, fp=0, fn=2, tn=0), (2 / 3, 0.5, 1, 0.5, 0, 0.5)),
        ("answer full", Counts(tp=2, fp=2, fn=0, tn=0), (2 / 3, 0.5, 0.5, 1, 0, 0.5)),
        ("all ignored", Counts(tp=0, fp=0, fn=0, tn=0), (1, 1, 1, 1, 1, 1)),
    ],
)
def test_empty_rule(case: str, counts: Counts, expected: tuple[float, ...]) -> None:
    """What EMPTY_RULE says about empty and full masks is what the scores are."""
    names = ("dice", "iou", "precision", "recall", "specificity", "accuracy")
    assert [score_all(counts)[name] for name in names] == pytest.approx(expected), case


def test_rule_names_what_it_decides() -> None:
    """The rule's sentence speaks of every score that it can decide; each score has its meaning."""
    for name in ("Dice", "IoU", "precision", "recall", "Specificity", "mean IoU"):
        assert name in EMPTY_RULE
    assert all(metric.meaning and metric.label for metric in METRICS.values())


@given(counts=COUNTS)
def test_scores_are_shares(counts: Counts) -> None:
    """Every score is in [0, 1]; IoU is D / (2 - D) of the Dice D; perfect is 1 in all of them."""
    scores = score_all(counts)
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["iou"] == pytest.approx(scores["dice"] / (2 - scores["dice"]))
    perfect = counts.fp + counts.fn == 0
    assert all(value == 1 for value in scores.values()) == perfect


@given(many=st.lists(COUNTS, min_size=1, max_size=5))
def test_many_at_once_are_each_alone(many: list[Counts]) -> None:
    """Scores of a whole table are those of its rows, to the bit."""
    table = score_table(as_array(many))
    for row, counts in enumerate(many):
        assert {name: float(table[name][row]) for name in table} == score_all(counts)
