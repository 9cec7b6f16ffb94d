"""TTA and ensembles: means of answers, at the right places, of the right models."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from binseg.errors import UsageError
from binseg.inference import EnsemblePredictor, ModelPredictor, PredictOptions, Predictor
from binseg.types import Preprocessing

PLAIN = Preprocessing(height=16, width=16, mean=(0.0,) * 3, std=(1.0,) * 3)


class Slanted:
    """A backend that prefers the upper left corner, so that it isn't blind to mirrors."""

    name, precision = "slanted", "fp32"

    def __init__(self, gain: float = 8.0) -> None:
        self.gain = gain
        self.num_inputs = 0

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        self.num_inputs += len(inputs_NCHW)
        height, width = inputs_NCHW.shape[2:]
        slope = np.linspace(1, 0, height)[:, None] + np.linspace(0.5, 0, width)[None]
        found: np.ndarray = (self.gain * (inputs_NCHW[:, 0] - 0.5) + slope).astype(np.float32)
        return found


def predictor(
    name: str = "one", *, gain: float = 8.0, threshold: float = 0.5, **options: Any
) -> ModelPredictor:
    return ModelPredictor(
        backend=Slanted(gain),
        preprocessing=options.pop("preprocessing", PLAIN),
        threshold=threshold,
        bundle_id=name,
        **options,
    )


def photo(seed: int = 0, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_horizontal_flips_are_the_mean_of_two() -> None:
    """The logit is the mean of the image's and its mirror image's, turned back."""
    image = photo()
    plain = predictor()
    logits = logit(plain.predict(image).probability)
    mirrored = logit(plain.predict(image[:, ::-1]).probability)[:, ::-1]
    found = predictor(tta="horizontal").predict(image).probability
    assert np.allclose(found, expit((logits + mirrored) / 2), atol=1e-5)
    # So the temperature moves the mean just as it moves one answer.
    cooled = predictor(tta="horizontal", temperature=2.0).predict(image).probability
    assert np.allclose(cooled, expit((logits + mirrored) / 4), atol=1e-5)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_all_flips_answer_mirror_images_alike(axes: tuple[int, ...]) -> None:
    """With all four tta, a mirrored image has the mirrored answer."""
    model, image = predictor(tta="all"), photo(1)
    turned = model.predict(np.flip(image, axes)).probability
    assert np.allclose(np.flip(turned, axes), model.predict(image).probability, atol=1e-6)
    assert not np.allclose(predictor().predict(image).probability, turned, atol=1e-3)


@pytest.mark.parametrize(("tta", "times"), [("none", 1), ("horizontal", 2), ("all", 4)])
def test_flips_cost_what_they_say(tta: Any, times: int) -> None:
    """Each kind computes as many inputs for an image as its help says."""
    model = predictor(tta=tta)
    model.predict(photo())
    assert isinstance(model.backend, Slanted)
    assert model.backend.num_inputs == times


def test_unknown_flips_are_refused() -> None:
    """A typo names what there is."""
    with pytest.raises(UsageError, match="none, horizontal, all"):
        predictor(tta="vertical")


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "tile"])
def test_an_ensemble_is_the_mean(mode: Any) -> None:
    """The probability is the mean of the members' at the image's own size."""
    shape = replace(PLAIN, resize=mode)
    members = [predictor(f"m{g}", gain=g, preprocessing=shape) for g in (2.0, 5.0, 9.0)]
    image = photo(2, height=21, width=30)
    found = EnsemblePredictor(members).predict(image)
    expected = np.mean([one.predict(image).probability for one in members], axis=0)
    assert np.allclose(found.probability, expected, atol=1e-6)
    assert found.bundle_id == "m2.0+m5.0+m9.0"


def test_members_may_have_inputs_of_their_own() -> None:
    """Models of other input sizes are averaged at the image's size."""
    large = replace(PLAIN, height=24, width=32)
    members = [predictor("small"), predictor("large", preprocessing=large, threshold=0.7)]
    both = EnsemblePredictor(members)
    image = photo(3, height=40, width=50)
    expected = np.mean([one.predict(image).probability for one in members], axis=0)
    assert np.allclose(both.predict(image).probability, expected, atol=1e-6)
    assert not both.has_one_input
    assert both.threshold == pytest.approx(0.6)
    assert EnsemblePredictor([members[0], predictor("b")]).has_one_input


def test_inputs_are_averaged_too() -> None:
    """Prepared inputs have the members' mean, as training's sizes are scored by it."""
    members = [predictor("a", gain=3.0), predictor("b", gain=7.0)]
    inputs = photo(4)[None]
    expected = np.mean([one.probability_of_inputs(inputs) for one in members], axis=0)
    assert np.allclose(
        EnsemblePredictor(members).probability_of_inputs(inputs), expected, atol=1e-7
    )


def test_another_threshold_changes_nothing_else() -> None:
    """Another threshold keeps members and tta, and leaves the model itself as it was."""
    models: list[Predictor] = [
        predictor(tta="all"),
        EnsemblePredictor([predictor("a"), predictor("b", gain=1.0)]),
    ]
    for model in models:
        other = model.with_options(PredictOptions(threshold=0.9))
        image = photo(5)
        assert np.array_equal(other.predict(image).probability, model.predict(image).probability)
        assert (model.threshold, other.threshold) == (0.5, 0.9)
        assert type(other) is type(model)
    with pytest.raises(UsageError, match="threshold 2"):
        predictor().with_options(PredictOptions(threshold=2))


def test_an_ensemble_needs_different_models() -> None:
    """One model, or one of them twice, is no ensemble."""
    with pytest.raises(UsageError, match="at least two"):
        EnsemblePredictor([predictor()])
    with pytest.raises(UsageError, match="twice"):
        EnsemblePredictor([predictor("a"), predictor("a")])


def test_probabilities_stay_probabilities() -> None:
    """Means of many ones and zeros are never above 1 or below 0."""
    sure = [predictor(f"m{n}", gain=1e4) for n in range(7)]
    image = np.where(photo(6) > 127, 255, 0).astype(np.uint8)
    found = EnsemblePredictor(sure).predict(image).probability
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
