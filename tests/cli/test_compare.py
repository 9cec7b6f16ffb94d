"""Comparing, slicing, tta and ensembles, as a user types them."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from binseg.cli import app
from binseg.errors import DataError
from binseg.packaging import read_bundle
from binseg.pipelines.evaluate_model import evaluate, report_folder


def run(*argv: object, code: int = 0) -> str:
    """Run a command line quietly and return its stdout; the exit code must be `code`."""
    result = CliRunner().invoke(app, ["--quiet", *map(str, argv)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.fixture(scope="module")
def second(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run on the same images and split: its weights are those of the first, halved."""
    from binseg.packaging import write_bundle

    folder = tmp_path_factory.mktemp("second") / "run"
    shutil.copytree(trained, folder)
    bundle = read_bundle(folder)
    weights = {
        name: value * 0.5 if value.dtype.kind == "f" else value
        for name, value in bundle.weights().items()
    }
    reference = bundle.reference()
    shutil.rmtree(folder / "bundle")
    write_bundle(folder / "bundle", card=bundle.card, weights=weights, reference=reference)
    return folder


def test_compare_two_runs(trained: Path, second: Path, tmp_path: Path) -> None:
    """Two runs on one split: a table with a verdict, or the same as JSON."""
    for one in (trained, second):
        run("evaluate", one, "--split", "val", "--out", tmp_path / one.name)
    reports = [tmp_path / one.name for one in (trained, second)]
    answer = json.loads(run("compare", *reports, "--json"))
    assert answer["verdict"] in {"a", "b", "noise", "same"}
    text = run("compare", *reports)
    assert answer["sentence"] in text
    assert "Wilcoxon" in text


def test_compare_says_what_is_missing(trained: Path, tmp_path: Path) -> None:
    """Without a report of the split, one line says how to write it."""
    assert "binseg evaluate" in run("compare", trained, tmp_path, "--split", "val", code=1)
    assert "did you mean dice" in run("compare", trained, trained, "--score", "dicee", code=2)


def test_evaluate_measures_and_slices(trained: Path, tmp_path: Path) -> None:
    """The screen has outlines, objects and calibration; the files have the slices too."""
    text = run(
        "evaluate", trained, "--verbose", "--split", "val", "--out", tmp_path, "--tolerance", "3"
    )
    for word in ("boundary F1, 3 px", "HD95", "panoptic quality", "Brier"):
        assert word in text
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["outline"]["tolerance"] == 3
    assert {one["by"] for one in report["slices"]} >= {"object size"}
    assert report["calibration"]["brier"]["interval"] is not None
    with (tmp_path / "per_image.csv").open(encoding="utf-8") as file:
        assert {"hd95", "objects_num_true", "brier"} <= next(csv.DictReader(file)).keys()


def test_distances_in_millimetres(trained: Path, tmp_path: Path) -> None:
    """With a spacing all distances are in mm: here, twice the pixels."""
    answers = [
        json.loads(run("evaluate", trained, "--split", "val", "--out", tmp_path, "--json", *extra))
        for extra in ((), ("--spacing", 2, "--tolerance", 4))
    ]
    pixels, mm = (one["outline"] for one in answers)
    assert (pixels["unit"], mm["unit"]) == ("px", "mm")
    assert mm["scores"]["hd95"]["value"] == pytest.approx(2 * pixels["scores"]["hd95"]["value"])
    assert mm["scores"]["boundary_f1"] == pixels["scores"]["boundary_f1"]


def test_unknown_columns_and_rules_are_refused(trained: Path, tmp_path: Path) -> None:
    """A column that no image has, or an impossible tolerance, is refused before scoring."""
    start = ("evaluate", trained, "--split", "val", "--out", tmp_path / "none")
    assert "no image has a column 'breed'" in run(*start, "--by", "breed", code=2)
    assert "tolerance -1" in run(*start, "--tolerance", "-1", code=2)
    assert "tta 'up'" in run(*start, "--tta", "up", code=2)
    assert not (tmp_path / "none").exists()


def test_flips_and_ensembles_have_reports_of_their_own(
    trained: Path, second: Path, tmp_path: Path
) -> None:
    """Nothing overwrites the plain model's report, and the title says who answered."""
    assert report_folder(trained, split="val", tta="all") == trained / "val-tta-all"
    named = report_folder(trained, split="val", others=[second])
    assert named == trained / "val-with-run"
    answer = json.loads(
        run(
            *("evaluate", trained, "--with", second, "--tta", "horizontal"),
            *("--split", "val", "--out", tmp_path, "--json"),
        )
    )
    assert answer["title"].startswith("unet, tta horizontal + unet, tta horizontal, val of")
    assert answer["bundle"] == "+".join(read_bundle(each).card.id for each in (trained, second))
    assert any("An ensemble of 2 models" in note for note in answer["notes"])


def test_an_ensemble_predicts(trained: Path, second: Path, discs: Path, tmp_path: Path) -> None:
    """Several models write one mask."""
    image = discs / "images" / "disc000.png"
    run("predict", trained, image, "--with", second, "--tta", "all", "--out", tmp_path)
    assert (tmp_path / "disc000.png").is_file()


def test_an_ensemble_is_not_scored_on_what_a_member_learnt(
    trained: Path, second: Path, tmp_path: Path
) -> None:
    """Where one member was trained on the first one's validation images, scoring is refused."""
    leaky = tmp_path / "leaky"
    shutil.copytree(second, leaky)
    split = leaky / "split.csv"
    text = split.read_text("utf-8")
    swapped = text.replace(",train", ",VAL").replace(",val", ",train").replace(",VAL", ",val")
    assert swapped != text
    split.write_text(swapped, "utf-8")
    with pytest.raises(DataError, match="no member was trained on"):
        evaluate([trained, leaky], split="val")
