"""What validation decides: temperature and threshold, from one pass."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

import binseg
from binseg.evaluation.tuning import Tuned, move_threshold, tell_calibration
from binseg.inference import sigmoid
from binseg.packaging import read_bundle
from binseg.transforms.preprocess import normalise


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.9, 5.0])
def test_a_moved_threshold_cuts_at_the_same_logit(temperature: float) -> None:
    """Without resizing, the mask of calibrated probabilities is the one that was tuned."""
    logits_N = np.random.default_rng(0).normal(0, 4, 2000).astype(np.float32)
    for threshold in (0.0, 0.1, 0.5, 0.538, 0.97):
        before_N = sigmoid(logits_N) > threshold
        after_N = sigmoid(logits_N / np.float32(temperature)) > move_threshold(
            threshold, temperature
        )
        assert np.array_equal(before_N, after_N)


def test_the_temperature_travels_in_the_bundle(trained: Path) -> None:
    """The reference probability is of the logits over the card's temperature, which isn't 1."""
    bundle = read_bundle(trained)
    model, reference = binseg.load(trained), bundle.reference()
    assert bundle.card.temperature != 1.0
    logits_NHW = model.backend.logits(normalise(reference.input_NHWC, model.preprocessing))
    expected_NHW = expit(logits_NHW.astype(np.float64) / bundle.card.temperature)
    np.testing.assert_allclose(reference.probability_NHW, expected_NHW, atol=1e-5)


def test_training_says_what_calibration_did(train_output: tuple[Path, str, str]) -> None:
    """One line names the temperature and the calibration error before and after."""
    out, _, said = train_output
    assert f"temperature {read_bundle(out).card.temperature:g}: expected calibration error" in said


def test_the_temperature_is_part_of_the_id(trained: Path) -> None:
    """The same weights without their temperature are another model."""
    bundle = read_bundle(trained)
    plain = bundle.card.model_copy(update={"temperature": 1.0})
    assert plain.identity(bundle.sha256) != bundle.card.identity(bundle.sha256) == bundle.card.id


def test_nothing_is_said_where_nothing_was_fitted(trained: Path) -> None:
    """A fixed threshold has no temperature to tell of."""

    class Deaf:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    card = read_bundle(trained).card
    report = binseg.evaluate(trained, split="val")
    tell_calibration(Tuned(threshold=card.threshold), report, Deaf())  # type: ignore[arg-type]
