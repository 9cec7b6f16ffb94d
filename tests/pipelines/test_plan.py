"""From data to a recipe that runs, with its reasons, in its time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from binseg.config import load_recipe
from binseg.errors import OutputError, UsageError
from binseg.pipelines.plan_recipe import PlanResult, parse_budget, plan, write_plan
from binseg.pipelines.train_model import train
from binseg.training.run_folder import RunFolder

QUICK = ("model.name=unet", "model.options={width: 4, depth: 2}", "train.device=cpu")


@pytest.fixture(scope="module")
def planned(discs: Path) -> PlanResult:
    """A plan for discs, of a network that is measured in no time."""
    return plan(
        sections={"data": {"path": str(discs)}},
        overrides=(*QUICK, "train.precision=fp32"),
        budget=10.0,
    )


def test_the_commented_file_is_the_recipe(planned: PlanResult, tmp_path: Path) -> None:
    """Written, edited by nobody and read back, it is the same; reasons stand beside it."""
    path = tmp_path / "my.yaml"
    write_plan(planned, path)
    assert load_recipe(path) == planned.recipe
    assert "# " in path.read_text("utf-8")
    with pytest.raises(UsageError, match="this file exists"):
        write_plan(planned, path)
    with pytest.raises(UsageError, match=r"ends in \.yaml"):
        write_plan(planned, tmp_path / "my.txt")
    with pytest.raises(OutputError):
        write_plan(planned, path / "below.yaml")


def test_what_was_given_stays_and_the_rest_is_decided(planned: PlanResult) -> None:
    """The network is the user's; size, batch and rates are the plan's."""
    recipe = planned.recipe
    assert (recipe.model.options["width"], recipe.model.options["depth"]) == (4, 2)
    assert recipe.train.budget_minutes == pytest.approx(10 / 60, abs=1e-3)
    assert {"input.size", "train.batch_size", "augment.orientation"} <= {
        one.key for one in planned.plan.settings
    }
    facts = planned.as_dict()["fingerprint"]
    assert isinstance(facts, dict)
    assert facts["num_val"] >= 4, "few images: more of them validate"


def test_a_planned_run_ends_and_keeps_its_reasons(planned: PlanResult, tmp_path: Path) -> None:
    """The schedule falls to nothing at the end, whatever the number of epochs was."""
    result = train(planned.recipe, out=tmp_path / "run", plan=planned.as_yaml())
    run = RunFolder.open(tmp_path / "run")
    assert run.plan_path.read_text("utf-8") == planned.as_yaml()
    last = run.metrics_path.read_text("utf-8").splitlines()[-1].split(",")
    assert float(last[1]) < 0.05 * planned.recipe.optimizer.lr
    assert result.num_epochs == int(last[0])


def test_a_stack_is_split_in_blocks_with_a_gap(tmp_path: Path) -> None:
    """However few its pages are."""
    random = np.random.default_rng(0)
    pages = random.integers(0, 255, (24, 40, 40), dtype=np.uint8)
    masks = np.zeros_like(pages)
    masks[:, 10:25, 10:25] = 255
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "masks" / "a.tif", masks, photometric="minisblack")
    result = plan(sections={"data": {"path": str(tmp_path)}}, overrides=QUICK, budget=60.0)
    split = result.recipe.data.split
    assert (split.method, split.gap, split.ratios) == ("block", 1, (0.7, 0.3, 0.0))
    assert result.recipe.data.page_group == 2
    assert result.plan.fingerprint.num_val >= 6
    assert result.plan.fingerprint.num_units == 1
    assert result.recipe.augment.orientation == "any"


def test_few_training_images_without_validation_give_three_tenths(
    write_discs: Callable[..., Path], tmp_path: Path
) -> None:
    """Of a data set that comes as train and test; the test stays as it is."""
    data = write_discs(tmp_path, range(16))
    names = [path.stem for path in sorted((data / "images").iterdir())]
    (data / "train.txt").write_text("\n".join(names[:10]), "utf-8")
    (data / "test.txt").write_text("\n".join(names[10:]), "utf-8")
    facts = plan(
        sections={"data": {"path": str(data)}}, overrides=QUICK, budget=60.0
    ).plan.fingerprint
    assert (facts.num_train, facts.num_val, facts.num_test) == (7, 3, 6)


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0", "20 years"])
def test_budgets_that_are_none_are_refused(text: str) -> None:
    """In one line that says how to write one."""
    with pytest.raises(UsageError, match="20m, 2h, 2m30s, 90s or none"):
        parse_budget(text)


def test_data_is_needed() -> None:
    """A plan is for images."""
    with pytest.raises(UsageError, match="which images"):
        plan(sections={})
