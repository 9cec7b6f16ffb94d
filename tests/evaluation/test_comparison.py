"""Comparing reports: the same images only, and words that follow the numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import binseg
from binseg.errors import DataError, UsageError
from binseg.evaluation.comparison import compare


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a report.json of made-up scores, and returns the run's folder."""

    def write(name: str, dice: np.ndarray, **changes: Any) -> Path:
        images = [
            {
                "id": f"p{number}",
                "group": None,
                "columns": {},
                "counts": {"original": {"tp": 5, "fp": 0, "fn": 5, "tn": 90}},
                "scores": {"original": {"dice": float(one), "iou": float(one) / 2}},
                "outline": {"hd95": 10 - float(one), "boundary_f1": float(one)},
            }
            for number, one in enumerate(dice)
        ]
        tree = {
            "title": name,
            "split": "test",
            "border": "none",
            "outline": {"tolerance": 2.0, "unit": "px"},
            "images": images,
        } | changes
        folder = tmp_path / name / "test"
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(tree), "utf-8")
        return tmp_path / name

    return write


SCORES = np.random.default_rng(0).uniform(0.4, 0.8, size=30)


def test_a_real_gain_is_called_better(report: Callable[..., Path]) -> None:
    """A gain on nearly every image: B is better, and the distances agree."""
    a, b = report("a", SCORES), report("b", SCORES + 0.1)
    result = compare(a, b)
    assert result.decisive.verdict == "b"
    assert result.sentence.startswith("B is better: Dice differs by 0.1000")
    verdicts = {one.name: one.verdict for one in result.differences}
    assert verdicts == dict.fromkeys(["dice", "iou", "boundary_f1", "hd95"], "b")
    assert compare(b, a).sentence.startswith("A is better")


def test_noise_is_called_noise(report: Callable[..., Path]) -> None:
    """Ups and downs that cancel are noise; no difference at all is said as such."""
    shaken = SCORES + 0.05 * np.resize([1, -1], 30)
    a, b = report("a", SCORES), report("b", shaken)
    assert compare(a, b).sentence.startswith("Noise")
    assert compare(a, report("c", SCORES)).sentence.startswith("No difference")


def test_answers_in_json(report: Callable[..., Path]) -> None:
    """The answer is plain data; the score that decides can be chosen."""
    result = compare(report("a", SCORES), report("b", SCORES + 0.1), score="hd95")
    answer = result.as_dict()
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert (answer["score"], answer["verdict"], answer["num_images"]) == ("hd95", "b", 30)


def test_a_report_is_found_by_any_of_its_names(report: Callable[..., Path]) -> None:
    """The run, the report's folder and the file itself are the same report."""
    a, b = report("a", SCORES), report("b", SCORES + 0.1)
    first = compare(a, b)
    assert compare(a / "test", b / "test" / "report.json").as_dict() == first.as_dict()


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"border": "ignore"}, "border"), ({"images": []}, "not of the same images")],
)
def test_other_rules_and_images_are_refused(
    report: Callable[..., Path], changes: dict[str, Any], told: str
) -> None:
    """Reports of other images or another border rule can't be compared."""
    with pytest.raises(DataError, match=told):
        compare(report("a", SCORES), report("b", SCORES, **changes))


def test_other_images_and_masks_are_named(report: Callable[..., Path]) -> None:
    """An image too few, or another mask under the same name, is named."""
    a = report("a", SCORES)
    with pytest.raises(DataError, match=r"1 are only in the first.*p29"):
        compare(a, report("b", SCORES[:-1]))
    other = report("c", SCORES) / "test" / "report.json"
    tree = json.loads(other.read_text("utf-8"))
    tree["images"][4]["counts"]["original"]["tp"] += 1
    other.write_text(json.dumps(tree), "utf-8")
    with pytest.raises(DataError, match="mask of p4 differs"):
        compare(a, other)


def test_outlines_of_another_tolerance_are_left_out(report: Callable[..., Path]) -> None:
    """Boundary scores at other tolerances aren't set side by side; asked for, they are refused."""
    a = report("a", SCORES)
    b = report("b", SCORES + 0.1, outline={"tolerance": 3.0, "unit": "px"})
    assert {one.name for one in compare(a, b).differences} == {"dice", "iou"}
    with pytest.raises(DataError, match="hd95"):
        compare(a, b, score="hd95")


def test_groups_are_drawn_whole(report: Callable[..., Path]) -> None:
    """Thirty images of one patient tell of one patient: noise."""
    a, b = report("a", SCORES), report("b", SCORES + 0.1)
    for run in (a, b):
        path = run / "test" / "report.json"
        tree = json.loads(path.read_text("utf-8"))
        for one in tree["images"]:
            one["group"] = "patient"
        path.write_text(json.dumps(tree), "utf-8")
    assert compare(a, b).decisive.verdict == "noise"


def test_what_is_no_report_is_told(tmp_path: Path, report: Callable[..., Path]) -> None:
    """An absent report says how to write it; other files are no reports; scores have names."""
    a = report("a", SCORES)
    with pytest.raises(DataError, match=r"binseg evaluate .* --split val"):
        compare(a, a, split="val")
    broken = tmp_path / "broken.json"
    for text in ("", "[]", "{}", '{"title": "t", "images": [1]}', '{"images": 3}'):
        broken.write_text(text, "utf-8")
        with pytest.raises(DataError, match="not a report"):
            compare(a, broken)
    with pytest.raises(UsageError, match="did you mean dice"):
        compare(a, a, score="dise")


def test_real_reports_compare(trained: Path, tmp_path: Path) -> None:
    """A model against itself with tta: the same images, told from the files alone."""
    binseg.evaluate(trained, split="val", out=tmp_path / "plain")
    flipped = binseg.load(trained, tta="all")
    binseg.evaluate(flipped, split="val", out=tmp_path / "tta")
    result = compare(tmp_path / "plain", tmp_path / "tta")
    assert result.split == "val"
    assert {"dice", "hd95", "boundary_f1"} <= {one.name for one in result.differences}
