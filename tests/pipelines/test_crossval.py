"""Cross-validation: every image judged once, by a model that is new to it."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import binseg
from binseg.cli import app
from binseg.config import Recipe, load_recipe
from binseg.errors import BundleError, DataError, UsageError
from binseg.pipelines.cross_validate import CrossResult, cross_validate, resume_folds
from binseg.training.run_folder import RunFolder

Write = Callable[[Path, Sequence[int]], Path]


def recipe_of(data: Path, tiny: tuple[str, ...]) -> Recipe:
    return load_recipe(overrides=tiny, sections={"data": {"path": str(data)}})


@pytest.fixture(scope="module")
def folds(
    discs: Path, tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> CrossResult:
    """Two folds; read only."""
    out = tmp_path_factory.mktemp("folds") / "out"
    return cross_validate(recipe_of(discs, tiny), folds=2, out=out)


def test_every_image_is_judged_by_a_model_new_to_it(folds: CrossResult, discs: Path) -> None:
    """The pooled images are all images, once each, and none trained the fold that judged it."""
    images = folds.pooled.images
    assert sorted(one.id for one in images) == sorted(p.stem for p in (discs / "images").iterdir())
    splits = [RunFolder.open(fold.folder).splits() for fold in folds.folds]
    for one in images:
        assert splits[int(one.columns["cv_fold"])][one.id] == "val"
        assert splits[1 - int(one.columns["cv_fold"])][one.id] == "train"


def test_pooled_images_are_those_of_the_runs(folds: CrossResult) -> None:
    """Each run's own validation report and the pooled one say the same of every image."""
    told = {one.id: one.scores["original"]["dice"] for one in folds.pooled.images}
    found: dict[str, float] = {}
    for fold in folds.folds:
        text = (fold.folder / "val" / "per_image.csv").read_text("utf-8")
        rows = list(csv.DictReader(text.splitlines()))
        found |= {row["id"]: float(row["dice"]) for row in rows}
        assert fold.dice.value == pytest.approx(sum(told[r["id"]] for r in rows) / len(rows))
    assert told == found


def test_pooled_folder_is_that_of_an_evaluation(folds: CrossResult) -> None:
    """Report, table and images lie in pooled/; the report says whose thresholds were used."""
    names = {path.name for path in folds.pooled_folder.iterdir()}
    assert names >= {"report.json", "per_image.csv", "gallery.png", "histogram.png"}
    report = json.loads((folds.pooled_folder / "report.json").read_text("utf-8"))
    assert report["mean"]["original"] == dict(folds.pooled.mean["original"])
    assert any(f"{folds.folds[1].threshold:.3f}" in note for note in report["notes"])
    assert json.loads(json.dumps(folds.as_dict()))["folds"][1]["num_images"] == 8


def test_folds_make_an_ensemble(folds: CrossResult, discs: Path) -> None:
    """The folds' folders load as one predictor with as many members."""
    model = binseg.load([fold.folder for fold in folds.folds])
    assert len(model.members) == 2
    assert model.predict(discs / "images" / "disc000.png").mask.any()


def test_a_stopped_cross_validation_goes_on(
    folds: CrossResult, discs: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Stopped in its second fold, it keeps the first, and ends as if it hadn't stopped."""
    out = tmp_path / "out"
    for fold in folds.folds:
        shutil.copytree(fold.folder, out / fold.folder.name)
    shutil.rmtree(out / "fold-1" / "bundle")
    first = (out / "fold-0" / "bundle" / "card.json").stat().st_mtime_ns
    with pytest.raises(UsageError, match="--resume"):
        cross_validate(recipe_of(discs, tiny), folds=2, out=out)
    result = CliRunner().invoke(app, ["--verbose", "train", "--out", str(out), "--resume"])
    assert result.exit_code == 0, result.stderr
    assert "mean Dice, original size" in result.stdout
    assert (out / "fold-0" / "bundle" / "card.json").stat().st_mtime_ns == first
    report = json.loads((out / "pooled" / "report.json").read_text("utf-8"))
    assert report["mean"]["original"] == dict(folds.pooled.mean["original"])


def test_folds_that_cannot_be(
    write_discs: Write, tiny: tuple[str, ...], discs: Path, tmp_path: Path
) -> None:
    """One fold, more folds than images, nothing to go on with: refused, and nothing made."""
    with pytest.raises(UsageError, match="give 2 or more"):
        cross_validate(recipe_of(discs, tiny), folds=1, out=tmp_path / "out")
    few = write_discs(tmp_path / "few", range(3))
    with pytest.raises(DataError, match="can't make 4 folds"):
        cross_validate(recipe_of(few, tiny), folds=4, out=tmp_path / "out")
    with pytest.raises(BundleError, match="no cross-validation"):
        resume_folds(tmp_path / "out")
    assert not (tmp_path / "out").exists()
