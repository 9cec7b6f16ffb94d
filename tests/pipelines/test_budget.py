"""How long a run will take: figures that can be worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from binseg.autoconfig import Fingerprint, Machine
from binseg.config import Recipe, load_recipe
from binseg.evaluation.learning_quality import NUM_USUAL
from binseg.pipelines.budget import (
    EXPECTED_CLOSING,
    OPENING,
    Ending,
    expected_seconds,
    num_predictions,
    training_seconds,
    within_time,
)
from binseg.progress import SILENT

Make = Callable[..., Recipe]


@pytest.fixture
def make() -> Make:
    def make(fit: str = "stretch", **train: object) -> Recipe:
        sections: dict[str, dict[str, object]] = {
            "input": {"size": 200, "resize": fit},
            "model": {"name": "unet"},
            "train": {"epochs": 10, "tta": "none", **train},
        }
        return load_recipe(sections=sections)

    return make


@pytest.fixture
def facts(photos: Fingerprint) -> Fingerprint:
    """A thousand images for training, and none for validation unless a test says so."""
    return replace(photos, num_train=1000, num_val=0)


def steps(seconds: float, facts: Fingerprint, *, read: int) -> float:
    """What is left without opening, closing, reading and comparing so many, and judging 60."""
    own = facts.height[1] * facts.width[1] / 1e6
    judging = 0.65 * NUM_USUAL * 0.04 * 1.2
    return seconds - OPENING - EXPECTED_CLOSING - (0.04 * own + 0.006) * read - judging


def test_a_budget_is_what_it_takes(make: Make, facts: Fingerprint, machine: Machine) -> None:
    """Whatever the epochs are."""
    recipe = make(budget_minutes=3, epochs=1000)
    assert expected_seconds(recipe, facts, machine) == 180


def test_whole_images(make: Make, facts: Fingerprint, machine: Machine) -> None:
    """Ten times 1,000 inputs of 0.04 megapixels at 1.2 seconds for one are 480 seconds."""
    seconds = expected_seconds(make(), facts, machine)
    assert steps(seconds, facts, read=1000) == pytest.approx(480)


def test_smaller_sizes_cost_less(make: Make, facts: Fingerprint, machine: Machine) -> None:
    """Half of the epochs at a quarter of the pixels."""
    seconds = expected_seconds(make(progressive={100: 0.5}), facts, machine)
    assert steps(seconds, facts, read=1000) == pytest.approx(480 * 0.625)


def test_part_of_the_images_an_epoch(make: Make, facts: Fingerprint, machine: Machine) -> None:
    """As many inputs as the recipe says."""
    seconds = expected_seconds(make(per_epoch=250), facts, machine)
    assert steps(seconds, facts, read=1000) == pytest.approx(120)


def test_patches_cover_the_images(make: Make, facts: Fingerprint, machine: Machine) -> None:
    """480x640 pixels are 7.68 patches of 200x200."""
    seconds = expected_seconds(make("tile", epochs=20), facts, machine)
    more = seconds - expected_seconds(make("tile"), facts, machine)
    assert more == pytest.approx(7.68 * 480, rel=1e-3)


def test_validation_and_scores(make: Make, facts: Fingerprint, machine: Machine) -> None:
    """Each epoch validates 100 inputs; the end predicts 348, and measures 100 images."""
    judged = replace(facts, num_val=100)
    recipe = make()
    more = expected_seconds(recipe, judged, machine) - expected_seconds(recipe, facts, machine)
    assert num_predictions(recipe, 100, 1000) == 348
    validating, predicting = 0.3 * 1000 * 0.04 * 1.2, 0.65 * (348 - NUM_USUAL) * 0.04 * 1.2
    own = 100 * (0.3072 * (0.12 + 0.04) + 0.006)
    assert more == pytest.approx(validating + predicting + own)


def test_each_step_has_its_own_cost(make: Make, facts: Fingerprint, machine: Machine) -> None:
    """Ten times 63 batches of at most 16; a prediction starts in a fifth of that."""
    recipe, judged = make(), replace(facts, num_val=100)
    slow = replace(machine, seconds_per_step={"unet": 0.5})
    more = expected_seconds(recipe, judged, slow) - expected_seconds(recipe, judged, machine)
    assert more == pytest.approx(0.5 * (630 + 0.2 * 348))


@pytest.mark.parametrize(
    ("tta", "orientation", "num"),
    [
        ("none", "any", 348),
        ("horizontal", "upright", 696),
        ("all", "any", 1392),
        ("tune", "upright", 696 + 3 * 64),
        ("tune", "any", 1392 + 5 * 64),
        ("tune", "fixed", 348),
    ],
)
def test_mirror_images_are_counted(make: Make, tta: str, orientation: str, num: int) -> None:
    """Tried on 64 images, and if all help, predicted for every image."""
    recipe = make(tta=tta)
    augment = recipe.augment.model_copy(update={"preset": "medium", "orientation": orientation})
    turned = recipe.model_copy(update={"augment": augment})
    assert num_predictions(turned, 100, 1000) == num


def test_training_images_help_few_to_say_what_is_usual(make: Make) -> None:
    """10 images validate: thrice, and 50 others are judged; where there are only 20, those."""
    assert num_predictions(make(), 10, 1000) == 3 * 10 + 10 + (NUM_USUAL - 10)
    assert num_predictions(make(), 10, 20) == 3 * 10 + 10 + 20


def test_a_fixed_threshold_needs_no_pass_of_its_own(make: Make) -> None:
    """Nothing is chosen: the images are predicted for scores, report and card."""
    assert num_predictions(make(threshold=0.5), 100, 1000) == 348 - 100


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (2000.0, ("tune", "tune")),
        (600.0, ("none", "tune")),
        (400.0, ("none", "none")),
        (-20.0, ("none", "none")),
    ],
)
def test_trials_end_where_the_clock_says_so(make: Make, left: float, kept: tuple[str, str]) -> None:
    """100 images: 1,932 s with tta in 4 passes, 568 s without, 368 s without corrections, too."""
    recipe = make(tta="tune", postprocess="tune")
    augment = recipe.augment.model_copy(update={"preset": "medium", "orientation": "any"})
    recipe = recipe.model_copy(update={"augment": augment})
    ending = Ending(
        num=100, num_train=900, predicting=1.0, measuring=0.14, cleaning=2.0, closing=6.0
    )
    assert ending.seconds(recipe) == pytest.approx(1392 + 5 * 64 + 14 + 200 + 6)
    found = within_time(recipe, ending, left, SILENT).train
    assert (found.tta, found.postprocess) == kept


def test_asked_for_tta_is_never_given_up(make: Make) -> None:
    """Only what is tried can be left out; who gives a setting gets it."""
    recipe = make(tta="all", postprocess="none")
    ending = Ending(
        num=100, num_train=900, predicting=1.0, measuring=0.1, cleaning=2.0, closing=6.0
    )
    assert within_time(recipe, ending, 0.0, SILENT) == recipe


def test_the_end_gets_half_as_much_again_as_was_measured() -> None:
    """The machine may become busier; where nothing is left, a fifth is trained."""
    assert training_seconds(3.0, spent=35.0, ending=14.0, progress=SILENT) == 180 - 35 - 21
    assert training_seconds(1.0, spent=40.0, ending=20.0, progress=SILENT) == 12
