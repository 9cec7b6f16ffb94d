"""Rules for what the network sees, and for the network."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest

from binseg.autoconfig import Fingerprint, Machine, Situation
from binseg.autoconfig.cost import num_views
from binseg.autoconfig.fingerprint import SCALES, SIZES
from binseg.autoconfig.input_rules import needed_scale, needed_size

Make = Callable[..., Situation]
Decide = Callable[..., dict[str, object]]


def test_large_things_are_seen_whole_and_thin_ones_in_patches(
    photos: Fingerprint, cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """By what a perfect mask would keep at 256x256."""
    assert decide(situation(photos), "input.resize", "input.scale") == {"input.resize": "stretch"}
    assert decide(situation(cracks), "input.resize", "input.scale") == {
        "input.resize": "tile",
        "input.scale": 1.0,
    }


def test_images_of_very_different_shapes_keep_their_aspect(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Stretching banners and columns alike would show two different things."""
    mixed = replace(photos, aspect=(0.6, 1.0, 1.6))
    assert decide(situation(mixed), "input.resize", "input.scale") == {"input.resize": "letterbox"}


def test_patches_are_reduced_where_that_loses_nothing(
    cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """The least scale that keeps the goal: cheaper, and more surroundings."""
    coarse = replace(cracks, kept_at_scale={s: 0.99 if s >= 0.5 else 0.9 for s in SCALES})
    assert decide(situation(coarse), "input.resize", "input.scale")["input.scale"] == 0.5
    assert needed_scale(coarse) == 0.5
    assert needed_size(coarse) is None


def test_the_network_is_as_fine_as_the_things(
    photos: Fingerprint, cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Answers at half the size for large things, a first map at full size for lines."""
    assert decide(situation(photos, input__resize="stretch"), "model.name", "model.options") == {
        "model.name": "unet-compact"
    }
    thin = situation(cracks, input__resize="tile", input__scale=1.0)
    assert decide(thin, "model.name", "model.options") == {
        "model.name": "unet",
        "model.options": {"width": 16},
    }


def test_many_thin_images_get_the_faster_network(
    cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Where the budget wouldn't show every part often enough at full size."""
    many = replace(cracks, num_train=900)
    thin = situation(many, input__resize="tile", input__scale=1.0)
    assert decide(thin, "model.name", "model.options") == {"model.name": "unet-small"}


def test_more_images_mean_smaller_inputs_and_more_time_larger_ones(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """So that each image is still seen about fifty times."""

    def size(num_train: int, budget: float) -> object:
        facts = replace(photos, num_train=num_train)
        at = situation(facts, budget=budget, input__resize="stretch", model__name="unet-compact")
        return decide(at, "input.size")["input.size"]

    assert size(700, 1200) == 256
    assert size(5000, 1200) == 128
    assert size(5000, 1200) < size(5000, 3600) <= size(5000, 4 * 3600) == 256  # type: ignore[operator]


def test_sizes_never_fall_below_what_the_masks_need(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Even where there is no time for it."""
    fine = replace(photos, kept_at_size={s: 0.99 if s >= 224 else 0.9 for s in SIZES})
    at = situation(fine, budget=60.0, input__resize="stretch", model__name="unet-compact")
    assert decide(at, "input.size")["input.size"] == 224


def test_small_images_are_hardly_enlarged(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """120x120 becomes 160x160, not 256x256."""
    small = replace(photos, height=(120.0,) * 3, width=(120.0,) * 3)
    at = situation(small, input__resize="stretch", model__name="unet-compact")
    assert decide(at, "input.size")["input.size"] == 160


def test_a_patch_is_no_larger_than_the_images(
    cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """What would be mirrored only costs time."""
    small = replace(cracks, height=(150.0,) * 3, width=(180.0,) * 3)
    at = situation(small, input__resize="tile", input__scale=1.0, model__name="unet")
    assert decide(at, "input.size")["input.size"] == 192


def test_smaller_inputs_come_first_in_whole_blocks_of_32(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Shares of time, below the size, and leaving some for it."""
    for size in range(128, 321, 32):
        at = situation(photos, input__resize="stretch", input__size=size)
        smaller = decide(at, "train.progressive")["train.progressive"]
        assert isinstance(smaller, dict)
        assert all(one % 32 == 0 and 64 <= one < size for one in smaller)
        assert sum(smaller.values()) < 1


def test_rare_foreground_is_sought_and_slow_scoring_is_cut(
    cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Half of the patches around it; little overlap where validation would take long."""
    patches = ("patches.foreground", "input.overlap")
    asked = {"input__resize": "tile", "input__scale": 1.0, "model__name": "unet"}
    assert decide(situation(cracks, **asked), *patches) == {
        "patches.foreground": 0.5,
        "input.overlap": 0.25,
    }
    large = replace(cracks, num_val=200, height=(970.0,) * 3, width=(1300.0,) * 3)
    assert decide(situation(large, **asked), *patches)["input.overlap"] == 0.1
    assert decide(situation(cracks, input__resize="stretch"), *patches) == {}


def test_small_images_are_seen_whole_unless_things_are_thin(
    cracks: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Patches as large as the image win nothing, but bring the map at full size."""
    whole = {size: min(1.0, size / 256) for size in SIZES}
    small = replace(cracks, height=(256.0,) * 3, width=(256.0, 256.0, 256.0), kept_at_size=whole)
    coarse = replace(small, kept_at_scale=small.kept_at_scale | {0.5: 0.9})
    thin = replace(small, kept_at_scale=small.kept_at_scale | {0.5: 0.6})
    fits = [decide(situation(one), "input.resize")["input.resize"] for one in (coarse, thin)]
    assert fits == ["stretch", "tile"]
    at = situation(thin, input__resize="tile", input__scale=1.0, budget=36000.0)
    assert decide(at, "model.name", "input.size") == {"model.name": "unet", "input.size": 256}


def test_views_follow_from_the_measured_speed(photos: Fingerprint, machine: Machine) -> None:
    """Twice the time is about twice the views, and smaller inputs are more of them."""
    decided = {"input.resize": "stretch", "model.name": "unet-compact"}
    at = Situation(fingerprint=photos, machine=machine, budget=3000.0, decided=decided)
    assert num_views(replace(at, budget=6000.0), 128) > 1.9 * num_views(at, 128)
    assert num_views(at, 128) > 2 * num_views(at, 256)  # whose first inputs are small, too


def test_the_large_network_is_for_gpus(
    photos: Fingerprint, machine: Machine, decide: Decide
) -> None:
    """With many images and the time; in hours of a processor the small ones end higher."""
    known = MappingProxyType({**machine.seconds_per_megapixel, "resnet34-unet": 0.01})
    gpu = replace(machine, device="cuda", seconds_per_megapixel=known)
    many = replace(photos, num_train=3000)
    decided = {"input.resize": "stretch"}

    def name(on: Machine, budget: float | None, facts: Fingerprint = many) -> object:
        at = Situation(fingerprint=facts, machine=on, budget=budget, decided=decided)
        return decide(at, "model.name")["model.name"]

    assert name(gpu, 1200.0) == name(gpu, None) == "resnet34-unet"
    assert name(gpu, 60.0) == name(gpu, None, replace(many, num_train=100)) == "unet-compact"
    cpu = replace(gpu, device="cpu")
    assert name(cpu, 36000.0) == name(cpu, None) == "unet-compact"


def test_grey_images_in_colour_files_get_one_channel(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """Three equal channels tell no more; other numbers are kept."""
    keys = ("input.channels", "input.intensity", "input.mean")
    assert decide(situation(photos), "input.channels") == {"input.channels": 3}
    found = decide(situation(replace(photos, grey_share=1.0)), *keys)
    assert found["input.channels"] == 1
    assert found["input.mean"] == pytest.approx((0.4,))
    five = replace(photos, channels=5)
    assert decide(situation(five), "input.channels") == {"input.channels": 5}


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
    photos: Fingerprint,
    situation: Make,
    decide: Decide,
    *,
    dtype: str,
    used: tuple[float, float, float],
    kind: str,
) -> None:
    """Mean and spread are those of what the network will see."""
    at = situation(replace(photos, dtype=dtype, range_used=used), input__channels=3)
    found = decide(at, "input.intensity", "input.mean", "input.std")
    seen = photos.by_percentile if kind == "percentile" else photos.by_dtype
    assert found == {"input.intensity": kind, "input.mean": seen.mean, "input.std": seen.std}


def test_mean_and_spread_follow_a_given_intensity(
    photos: Fingerprint, situation: Make, decide: Decide
) -> None:
    """They are measured on what the network will see, whoever chose it."""
    at = situation(photos, input__channels=3, input__intensity="percentile")
    assert decide(at, "input.mean")["input.mean"] == photos.by_percentile.mean


def test_rare_objects_are_not_clipped(photos: Fingerprint, situation: Make, decide: Decide) -> None:
    """A few bright cells on black: stretching between percentiles would make them noise's equal."""
    facts = replace(photos, range_used=(0.02, 0.05, 0.1), mean_foreground=0.002)
    assert decide(situation(facts), "input.intensity") == {"input.intensity": "dtype"}
