"""Probabilities: scikit-learn's Brier, curve and average precision, torchmetrics' ECE, batching."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    precision_score,
    recall_score,
)
from torchmetrics.functional.classification import binary_calibration_error

from binseg.errors import DataError
from binseg.metrics import (
    LogitTally,
    ProbabilityTally,
    count,
    dice,
    measure_reliability,
    pool,
    score_all,
    summarise_calibration,
)
from binseg.types import Sweep

Answer = tuple[np.ndarray, np.ndarray, np.ndarray]


def answers(seed: int, num: int = 5, *, grid: bool = False) -> list[Answer]:
    """Probabilities that know something of the truth; on a grid of 1/1024 if wished."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        shape = tuple(random.integers(5, 12, size=2))
        truth = random.random(shape) < 0.3
        probability = (0.4 * truth + 0.6 * random.random(shape)).astype(np.float32)
        if grid:
            probability = np.round(probability * 1024).astype(np.float32) / np.float32(1024)
        made.append((probability, truth, random.random(shape) < 0.9))
    return made


def pixels(images: list[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """All valid pixels: probability and truth."""
    return (
        np.concatenate([p[v] for p, _, v in images]),
        np.concatenate([t[v] for _, t, v in images]),
    )


def sweep_of(images: list[Answer]) -> Sweep:
    """Tally the images."""
    tally = ProbabilityTally()
    for image in images:
        tally.add(*image)
    return tally.sweep()


def fit_temperature(images: list[Answer]) -> float:
    """Fit a temperature to the images."""
    tally = LogitTally()
    for image in images:
        tally.add(*image)
    return tally.temperature()


def test_brier_is_scikit_learns() -> None:
    """The Brier score of all valid pixels, and of one image."""
    images = answers(0)
    probability, truth = pixels(images)
    found = summarise_calibration([measure_reliability(*image) for image in images])
    assert found.scores["brier"].value == pytest.approx(brier_score_loss(truth, probability))
    one = pixels(images[:1])
    expected = brier_score_loss(one[1], one[0])
    assert measure_reliability(*images[0]).scores["brier"] == pytest.approx(expected)


def test_reliability_curve_is_scikit_learns() -> None:
    """What is said and what is so in each bin that holds pixels, over 15 bins of equal width."""
    images = answers(1)
    probability, truth = pixels(images)
    share, said = calibration_curve(truth, probability, n_bins=15)
    bins = summarise_calibration([measure_reliability(*image) for image in images]).bins
    filled = [one for one in bins if one.num_pixels]
    assert [one.share for one in filled] == pytest.approx(share.tolist())
    assert [one.mean_probability for one in filled] == pytest.approx(said.tolist())
    assert all(one.low < one.mean_probability <= one.high for one in filled)
    assert sum(one.num_pixels for one in bins) == len(truth)


def test_calibration_error_is_torchmetrics() -> None:
    """The error over 15 equal bins equals torchmetrics', of the probability of foreground."""
    images = answers(2, 12)
    probability, truth = pixels(images)
    theirs = float(
        binary_calibration_error(
            torch.tensor(probability), torch.tensor(truth).long(), n_bins=15, norm="l1"
        )
    )
    found = summarise_calibration([measure_reliability(*image) for image in images])
    assert found.scores["ece"].value == pytest.approx(theirs, abs=1e-5)


def test_edges_of_bins() -> None:
    """0 is in the lowest bin, 1 in the highest, and 1/15 in the one that it closes."""
    said = np.array([[0.0, 1 / 15, 1.0]])
    everywhere = np.ones((1, 3), dtype=bool)
    found = measure_reliability(said.astype(np.float32), everywhere, everywhere)
    # float32 rounds 1/15 up, so that it is just above the edge.
    assert found.num_B[[0, 1, 14]].tolist() == [1, 1, 1]


def test_a_perfect_model_is_calibrated() -> None:
    """Probabilities 0 and 1 that are always right have no error at all."""
    truth = np.array([[True, False, True]])
    image = (truth.astype(np.float32), truth, np.ones_like(truth))
    found = summarise_calibration([measure_reliability(*image)])
    assert (found.scores["brier"].value, found.scores["ece"].value) == (0, 0)
    assert found.scores["brier"].interval is None


@pytest.mark.parametrize("truth", [np.zeros((3, 3), bool), np.ones((3, 3), bool)])
def test_masks_of_one_kind(truth: np.ndarray) -> None:
    """Empty and full truths have a Brier score, and the sweep has no nan."""
    everywhere = np.ones((3, 3), dtype=bool)
    image = (np.full((3, 3), 0.25, np.float32), truth, everywhere)
    found = summarise_calibration([measure_reliability(*image)])
    assert found.scores["brier"].value == pytest.approx((0.25 - truth.mean()) ** 2)
    sweep = sweep_of([image])
    assert np.isfinite(
        [*sweep.curves["mean_dice"], *sweep.curves["precision"], sweep.average_precision]
    ).all()


def test_average_precision_is_scikit_learns() -> None:
    """Of probabilities on the grid of thresholds exactly; of any others nearly."""
    images = answers(3, 8, grid=True)
    probability, truth = pixels(images)
    expected = average_precision_score(truth, probability)
    assert sweep_of(images).average_precision == pytest.approx(expected, abs=1e-12)
    images = answers(4, 8)
    probability, truth = pixels(images)
    expected = average_precision_score(truth, probability)
    assert sweep_of(images).average_precision == pytest.approx(expected, abs=2e-3)


def test_average_precision_without_foreground() -> None:
    """scikit-learn warns and gives 0 even to a model that is silent where nothing is; we give 1."""
    nothing, everywhere = np.zeros((2, 2), dtype=bool), np.ones((2, 2), dtype=bool)
    assert sweep_of([(np.zeros((2, 2), np.float32), nothing, everywhere)]).average_precision == 1
    assert (
        sweep_of([(np.full((2, 2), 0.5, np.float32), nothing, everywhere)]).average_precision == 0
    )
    with pytest.warns(UserWarning, match="No positive"):
        assert average_precision_score(nothing.ravel(), np.zeros(4)) == 0


def test_sweep_scores_every_threshold() -> None:
    """Mean and pooled scores at a threshold are those of comparing with it."""
    images = answers(5)
    probability, truth = pixels(images)
    sweep = sweep_of(images)
    for at in (0, 200, 512, 800):
        threshold = sweep.thresholds[at]
        counts = [count(p > threshold, t, v) for p, t, v in images]
        assert sweep.curves["mean_dice"][at] == pytest.approx(
            np.mean([dice(one) for one in counts])
        )
        assert sweep.curves["dice"][at] == pytest.approx(dice(pool(counts)))
        assert sweep.curves["iou"][at] == pytest.approx(score_all(pool(counts))["iou"])
        answered = probability > threshold
        assert sweep.curves["recall"][at] == pytest.approx(recall_score(truth, answered))
        if answered.any():
            assert sweep.curves["precision"][at] == pytest.approx(precision_score(truth, answered))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_order_and_batching_change_nothing(seed: int) -> None:
    """Images in another order, or several laid side by side, give the same figures."""
    images = answers(seed, 4)
    other = [images[i] for i in np.random.default_rng(seed).permutation(4)]
    joined = [
        (p[None, :], t[None, :], np.ones_like(t[None, :])) for p, t in (pixels(images[:2]),)
    ] + images[2:]
    first = summarise_calibration([measure_reliability(*image) for image in images])
    for some in (other, joined):
        again = summarise_calibration([measure_reliability(*image) for image in some])
        assert again.scores["brier"].value == pytest.approx(first.scores["brier"].value)
        assert again.scores["ece"].value == pytest.approx(first.scores["ece"].value)
        assert sweep_of(some).curves["dice"] == pytest.approx(sweep_of(images).curves["dice"])
        assert sweep_of(some).average_precision == pytest.approx(sweep_of(images).average_precision)
    assert sweep_of(other).curves["mean_dice"] == pytest.approx(
        sweep_of(images).curves["mean_dice"]
    )


def test_groups_widen_intervals() -> None:
    """Copies of an image in one group tell nothing new, so that the interval stays as it was."""
    images = [measure_reliability(*image) for image in answers(6, 8)]
    single = summarise_calibration(images).scores["brier"].interval
    copied = (
        summarise_calibration(
            [one for one in images for _ in range(5)],
            groups=[n for n in range(8) for _ in range(5)],
        )
        .scores["brier"]
        .interval
    )
    assert single is not None
    assert copied is not None
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))


def test_nothing_to_measure_is_refused() -> None:
    """No valid pixel is an error that says so, not a nan."""
    nothing = np.zeros((2, 2), dtype=bool)
    image = (nothing.astype(np.float32), nothing, nothing)
    with pytest.raises(DataError, match="calibration can't"):
        summarise_calibration([measure_reliability(*image)])
    with pytest.raises(DataError, match="thresholds can't"):
        sweep_of([image])
    with pytest.raises(DataError, match="temperature can't"):
        fit_temperature([image])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature: float) -> None:
    """Logits made too sure (or too shy) by a known factor get that factor back."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, size=(200, 200))
    truth = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    said = (1 / (1 + np.exp(-logits * temperature))).astype(np.float32)
    everywhere = np.ones_like(truth)
    found = fit_temperature([(said, truth, everywhere)])
    assert found == pytest.approx(temperature, rel=0.03)


def test_temperature_minimises_the_log_loss() -> None:
    """No temperature nearby has a lower loss by scikit-learn's measure."""
    images = answers(7, 6)
    probability, truth = pixels(images)
    found = fit_temperature(images)
    logits = np.log(probability.astype(np.float64)) - np.log1p(-probability.astype(np.float64))
    losses = [
        log_loss(truth, 1 / (1 + np.exp(-logits / t))) for t in (found, 0.97 * found, 1.03 * found)
    ]
    assert min(losses) == losses[0]


def test_temperature_of_a_sure_model_is_finite() -> None:
    """Probabilities of exactly 0 and 1, right or wrong, give a temperature within its bounds."""
    truth = np.array([[True, False, True, False]])
    everywhere = np.ones_like(truth)
    for said in (truth, ~truth):
        assert 0.04 < fit_temperature([(said.astype(np.float32), truth, everywhere)]) < 21
