"""The screen: what a person reads at the end, and what waits for --verbose."""

from types import SimpleNamespace
from typing import Any

import pytest

from binseg.cli.console import LiveProgress
from binseg.cli.screen import headline, scores_in_short
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
