"""Two models on the same images: scipy's answers, verdicts, how often noise is called real."""

import numpy as np
import pytest
from scipy import stats

from binseg.evaluation.comparison import compare_scores
from binseg.metrics.scores import bootstrap_interval


def test_interval_and_p_are_scipys() -> None:
    """The interval is that of scipy's paired bootstrap, p that of its signed-rank test."""
    random = np.random.default_rng(0)
    a = random.beta(8, 2, size=50)
    b = np.clip(a + random.normal(0.01, 0.03, size=50), 0, 1)
    found = compare_scores("dice", a, b)
    expected = stats.bootstrap(
        (a, b),
        lambda x, y, axis: np.mean(y - x, axis=axis),
        paired=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (expected.low, expected.high), abs=5e-4
    )
    assert found.p == pytest.approx(stats.wilcoxon(b - a).pvalue)
    assert found.difference == pytest.approx(b.mean() - a.mean())


def test_swapping_the_models_swaps_the_verdict() -> None:
    """A and B in the other order: the difference changes its sign, p and the rest stay."""
    random = np.random.default_rng(1)
    a = random.random(40)
    b = a + 0.1 + 0.05 * random.random(40)
    one, other = compare_scores("dice", a, b), compare_scores("dice", b, a)
    assert (one.verdict, other.verdict) == ("b", "a")
    assert one.difference == -other.difference
    assert one.p == other.p
    assert (one.num_better, one.num_worse) == (other.num_worse, other.num_better) == (40, 0)


def test_of_distances_the_smaller_is_better() -> None:
    """Of a score whose row says that less is better, the model with less is the better one."""
    a, b = np.linspace(5, 9, 20), np.linspace(4, 7, 20)
    found = compare_scores("hd95", a, b)
    assert (found.verdict, found.num_better) == ("b", 20)


def test_equal_models_are_the_same() -> None:
    """Where no image differs there is neither a winner nor a warning of scipy's."""
    found = compare_scores("dice", [0.5, 0.7, 1.0], [0.5, 0.7, 1.0])
    assert (found.verdict, found.p) == ("same", 1)


def test_one_image_tells_nothing() -> None:
    """A single image, or group, has no interval, and no model wins on it."""
    assert compare_scores("dice", [0.1], [0.9]).verdict == "noise"
    assert compare_scores("dice", [0.1, 0.2], [0.8, 0.9], groups=["p", "p"]).verdict == "noise"


def test_pairing_sees_what_two_intervals_hide() -> None:
    """A small gain on every image is real, though the intervals of both means overlap."""
    random = np.random.default_rng(2)
    a = random.beta(4, 2, size=60)
    b = a + 0.01 + 0.002 * random.random(60)
    own = [bootstrap_interval(each) for each in (a, b)]
    assert own[0] is not None
    assert own[1] is not None
    assert own[0].high > own[1].low
    assert compare_scores("dice", a, b).verdict == "b"


def test_groups_are_one_voice() -> None:
    """Ten copies of six differences are six differences, in the interval and in p."""
    random = np.random.default_rng(3)
    a, b = random.random(6), random.random(6)
    groups = [n for n in range(6) for _ in range(10)]
    copied = compare_scores("dice", np.repeat(a, 10), np.repeat(b, 10), groups=groups)
    single = compare_scores("dice", a, b)
    assert copied.p == pytest.approx(single.p)
    assert copied.interval is not None
    assert single.interval is not None
    assert copied.interval.low == pytest.approx(single.interval.low)


def test_noise_is_seldom_called_better() -> None:
    """Of equally good models, about 1 in 20 pairs is told apart (2-8% of 400, 80 images each)."""
    random = np.random.default_rng(4)
    told = 0
    for seed in range(400):
        easy = random.beta(6, 2, size=80)
        a, b = (easy + random.normal(0, 0.05, size=80) for _ in range(2))
        told += compare_scores("dice", a, b, num_resamples=400, seed=seed).verdict != "noise"
    assert 0.02 * 400 <= told <= 0.08 * 400
