"""The screen: what a person reads at the end, and what waits for --verbose."""

from types import SimpleNamespace
from typing import Any

import pytest

from binseg.cli.console import LiveProgress
from binseg.cli.screen import headline
from binseg.progress import Detail
from binseg.types import Interval


def report_of(dice: float, low: float, high: float, num: int) -> Any:
    """A report, as far as the headline looks at it."""
    interval = Interval(low=low, high=high)
    return SimpleNamespace(
        images=[None] * num,
        split="val",
        mean={"original": {"dice": dice}},
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
