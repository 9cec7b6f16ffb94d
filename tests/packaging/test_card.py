from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from binseg.types import Preprocessing


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


def test_cards_without_a_scale_keep_their_id(bench: Any) -> None:
    """Bundles from before there was a scale are read as scale 1, under the id that they bear."""
    card = bench.card()
    assert card.identity("0" * 64) == "8fb990517eb9"
    data = card.model_dump(mode="json")
    del data["preprocessing"]["scale"]
    old = type(card).model_validate(data)
    assert old == card
    assert old.preprocessing.scale == 1.0


def test_the_scale_is_part_of_what_a_model_is(bench: Any) -> None:
    """Another scale gives other probabilities, so another id; it is told, and has bounds."""
    tiles = replace(bench.card().preprocessing, resize="tile")
    plain, scaled = (bench.card(preprocessing=replace(tiles, scale=scale)) for scale in (1.0, 0.5))
    assert plain.identity("0" * 64) != scaled.identity("0" * 64)
    assert "tile at scale 0.5" in scaled.summary()
    for wrong in (
        replace(tiles, scale=0.0),
        replace(tiles, scale=100.0),
        Preprocessing(height=4, width=6, scale=2.0),
    ):
        with pytest.raises(ValidationError, match="scale"):
            bench.card(preprocessing=wrong)
