"""Rules for how the network learns."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from binseg.autoconfig import Fingerprint, Machine, Situation
from binseg.autoconfig.fingerprint import Symmetry

Make = Callable[..., Situation]
Decide = Callable[..., dict[str, object]]
WHOLE = {"input__resize": "stretch", "input__size": 256, "model__name": "unet-compact"}
PATCHES = {
    "input__resize": "tile",
    "input__scale": 1.0,
    "input__size": 256,
    "model__name": "unet",
}
SKY = Symmetry(share=0.06, p=0.001, num=200)


def test_orientation_follows_the_images(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """A sky makes photos upright; without one, and in stacks, everything turns."""

    def orientation(facts: Fingerprint, **decided: object) -> object:
        at = situation(facts, **(decided or WHOLE))
        return decide(at, "augment.orientation")["augment.orientation"]

    assert orientation(photos) == "any"
    assert orientation(replace(photos, up_down=SKY)) == "upright"
    assert orientation(replace(photos, up_down=SKY, left_right=SKY)) == "fixed"
    assert orientation(replace(photos, up_down=SKY), **PATCHES) == "any"
    assert orientation(replace(photos, up_down=replace(SKY, share=0.5)), **PATCHES) == "upright"


def test_few_images_are_changed_strongly_and_many_mildly(
    photos: Fingerprint, cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """By how often each is seen; thin objects are neither blurred nor given noise."""

    def preset(facts: Fingerprint, **decided: object) -> dict[str, object]:
        at = situation(facts, **decided)
        return decide(at, "augment.preset", "augment.elastic", "augment.gamma")

    assert preset(replace(photos, num_train=30), **WHOLE) == {"augment.preset": "strong"}
    assert preset(replace(photos, num_train=2000), **WHOLE) == {"augment.preset": "medium"}
    assert preset(replace(photos, num_train=50_000), **WHOLE) == {"augment.preset": "mild"}
    assert preset(cracks, **PATCHES) == {
        "augment.preset": "medium",
        "augment.elastic": 0.015,
        "augment.gamma": 0.3,
    }


def test_few_grey_images_of_one_polarity_are_inverted(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Not where both kinds are there, colour tells more, many images do, or a volume is one."""
    few = replace(photos, grey_share=1.0, num_train=14, brighter_share=1.0)

    def inverted(facts: Fingerprint) -> object:
        return decide(situation(facts, **WHOLE), "augment.invert").get("augment.invert")

    assert inverted(few) == 0.5
    assert inverted(replace(few, brighter_share=0.0)) == 0.5
    for other in ({"brighter_share": 0.9}, {"grey_share": 0.0}, {"num_train": 60}):
        assert inverted(replace(few, **other)) is None
    assert inverted(replace(few, is_stack=True)) is None


def test_coloured_images_among_grey_ones_lend_each_other_their_looks(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Stained nuclei among fluorescent ones: light and dark change places, and colours go."""

    def chosen(share: float, num: int) -> dict[str, object]:
        at = situation(replace(photos, grey_share=share, num_train=num), **WHOLE)
        return decide(at, "augment.invert", "augment.grey")

    assert chosen(0.9, 70) == {"augment.invert": 0.25, "augment.grey": 0.3}
    for share, num in ((0.02, 70), (0.9, 200), (0.0, 70)):
        assert chosen(share, num) == {}


def test_batches_are_small_for_few_images_and_for_little_memory(
    photos: Fingerprint, situation: Make, machine: Machine, decide: Decide
) -> None:
    """Steps matter more than their size."""

    def batch(facts: Fingerprint, size: int) -> object:
        at = situation(facts, **(WHOLE | {"input__size": size}))
        return decide(at, "train.batch_size")["train.batch_size"]

    assert batch(photos, 128) == 16
    assert batch(photos, 256) == 8
    assert batch(replace(photos, num_train=9), 256) == 4
    tight = replace(machine, free_bytes=2 * 10**8)
    at = replace(situation(photos, **WHOLE), machine=tight)
    assert decide(at, "train.batch_size") == {"train.batch_size": 3}


def test_a_run_validates_about_thirty_times(
    photos: Fingerprint, cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Few images make long epochs, many short ones; the clock is the schedule's."""
    few = replace(photos, num_train=20)
    for facts, decided in (
        (few, WHOLE),
        (cracks, PATCHES),
        (replace(photos, num_train=9000), WHOLE),
    ):
        at = situation(facts, train__batch_size=8, **decided)
        each = "patches.per_epoch" if decided is PATCHES else "train.per_epoch"
        other = "train.per_epoch" if decided is PATCHES else "patches.per_epoch"
        found = decide(at, each, other, "train.epochs", "train.budget_minutes")
        assert other not in found
        assert 25 <= found["train.epochs"] <= 35  # type: ignore[operator]
        assert found["train.budget_minutes"] == 20


def test_epochs_that_were_asked_for_are_passes(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Whoever gives a number of epochs means passes over the images."""
    asked = situation(photos, budget=None, train__batch_size=8, train__epochs=7, **WHOLE)
    asked = replace(asked, given=frozenset({"train.epochs"}))
    found = decide(asked, "train.per_epoch", "train.budget_minutes")
    assert found == {"train.per_epoch": "all"}
    assert decide(asked.having({"train.per_epoch": "all"}), "train.epochs") == {"train.epochs": 7}


def test_smaller_batches_take_smaller_steps_and_short_runs_short_averages(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """The square root of the batch, and a share of the steps."""
    rates = [
        decide(situation(photos, train__batch_size=n), "optimizer.lr")["optimizer.lr"]
        for n in (4, 16, 64)
    ]
    assert rates[0] < rates[1] == rates[2] == 1.5e-3  # type: ignore[operator]
    short, long = (
        decide(situation(photos, budget=b, train__batch_size=8, **WHOLE), "train.ema_decay")
        for b in (60.0, 7200.0)
    )
    assert 0.9 <= short["train.ema_decay"] < long["train.ema_decay"] < 1  # type: ignore[operator]


def test_epochs_that_were_given_decide_what_follows_from_their_number(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """The average of the weights spans a small part of these epochs, not of a longer run."""
    at = situation(photos, budget=None, train__epochs=10, train__batch_size=8, **WHOLE)
    steps = 10 * photos.num_train / 8
    found = decide(at, "train.ema_decay", "augment.preset")
    decay = found["train.ema_decay"]
    assert isinstance(decay, float)
    assert 1 / (1 - decay) == pytest.approx(steps / 12, rel=0.01)
    assert found["augment.preset"] == "mild"


def test_mirror_images_are_tried_where_there_is_time_and_no_up(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Four times as many predictions of many validation images would eat a short budget."""

    def tta(orientation: str, budget: float | None, facts: Fingerprint = photos) -> object:
        at = situation(facts, budget=budget, augment__orientation=orientation, **WHOLE)
        found = decide(at, "train.postprocess", "train.tta")
        assert found["train.postprocess"] == "tune"
        return found["train.tta"]

    assert tta("any", 1200.0) == tta("upright", 1200.0) == tta("any", None) == "tune"
    assert tta("fixed", 1200.0) == "none"
    assert tta("any", 30.0) == "none"
    assert tta("any", 30.0, replace(photos, num_val=5)) == "tune"


def test_too_few_validation_images_choose_no_threshold(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """One that fits three images best is worse on others than 0.5."""
    for num_val, threshold in ((3, 0.5), (4, None)):
        facts = replace(photos, num_val=num_val)
        at = situation(facts, augment__orientation="any", **WHOLE)
        found = decide(at, "train.postprocess", "train.tta", "train.threshold")
        assert found.get("train.threshold") == threshold
