"""The quality of a prediction without a truth: right on usual images, loud on others."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from binseg.evaluation.learning_quality import Lesson, fit_knowledge
from binseg.inference.prediction import Prediction
from binseg.inference.quality import (
    NAMES,
    NUM_OF_IMAGE,
    UNLIKE,
    Judge,
    describe_image,
    distances,
    expected_dice,
    figures,
    interval,
    rescaled,
    signs,
)
from binseg.packaging import Knowledge
from binseg.types import Preprocessing

SHAPE = Preprocessing(
    height=64, width=64, resize="stretch", mean=(0.5,) * 3, std=(0.5,) * 3, channels=3
)


def image(seed: int, *, blur: float = 1.5, noise: float = 0.15) -> tuple[np.ndarray, ...]:
    """Draw a grey disc; give it with the probability of a calibrated model and a truth of it."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    y, x, radius = random.uniform(24, 40), random.uniform(24, 40), random.uniform(10, 18)
    height = radius - np.hypot(rows - y, columns - x)
    pattern = ndimage.gaussian_filter(random.normal(0, 1, (64, 64)), blur)
    grey = 0.2 + 0.5 * (height > 0) + noise * pattern / pattern.std()
    image_HWC = np.repeat((grey.clip(0, 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    width = random.uniform(0.3, 5)
    probability = 1 / (1 + np.exp(-height / width))
    # One threshold for all: the truth's outline is off as a whole, as models' outlines are.
    truth = probability > random.uniform()
    return image_HWC, probability.astype(np.float32), truth


def lesson(seed: int) -> Lesson:
    """Measure an image as validation does."""
    image_HWC, probability, truth = image(seed)
    mask = probability > 0.5
    statistics_D, signs_K = figures(image_HWC, probability, mask, SHAPE)
    return Lesson(
        statistics_D=statistics_D,
        scaled_SI=np.stack([describe_image(x, SHAPE, size=(64, 64)) for x in rescaled(image_HWC)]),
        signs_K=signs_K,
        dice=2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()),
        group=seed,
        pixel_um=None,
        counts_T4=np.zeros((1, 4), np.int64),
    )


@pytest.fixture(scope="module")
def known() -> Knowledge:
    """Learn from 80 images."""
    return fit_knowledge([lesson(seed) for seed in range(80)])


def quality_of(known: Knowledge, image_HWC: np.ndarray, probability: np.ndarray) -> Prediction:
    """Make a prediction that is judged."""
    return Prediction(
        probability_HW=probability, threshold=0.5, bundle_id="x", image_HWC=image_HWC,
        judge=Judge(knowledge=known, preprocessing=SHAPE),
    )  # fmt: skip


def promised(seed: int) -> Lesson:
    """Measure the probabilities of an image alone."""
    _, probability, truth = image(seed)
    mask = probability > 0.5
    return Lesson(
        statistics_D=np.zeros(len(NAMES)),
        scaled_SI=np.zeros((2, NUM_OF_IMAGE)),
        signs_K=signs(probability, mask),
        dice=2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()),
        group=seed,
        pixel_um=None,
        counts_T4=np.zeros((1, 4), np.int64),
    )


def test_intervals_cover_new_images_as_promised() -> None:
    """Over eight calibrations by 100 images, 87 to 93 % of new images lie in the 90 % interval."""
    lessons = [promised(seed) for seed in range(1200)]
    signs_NK = np.stack([one.signs_K for one in lessons])
    dice_N = np.array([one.dice for one in lessons])
    inside = []
    for start in range(0, 800, 100):
        known = fit_knowledge(lessons[start : start + 100])
        expected_N = expected_dice(signs_NK, known.coefficients)
        low_N, high_N = interval(expected_N, known)
        inside.append(((dice_N >= low_N) & (dice_N <= high_N))[800:].mean())
    assert 0.87 <= np.mean(inside) <= 0.93


def test_hardly_any_usual_image_is_flagged(known: Knowledge) -> None:
    """At most 5 % of new images of the same kind count as unlike the training data."""
    found = [quality_of(known, *image(seed)[:2]).quality for seed in range(2000, 2100)]
    assert sum(one is not None and one.flag == UNLIKE for one in found) <= 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x * np.array([1, 0.4, 0.7]), "colour where training was grey"),
        (lambda x: np.random.default_rng(0).integers(0, 256, x.shape), "noise"),
        (lambda x: 255 - x, "bright"),
        (lambda x: np.full_like(x, 128), "contrast"),
    ],
)
def test_unlike_images_are_flagged_with_the_reason(
    known: Knowledge, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    """Colour, noise, an inverted and an empty image are flagged, each with what is unusual."""
    image_HWC, probability, _ = image(5000)
    quality = quality_of(known, change(image_HWC).astype(np.uint8), probability).quality
    assert quality is not None
    assert quality.flag == UNLIKE
    assert words in quality.reason
    assert quality.distance > 1


@pytest.mark.parametrize(("which", "words"), [(0, "larger pixels"), (1, "smaller pixels")])
def test_another_pixel_size_is_flagged_with_the_reason(
    known: Knowledge, which: int, words: str
) -> None:
    """Of new images taken with pixels of three times, and a third, the size most are flagged."""
    told = []
    for seed in range(3000, 3040):
        image_HWC, probability, _ = image(seed)
        quality = quality_of(known, rescaled(image_HWC)[which], probability).quality
        assert quality is not None
        told.append(quality.flag == UNLIKE and words in quality.reason)
    assert sum(told) >= 30


def test_images_between_two_kinds_are_farther_than_those_of_either() -> None:
    """The nearest usual image counts, not the mean of all, which may be like none of them."""

    def figures_of(seed: int, shift: float) -> np.ndarray:
        return np.random.default_rng(seed).normal(0, 0.05, len(NAMES)) + shift

    lessons = [
        replace(promised(seed), statistics_D=figures_of(seed, 2.0 * (seed % 2)))
        for seed in range(60)
    ]
    known = fit_knowledge(lessons)
    found = distances(np.stack([figures_of(seed, seed - 99.0) for seed in (99, 100, 101)]), known)
    assert found[1] > max(found[0], found[2])


def test_quality_stands_in_every_output(known: Knowledge) -> None:
    """JSON, the table and the repr give the same figure; a model without knowledge gives none."""
    image_HWC, probability, _ = image(3)
    found = quality_of(known, image_HWC, probability)
    assert found.quality is not None
    figure = round(found.quality.expected_dice, 4)
    assert found.as_dict()["quality"]["expected_dice"] == figure
    assert f",{figure},{found.quality.flag}" in found.table()
    assert "expected Dice" in repr(found)
    plain = Prediction(probability_HW=probability, threshold=0.5, bundle_id="x")
    assert plain.quality is None
    assert plain.as_dict()["quality"] is None
