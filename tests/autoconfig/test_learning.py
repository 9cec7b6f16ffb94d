"""Rules of how the network learns."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from binseg.autoconfig import Fingerprint, Machine, Situation
from binseg.autoconfig.learning import (
    choose_augmentation,
    choose_average,
    choose_batch,
    choose_channels,
    choose_epochs,
    choose_intensity,
    choose_optimizer,
    choose_orientation,
)
from binseg.autoconfig.orientation import Symmetry

Make = Callable[..., Situation]
WHOLE = {"input__resize": "stretch", "input__size": 256, "model__name": "unet-compact"}
PATCHES = {
    "input__resize": "tile",
    "input__scale": 1.0,
    "input__size": 256,
    "model__name": "unet",
}
SKY = Symmetry(share=0.06, p=0.001, num=200)


def value(settings: list, key: str) -> object:  # type: ignore[type-arg]
    return next(one.value for one in settings if one.key == key)


def test_grey_images_in_colour_files_get_one_channel(photos: Fingerprint, situation: Make) -> None:
    """Three equal channels tell no more; other numbers are kept."""
    assert value(choose_channels(situation(photos)), "input.channels") == 3
    grey = replace(photos, is_grey=True)
    assert value(choose_channels(situation(grey)), "input.channels") == 1
    mean = value(choose_intensity(situation(grey, input__channels=1)), "input.mean")
    assert mean == pytest.approx((0.4,))
    five = replace(photos, channels=5)
    assert value(choose_channels(situation(five)), "input.channels") == 5


@pytest.mark.parametrize(
    ("dtype", "used", "kind"),
    [
        ("uint8", (0.7, 0.9, 1.0), "dtype"),
        ("uint8", (0.1, 0.4, 0.9), "percentile"),
        ("uint16", (0.01, 0.05, 0.1), "percentile"),
        ("float32", (0.9, 1.0, 1.0), "percentile"),
    ],
)
def test_what_uses_little_of_its_range_is_stretched(
    photos: Fingerprint, situation: Make, dtype: str, used: tuple[float, float, float], kind: str
) -> None:
    """Mean and spread are those of what the network will see."""
    facts = replace(photos, dtype=dtype, range_used=used)
    settings = choose_intensity(situation(facts, input__channels=3))
    assert value(settings, "input.intensity") == kind
    seen = facts.by_percentile if kind == "percentile" else facts.by_dtype
    assert value(settings, "input.mean") == seen.mean


def test_rare_things_are_not_clipped(photos: Fingerprint, situation: Make) -> None:
    """A few bright cells on black: stretching between percentiles would make them noise's equal."""
    facts = replace(photos, range_used=(0.02, 0.05, 0.1), mean_foreground=0.002)
    assert (
        value(choose_intensity(situation(facts, input__channels=3)), "input.intensity") == "dtype"
    )


def test_orientation_follows_the_images(photos: Fingerprint, situation: Make) -> None:
    """A sky makes photos upright; without one, and in stacks, everything turns."""

    def orientation(facts: Fingerprint, **decided: object) -> object:
        at = situation(facts, **(decided or WHOLE))
        return value(choose_orientation(at), "augment.orientation")

    assert orientation(photos) == "any"
    assert orientation(replace(photos, up_down=SKY)) == "upright"
    assert orientation(replace(photos, up_down=SKY, left_right=SKY)) == "fixed"
    assert orientation(replace(photos, up_down=SKY), **PATCHES) == "any"
    assert orientation(replace(photos, up_down=replace(SKY, share=0.5)), **PATCHES) == "upright"


def test_few_images_are_changed_strongly_and_many_mildly(
    photos: Fingerprint, cracks: Fingerprint, situation: Make
) -> None:
    """By how often each is seen; thin things are neither blurred nor given noise."""

    def preset(facts: Fingerprint, **decided: object) -> object:
        return value(choose_augmentation(situation(facts, **decided)), "augment.preset")

    assert preset(replace(photos, num_train=30), **WHOLE) == "strong"
    assert preset(replace(photos, num_train=2000), **WHOLE) == "medium"
    assert preset(replace(photos, num_train=50_000), **WHOLE) == "mild"
    settings = choose_augmentation(situation(cracks, **PATCHES))
    assert value(settings, "augment.preset") == "medium"
    assert value(settings, "augment.elastic") > 0  # type: ignore[operator]


def test_batches_are_small_for_few_images_and_for_little_memory(
    photos: Fingerprint, situation: Make, machine: Machine
) -> None:
    """Steps matter more than their size."""

    def batch(facts: Fingerprint, size: int) -> object:
        at = situation(facts, **(WHOLE | {"input__size": size}))
        return value(choose_batch(at), "train.batch_size")

    assert batch(photos, 128) == 16
    assert batch(photos, 256) == 8
    assert batch(replace(photos, num_train=9), 256) == 4
    tight = replace(machine, free_bytes=2 * 10**8)
    at = replace(situation(photos, **WHOLE), machine=tight)
    assert value(choose_batch(at), "train.batch_size") == 3


def test_a_run_validates_about_thirty_times(
    photos: Fingerprint, cracks: Fingerprint, situation: Make
) -> None:
    """Few images make long epochs, many short ones; the clock is the schedule's."""
    few = replace(photos, num_train=20)
    for facts, decided in (
        (few, WHOLE),
        (cracks, PATCHES),
        (replace(photos, num_train=9000), WHOLE),
    ):
        settings = choose_epochs(situation(facts, train__batch_size=8, **decided))
        assert 25 <= value(settings, "train.epochs") <= 35  # type: ignore[operator]
        assert value(settings, "train.budget_minutes") == 20


def test_epochs_that_were_asked_for_are_passes(photos: Fingerprint, situation: Make) -> None:
    """Whoever gives a number of epochs means passes over the images."""
    asked = situation(photos, budget=None, train__batch_size=8, train__epochs=7, **WHOLE)
    settings = choose_epochs(asked)
    assert value(settings, "train.per_epoch") == "all"
    assert value(settings, "train.epochs") == 7


def test_smaller_batches_take_smaller_steps_and_short_runs_short_averages(
    photos: Fingerprint, situation: Make
) -> None:
    """The square root of the batch, and a share of the steps."""
    rates = [
        value(choose_optimizer(situation(photos, train__batch_size=n)), "optimizer.lr")
        for n in (4, 16, 64)
    ]
    assert rates[0] < rates[1] == rates[2] == 1.5e-3  # type: ignore[operator]
    short, long = (
        value(
            choose_average(situation(photos, budget=b, train__batch_size=8, **WHOLE)),
            "train.ema_decay",
        )
        for b in (60.0, 7200.0)
    )
    assert 0.9 <= short < long < 1  # type: ignore[operator]


def test_epochs_that_were_given_decide_what_follows_from_their_number(
    photos: Fingerprint, situation: Make
) -> None:
    """The average of the weights spans a small part of these epochs, not of a longer run."""
    at = situation(photos, budget=None, train__epochs=10, train__batch_size=8, **WHOLE)
    steps = 10 * photos.num_train / 8
    decay = value(choose_average(at), "train.ema_decay")
    assert isinstance(decay, float)
    assert 1 / (1 - decay) == pytest.approx(steps / 12, rel=0.01)
    assert value(choose_augmentation(at), "augment.preset") == "mild"
