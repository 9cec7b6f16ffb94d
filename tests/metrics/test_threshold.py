"""The decision threshold: exact counts at every candidate, the best mean Dice, mid-plateau."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binseg.errors import DataError
from binseg.inference import Prediction
from binseg.metrics import dice, tune_threshold
from binseg.metrics.probabilities import counts_of, histogram
from binseg.metrics.scores import as_array, count

Answer = tuple[np.ndarray, np.ndarray, np.ndarray]
THRESHOLDS = np.arange(1024) / 1024


def answers(seed: int, num: int = 4) -> list[Answer]:
    """Probabilities that know something of the truth, some of them exactly on a candidate."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        truth = random.random((8, 9)) < 0.3
        probability = (0.35 * truth + 0.65 * random.random((8, 9))).astype(np.float32)
        on_edge = random.random((8, 9)) < 0.3
        edges = (np.round(probability * 1024) / 1024).astype(np.float32)
        near = random.choice([-1.0, 0.0, 1.0], size=(8, 9)).astype(np.float32)
        edges = np.nextafter(edges, edges + near).clip(0, 1)
        valid = random.random((8, 9)) < 0.9
        made.append((np.where(on_edge, edges, probability), truth, valid))
    return made


@given(seed=st.integers(0, 10_000))
def test_histogram_counts_what_comparing_counts(seed: int) -> None:
    """At all 1,024 candidates the counts are those of `probability > threshold`, edges included."""
    probability, truth, valid = answers(seed, num=1)[0]
    expected = [count(probability > float(t), truth, valid) for t in THRESHOLDS[::31]]
    found = counts_of(histogram(probability, truth, valid))[::31]
    assert np.array_equal(found, as_array(expected))


def test_thresholds_hit_exactly() -> None:
    """A probability that equals a candidate isn't above it, and the next float up is."""
    for t in THRESHOLDS:
        exact = np.float32(t)
        pair = np.array([[exact, np.nextafter(exact, np.float32(2))]], dtype=np.float32)
        everywhere = np.ones((1, 2), dtype=bool)
        tp = counts_of(histogram(pair, everywhere, everywhere))[:, 0]
        assert tp[int(t * 1024)] == 1


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_choice_is_what_trying_all_finds(seed: int) -> None:
    """The chosen Dice is the best that any candidate gives, and what the prediction then scores."""
    images = answers(seed)
    choice = tune_threshold(iter(images))
    means = [
        np.mean([dice(count(p > float(t), truth, valid)) for p, truth, valid in images])
        for t in THRESHOLDS[::16]
    ]
    assert choice.dice >= max(means) - 1e-9
    assert choice.dice_T[::16] == pytest.approx(np.array(means))
    scored = [
        dice(count(_predict(p, choice.threshold), truth, valid)) for p, truth, valid in images
    ]
    assert np.mean(scored) == pytest.approx(choice.dice)
    assert choice.dice_T[choice.thresholds_T == choice.threshold].tolist() == [choice.dice]
    assert choice.num_images == 4


def _predict(probability: np.ndarray, threshold: float) -> np.ndarray:
    return Prediction(probability_HW=probability, threshold=threshold, bundle_id="x").mask


def test_mostly_empty_images_are_judged_together() -> None:
    """Of nine empty images with specks and one object: the mean would drown the object."""
    everywhere = np.ones((10, 10), dtype=bool)
    nothing, thing = np.zeros((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
    thing[:5] = True
    speck, found = np.zeros((2, 10, 10), dtype=np.float32)
    speck[0, 0] = 0.9
    found[:5], found[0, :5] = 0.7, 0.95
    seen = [(found, thing, everywhere), *[(speck, nothing, everywhere)] * 9]
    choice = tune_threshold(iter(seen))
    assert choice.is_pooled
    assert choice.threshold < 0.7
    assert choice.dice == pytest.approx(100 / 109)
    full = tune_threshold(iter(seen[1:]))  # of nothing but empty ones there is no other mean
    assert not full.is_pooled
    assert full.threshold > 0.9
    half = [(found, thing, everywhere)] * 2 + [(speck, nothing, everywhere)] * 2
    assert not tune_threshold(iter(half)).is_pooled


def test_sure_model_gets_a_half() -> None:
    """Where every threshold is as good, the middle is taken: 0.5."""
    truth = np.array([[True, False, True]])
    choice = tune_threshold([(truth.astype(np.float32), truth, np.ones((1, 3), dtype=bool))])
    assert (choice.threshold, choice.dice, choice.dice_at_half) == (0.5, 1.0, 1.0)


def test_middle_of_the_plateau() -> None:
    """With background up to 0.25 and foreground from 0.75, the threshold lies half-way."""
    probability = np.array([[0.25, 0.1, 0.75, 0.9]], dtype=np.float32)
    choice = tune_threshold([(probability, probability > 0.5, np.ones((1, 4), dtype=bool))])
    assert choice.threshold == pytest.approx(0.5, abs=1 / 1024)


def test_a_timid_model_gets_a_low_threshold() -> None:
    """Probabilities that never reach 0.5 still give a perfect mask at their own threshold."""
    truth = np.array([[True, True, False, False]])
    probability = np.array([[0.3, 0.2, 0.05, 0.1]], dtype=np.float32)
    choice = tune_threshold([(probability, truth, np.ones((1, 4), dtype=bool))])
    assert choice.dice == 1
    assert 0.1 <= choice.threshold < 0.2
    assert choice.dice_at_half == 0


def test_images_weigh_the_same() -> None:
    """The mean is over images, so that one huge image doesn't choose for many small ones."""

    def image(num: int, foreground: float, background: float) -> Answer:
        truth = np.arange(2 * num)[None] < num
        probability = np.where(truth, foreground, background).astype(np.float32)
        return probability, truth, np.ones_like(truth)

    small = [image(1, 0.3, 0.1) for _ in range(3)]
    choice = tune_threshold([image(10_000, 0.9, 0.6), *small])
    assert 0.1 <= choice.threshold < 0.3


def test_images_come_one_at_a_time() -> None:
    """Images are taken from an iterator, each once; those wholly ignored are passed over."""
    taken = []

    def one_by_one() -> Iterator[Answer]:
        for number, image in enumerate(answers(0)):
            taken.append(number)
            probability, truth, valid = image
            yield probability, truth, valid & (number != 2)

    assert tune_threshold(one_by_one()).num_images == 3
    assert taken == [0, 1, 2, 3]


def test_nothing_to_choose_from_is_refused() -> None:
    """No valid pixel in any image is a clear error, not a threshold."""
    nothing = np.zeros((2, 2), dtype=bool)
    for images in ([], [(nothing.astype(np.float32), nothing, nothing)]):
        with pytest.raises(DataError, match="threshold can't be chosen"):
            tune_threshold(images)


def test_nan_is_our_own_mistake() -> None:
    """A probability that is none never gets into the histogram."""
    everywhere = np.ones((1, 2), dtype=bool)
    with pytest.raises(AssertionError, match="nan"):
        counts_of(histogram(np.array([[0.5, np.nan]], dtype=np.float32), everywhere, everywhere))
