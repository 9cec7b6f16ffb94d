"""Thresholds with a guarantee: kept as often as promised, and between those of MAPIE's methods."""

import numpy as np
import pytest

from binseg.errors import DataError, UsageError
from binseg.evaluation.learning_quality import choose_guaranteed, parse_guarantee
from binseg.metrics.probabilities import NUM_THRESHOLDS

THRESHOLDS = np.arange(NUM_THRESHOLDS) / NUM_THRESHOLDS


def images(num: int, seed: int) -> list[np.ndarray]:
    """Draw counts at each threshold: of 1,000 foreground pixels more are lost at higher ones."""
    random = np.random.default_rng(seed)
    steepness = random.beta(2, 8, num)
    found = []
    for steep in steepness:
        missed = np.round(1000 * np.minimum(1, steep * THRESHOLDS**2))
        alarms = np.round(9000 * steep * (1 - THRESHOLDS) ** 2)
        found.append(np.stack([1000 - missed, alarms, missed, 9000 - alarms], axis=1))
    return found


def chosen(score: str, wanted: float, counts: list[np.ndarray]) -> float:
    """Choose a threshold for images without groups."""
    groups = list(range(len(counts)))
    return choose_guaranteed(score, wanted, counts, groups=groups, own_threshold=0.5).threshold


@pytest.mark.parametrize(("score", "wanted"), [("recall", 0.95), ("fpr", 0.05)])
def test_a_guarantee_holds_in_93_of_100_calibrations(score: str, wanted: float) -> None:
    """New images of the same kind keep the promise in at least 93 of 100 random calibrations."""
    many = np.stack(images(4000, seed=0))
    held = 0
    for seed in range(1, 101):
        threshold = chosen(score, wanted, images(200, seed))
        tp, fp, fn, tn = many[:, round(threshold * NUM_THRESHOLDS)].T
        recall, fpr = float((tp / (tp + fn)).mean()), float((fp / (fp + tn)).mean())
        held += recall >= wanted if score == "recall" else fpr <= wanted
    assert held >= 93


def test_the_threshold_lies_between_mapies() -> None:
    """MAPIE's Hoeffding bound promises the same by more images, its CRC keeps it on average only.

    So that its one is below, and its other one above, the threshold that is chosen.
    """
    methods = pytest.importorskip("mapie.risk_control.methods")
    counts = images(300, seed=7)
    risks = np.stack([1 - one[:, 0] / (one[:, 0] + one[:, 2]) for one in counts])
    ours = chosen("recall", 0.9, counts)
    found = {}
    for name, method, bound in (("hoeffding", "rcps", "hoeffding"), ("crc", "crc", None)):
        _, upper = methods.get_r_hat_plus(risks, THRESHOLDS, method, bound, 0.05, 0.25)
        found[name] = float(THRESHOLDS[np.flatnonzero(upper <= 0.1)[-1]])
    assert found["hoeffding"] < ours < found["crc"]


def test_too_few_images_say_how_many_are_needed() -> None:
    """Without any loss, 59 images show a risk below 5 %: 0.95 to the 59th is less than 0.05."""
    perfect = [np.tile([1000, 0, 0, 9000], (NUM_THRESHOLDS, 1))] * 58
    with pytest.raises(DataError, match=r"58 validation images .* about 116 are needed"):
        chosen("recall", 0.95, perfect)
    assert chosen("recall", 0.95, perfect[:1] * 60) > 0.99


def test_a_group_counts_as_one_image() -> None:
    """Copies of one image teach nothing: a hundred of one group are too few."""
    counts = [images(1, seed=1)[0]] * 100
    with pytest.raises(DataError, match="1 validation images"):
        choose_guaranteed("recall", 0.9, counts, groups=["a"] * 100, own_threshold=0.5)


def test_what_validation_does_not_show_is_refused() -> None:
    """A Dice above that of validation is refused with the figure that it shows."""
    with pytest.raises(DataError, match="validation itself shows 0"):
        chosen("dice", 0.99, images(100, seed=3))


@pytest.mark.parametrize("text", ["recal=0.9", "recall", "recall=2", "recall=nan", "=0.5"])
def test_bad_guarantees_are_refused(text: str) -> None:
    """Anything but SCORE=SHARE is one line that names what is accepted."""
    with pytest.raises(UsageError, match="guarantee"):
        parse_guarantee(text)
