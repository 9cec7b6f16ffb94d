from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError


def test_a_card_is_frozen_and_has_bounds(bench: Any) -> None:
    """A card can't be changed, and can't be made with what reading would refuse."""
    with pytest.raises(ValidationError):
        setattr(bench.card(), "name", "x")  # noqa: B010  (mypy knows that it is frozen)
    with pytest.raises(ValidationError):
        bench.card(scores={"val": {"dice": float("nan")}})
    with pytest.raises(ValidationError):
        bench.card(created=datetime(2026, 1, 2))


def test_a_cards_summary_tells_the_facts(bench: Any) -> None:
    """The text for people names what matters, one fact a line."""
    text = bench.card(versions={"torch": "2.13.0"}).summary()
    for fact in ("cats", "unet, width 4", "4x6", "0.4 (tuned", "7 train", "dice 0.9000", "CC0-1.0",
                 "torch 2.13.0"):  # fmt: skip
        assert fact in text
    assert len(text.splitlines()) == len(bench.card().rows())
