"""Rules of what the network sees."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

from binseg.autoconfig import Fingerprint, Machine, Situation
from binseg.autoconfig.fingerprint import SCALES, SIZES
from binseg.autoconfig.resolution import (
    choose_finish,
    choose_fit,
    choose_model,
    choose_patches,
    choose_progressive,
    choose_size,
    needed_scale,
    needed_size,
    num_views,
)

Make = Callable[..., Situation]


def values(settings: list) -> dict[str, object]:  # type: ignore[type-arg]
    assert all(one.reason for one in settings), "every setting has its reason"
    return {one.key: one.value for one in settings}


def test_large_things_are_seen_whole_and_thin_ones_in_patches(
    photos: Fingerprint, cracks: Fingerprint, situation: Make
) -> None:
    """By what a perfect mask would keep at 256x256."""
    assert values(choose_fit(situation(photos))) == {"input.resize": "stretch"}
    assert values(choose_fit(situation(cracks))) == {"input.resize": "tile", "input.scale": 1.0}


def test_images_of_very_different_shapes_keep_their_aspect(
    photos: Fingerprint, situation: Make
) -> None:
    """Stretching banners and columns alike would show two different things."""
    mixed = replace(photos, aspect=(0.6, 1.0, 1.6))
    assert values(choose_fit(situation(mixed))) == {"input.resize": "letterbox"}


def test_patches_are_reduced_where_that_loses_nothing(cracks: Fingerprint, situation: Make) -> None:
    """The least scale that keeps the goal: cheaper, and more surroundings."""
    coarse = replace(cracks, kept_at_scale={s: 0.99 if s >= 0.5 else 0.9 for s in SCALES})
    assert values(choose_fit(situation(coarse)))["input.scale"] == 0.5
    assert needed_scale(coarse) == 0.5
    assert needed_size(coarse) is None


def test_the_network_is_as_fine_as_the_things(
    photos: Fingerprint, cracks: Fingerprint, situation: Make
) -> None:
    """Answers at half the size for large things, a first map at full size for lines."""
    assert values(choose_model(situation(photos, input__resize="stretch"))) == {
        "model.name": "unet-compact"
    }
    thin = situation(cracks, input__resize="tile", input__scale=1.0)
    assert values(choose_model(thin)) == {"model.name": "unet", "model.options": {"width": 16}}


def test_many_thin_images_get_the_faster_network(cracks: Fingerprint, situation: Make) -> None:
    """Where the budget wouldn't show every part often enough at full size."""
    many = replace(cracks, num_train=900)
    thin = situation(many, input__resize="tile", input__scale=1.0)
    assert values(choose_model(thin)) == {"model.name": "unet-small"}


def test_more_images_mean_smaller_inputs_and_more_time_larger_ones(
    photos: Fingerprint, situation: Make
) -> None:
    """So that each image is still seen about fifty times."""

    def size(num_train: int, budget: float) -> object:
        facts = replace(photos, num_train=num_train)
        at = situation(facts, budget=budget, input__resize="stretch", model__name="unet-compact")
        return values(choose_size(at))["input.size"]

    assert size(700, 1200) == 256
    assert size(5000, 1200) == 128
    assert size(5000, 1200) < size(5000, 3600) <= size(5000, 4 * 3600) == 256  # type: ignore[operator]


def test_sizes_never_fall_below_what_the_masks_need(photos: Fingerprint, situation: Make) -> None:
    """Even where there is no time for it."""
    fine = replace(photos, kept_at_size={s: 0.99 if s >= 224 else 0.9 for s in SIZES})
    at = situation(fine, budget=60.0, input__resize="stretch", model__name="unet-compact")
    assert values(choose_size(at))["input.size"] == 224


def test_small_images_are_hardly_enlarged(photos: Fingerprint, situation: Make) -> None:
    """120x120 becomes 160x160, not 256x256."""
    small = replace(photos, height=(120.0,) * 3, width=(120.0,) * 3)
    at = situation(small, input__resize="stretch", model__name="unet-compact")
    assert values(choose_size(at))["input.size"] == 160


def test_a_patch_is_no_larger_than_the_images(cracks: Fingerprint, situation: Make) -> None:
    """What would be mirrored only costs time."""
    small = replace(cracks, height=(150.0,) * 3, width=(180.0,) * 3)
    at = situation(small, input__resize="tile", input__scale=1.0, model__name="unet")
    assert values(choose_size(at))["input.size"] == 192


def test_smaller_inputs_come_first_in_whole_blocks_of_32(
    photos: Fingerprint, situation: Make
) -> None:
    """Shares of time, below the size, and leaving some for it."""
    for size in range(128, 321, 32):
        at = situation(photos, input__resize="stretch", input__size=size)
        (setting,) = choose_progressive(at)
        assert isinstance(setting.value, dict)
        assert all(one % 32 == 0 and 64 <= one < size for one in setting.value)
        assert sum(setting.value.values()) < 1


def test_rare_foreground_is_sought_and_slow_scoring_is_cut(
    cracks: Fingerprint, situation: Make
) -> None:
    """Half of the patches around it; little overlap where validation would take long."""
    asked = {"input__resize": "tile", "input__scale": 1.0, "model__name": "unet"}
    assert values(choose_patches(situation(cracks, **asked))) == {
        "patches.foreground": 0.5,
        "input.overlap": 0.25,
    }
    large = replace(cracks, num_val=200, height=(970.0,) * 3, width=(1300.0,) * 3)
    assert values(choose_patches(situation(large, **asked)))["input.overlap"] == 0.1
    assert choose_patches(situation(cracks, input__resize="stretch")) == []


def test_small_images_are_seen_whole_unless_things_are_thin(
    cracks: Fingerprint, situation: Callable[..., Situation]
) -> None:
    """Patches as large as the image win nothing, but bring the map at full size."""
    whole = {size: min(1.0, size / 256) for size in SIZES}
    small = replace(cracks, height=(256.0,) * 3, width=(256.0, 256.0, 256.0), kept_at_size=whole)
    coarse = replace(small, kept_at_scale=small.kept_at_scale | {0.5: 0.9})
    thin = replace(small, kept_at_scale=small.kept_at_scale | {0.5: 0.6})
    fits = [choose_fit(situation(facts))[0].value for facts in (coarse, thin)]
    assert fits == ["stretch", "tile"]
    at = situation(thin, input__resize="tile", input__scale=1.0, budget=36000.0)
    assert choose_size(at)[0].value == 256
    assert choose_model(at)[0].value == "unet"


def test_views_follow_from_the_measured_speed(photos: Fingerprint, machine: Machine) -> None:
    """Twice the time is about twice the views, and smaller inputs are more of them."""
    decided = {"input.resize": "stretch", "model.name": "unet-compact"}
    at = Situation(fingerprint=photos, machine=machine, budget=3000.0, decided=decided)
    assert num_views(replace(at, budget=6000.0), 128) > 1.9 * num_views(at, 128)
    assert num_views(at, 128) > 2 * num_views(at, 256)  # whose first inputs are small, too


def test_mirror_images_are_tried_where_there_is_time_and_no_up(
    photos: Fingerprint, situation: Make
) -> None:
    """Four times as many predictions of many validation images would eat a short budget."""

    def tta(orientation: str, budget: float | None, facts: Fingerprint = photos) -> object:
        decided = {"input__resize": "stretch", "input__size": 256, "model__name": "unet-compact"}
        at = situation(facts, budget=budget, augment__orientation=orientation, **decided)
        found = values(choose_finish(at))
        assert found["train.postprocess"] == "tune"
        return found["train.tta"]

    assert tta("any", 1200.0) == tta("upright", 1200.0) == tta("any", None) == "tune"
    assert tta("fixed", 1200.0) == "none"
    assert tta("any", 30.0) == "none"
    assert tta("any", 30.0, replace(photos, num_val=5)) == "tune"


def test_too_few_judges_choose_no_threshold(photos: Fingerprint, situation: Make) -> None:
    """One that fits three images best is worse on others than 0.5."""
    decided = {"input__resize": "stretch", "input__size": 256, "model__name": "unet-compact"}
    for num_val, threshold in ((3, 0.5), (4, None)):
        facts = replace(photos, num_val=num_val)
        found = values(choose_finish(situation(facts, augment__orientation="any", **decided)))
        assert found.get("train.threshold") == threshold


def test_the_large_network_is_for_gpus(photos: Fingerprint, machine: Machine) -> None:
    """With many images and the time; in hours of a processor the small ones end higher."""
    known = MappingProxyType({**machine.seconds_per_megapixel, "resnet34-unet": 0.01})
    gpu = replace(machine, device="cuda", seconds_per_megapixel=known)
    many = replace(photos, num_train=3000)
    decided = {"input.resize": "stretch"}

    def name(on: Machine, budget: float | None, facts: Fingerprint = many) -> object:
        at = Situation(fingerprint=facts, machine=on, budget=budget, decided=decided)
        return choose_model(at)[0].value

    assert name(gpu, 1200.0) == name(gpu, None) == "resnet34-unet"
    assert name(gpu, 60.0) == name(gpu, None, replace(many, num_train=100)) == "unet-compact"
    cpu = replace(gpu, device="cpu")
    assert name(cpu, 36000.0) == name(cpu, None) == "unet-compact"
