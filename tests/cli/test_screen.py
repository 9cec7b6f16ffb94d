"""The screen: what a person reads at the end, and what waits for --verbose."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from rich.console import Console
from typer.testing import CliRunner

from binseg.cli import app
from binseg.cli.console import LiveProgress, message
from binseg.cli.predict import _tell_quality
from binseg.cli.screen import headline, rows_table, scores_in_short
from binseg.config import recipe_names
from binseg.inference.quality import UNLIKE, Flag, Quality
from binseg.inference.sinks import PredictResult, Written
from binseg.pipelines.check_data import check
from binseg.progress import Detail
from binseg.types import Interval


def report_of(dice: float, low: float, high: float, num: int, *, num_empty: int = 0) -> Any:
    """A report, as far as the headline looks at it."""
    interval = Interval(low=low, high=high)
    return SimpleNamespace(
        images=[None] * num,
        num_empty_truth=num_empty,
        is_empty=num_empty == num,
        num_false_alarms=2,
        num_missed=0,
        slices=(),
        split="val",
        mean={"original": {"dice": dice, "iou": dice}},
        intervals={"mean": {"original": {"dice": interval}}},
    )


@pytest.mark.parametrize(
    ("low", "high", "num", "end"),
    [
        (0.95, 0.96, 200, "200 validation images"),
        (0.95, 0.96, 4, "4 validation images: a rough guess"),
        (0.80, 0.96, 200, "200 validation images: a rough guess"),
    ],
)
def test_a_headline_says_how_far_to_trust_it(low: float, high: float, num: int, end: str) -> None:
    """Few images, or a wide interval, make a rough guess."""
    told = headline(report_of(0.957, low, high, num))
    assert told == f"Dice 0.957 (95% interval {low:.3f} to {high:.3f}) on {end}"


def test_images_without_an_object_are_counted_and_alone_give_no_headline() -> None:
    """Dice 1.000 of 14 empty truths says nothing; of some, their number stands beside it."""
    told = headline(report_of(0.9, 0.88, 0.92, 200, num_empty=30))
    assert told.endswith("on 200 validation images, 30 of them without an object")
    empty = report_of(1.0, 1.0, 1.0, 14, num_empty=14)
    for line in map(str, (headline(empty), *scores_in_short(empty))):
        assert "1.000" not in line
        assert "none of 14 validation images holds an object; something was found in 2" in line


@pytest.mark.parametrize("shows_details", [False, True])
def test_details_wait_for_verbose(
    *, shows_details: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch's line is a detail; what was ignored is not."""
    progress = LiveProgress(shows_details=shows_details)
    progress.say(Detail("epoch 1"))
    progress.say("2 images without a mask are left out")
    told = capsys.readouterr().err
    assert ("epoch 1" in told) == shows_details
    assert "left out" in told


def test_a_window_breaks_messages_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal no name is cut at the edge; in a pipe a message stays one line."""
    text = "21 of 24 images are probably masked poorly: " + ", ".join(["a_photo.png"] * 9)
    for is_terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setenv("COLUMNS", "80")
        message(text)
        lines = screen.getvalue().splitlines()
        assert " ".join(lines) == text
        assert (max(map(len, lines)) <= 80) == is_terminal


def test_names_to_type_are_never_cut() -> None:
    """In 80 columns the table of recipes still has each name whole."""
    text = io.StringIO()
    rows = [{"name": name, "what": "many words " * 20} for name in recipe_names()]
    Console(file=text, width=80).print(rows_table(rows, {"name": "recipe", "what": "what"}))
    assert all(f" {name} " in text.getvalue() for name in recipe_names())
    assert max(map(len, text.getvalue().splitlines())) <= 80


def test_recipes_say_by_whom_and_what_to_expect() -> None:
    """The list has each recipe's source and figure."""
    shown = CliRunner().invoke(app, ["recipes"]).stdout
    assert "report A on Oxford-IIIT Pet: test Dice 0.9036" in shown


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--epoch", "--epochs"), ("--learning-rate", "--lr"), ("--imgsz", "--size"), ("--zzz", None)],
)
def test_an_unknown_option_names_the_nearest_only(option: str, meant: str | None) -> None:
    """Names of other programs are known; where nothing is near, nothing is suggested."""
    answer = CliRunner().invoke(app, ["train", "my_folder", option, "3"])
    assert answer.exit_code == 2
    hint = f"did you mean {meant}? See" if meant else "see"
    told = f"binseg: there is no option {option}; {hint} binseg train --help\n"
    assert answer.stderr == told


def test_check_tells_the_size_of_a_pixel(tmp_path: Path) -> None:
    """Where files state it, in micrometres, and how many do not."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 99, (20, 20), dtype=np.uint8)
        settings: dict[str, Any] = {"resolution": (2.0, 4.0), "metadata": {"unit": "um"}}
        kind = {"imagej": True, **settings} if number else {}
        tifffile.imwrite(tmp_path / "images" / f"{number}.tif", pixels, **kind)
        mask = np.where(pixels > 50, 255, 0).astype(np.uint8)
        tifffile.imwrite(tmp_path / "masks" / f"{number}.tif", mask)
    facts = dict(check(tmp_path).facts)
    assert facts["pixel size"] == "0.25 x 0.5 µm (2); not stated by 1"


def written(name: str, flag: Flag) -> Written:
    """A mask with an expected Dice of 0.35."""
    quality = Quality(
        expected_dice=0.35, low=0.1, high=0.6, flag=flag, reason="darker", distance=0.2
    )
    return Written(source=Path(name), mask=Path("mask.png"), foreground=0.1, quality=quality)


def test_masks_to_doubt_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Images unlike the training data, and masks that are probably poor, each in a line."""
    _tell_quality(PredictResult(written=(written("a.png", "ok"),)))
    assert capsys.readouterr().err == ""
    three = (written("a.png", "ok"), written("b.png", "look"), written("c.png", UNLIKE))
    _tell_quality(PredictResult(written=three))
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3 images is unlike the training data (darker); don't trust these masks unseen: c.png",
        "1 of 3 images is probably masked poorly (expected Dice 0.35); look at these masks before "
        "you use them: b.png",
    ]
