"""All rules together: a recipe that is valid, with a reason for each of its settings."""

from dataclasses import replace

import pytest

from binseg.autoconfig import Fingerprint, Machine, make_plan, stack_settings


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
