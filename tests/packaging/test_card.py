import hashlib
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from binseg.packaging import NETWORK, NETWORK_INT8, Card, Threshold
from binseg.packaging.card import WEIGHTS
from binseg.postprocess import PostProcessing
from binseg.types import Preprocessing


def test_a_card_is_frozen_and_has_bounds(bench: Any) -> None:
    """A card can't be changed, and can't be made with what reading would refuse."""
    with pytest.raises(ValidationError):
        setattr(bench.card(), "name", "x")  # noqa: B010  (mypy knows that it is frozen)
    with pytest.raises(ValidationError):
        bench.card(scores={"val": {"dice": float("nan")}})
    with pytest.raises(ValidationError):
        bench.card(created=datetime(2026, 1, 2))


def told(card: Card) -> str:
    return "\n".join(": ".join(row) for row in card.rows())


def test_a_cards_rows_tell_the_facts(bench: Any) -> None:
    """The text for people names what matters, one fact a line."""
    text = told(bench.card(versions={"torch": "2.13.0"}))
    for fact in ("cats", "unet, width 4", "4x6", "0.4 (tuned", "7 train", "dice 0.9000", "CC0-1.0",
                 "torch 2.13.0"):  # fmt: skip
        assert fact in text
    assert len(text.splitlines()) == len(bench.card().rows())


def test_the_id_is_the_hash_of_what_decides(bench: Any) -> None:
    """As hashlib says of the deciding facts, defaults included, and of weights and networks."""
    card = bench.card()
    facts = json.loads(card.to_json())
    assert facts["preprocessing"].pop("nodata") is None  # what isn't there changes no id
    assert facts["preprocessing"].pop("depth") == 8  # nor does what was so before it could be said
    deciding = ("architecture", "preprocessing", "temperature", "tta")
    text = json.dumps(
        {
            "files": {WEIGHTS: "0" * 64, NETWORK: "1" * 64, NETWORK_INT8: None},
            **{name: facts[name] for name in deciding},
        },
        sort_keys=True,
    )
    sums = {WEIGHTS: "0" * 64, NETWORK: "1" * 64, "proofs.json": "2" * 64}
    assert card.identity(sums) == hashlib.sha256(text.encode()).hexdigest()[:12]
    ids = {
        card.identity(sums),
        card.identity(sums | {WEIGHTS: "3" * 64}),
        card.identity(sums | {NETWORK: "3" * 64}),
        card.identity(sums | {NETWORK_INT8: "3" * 64}),
        bench.card(temperature=2.0).identity(sums),
        bench.card(tta="all").identity(sums),
        bench.card(preprocessing=replace(card.preprocessing, depth=16)).identity(sums),
    }
    assert len(ids) == 7
    assert bench.card(threshold=Threshold(value=0.1)).identity(sums) in ids


def test_post_processing_travels_whole(bench: Any) -> None:
    """Every setting comes back from the card's JSON, and areas have bounds."""
    steps = PostProcessing(min_area=7, fill_holes=3, largest_only=True)
    card = bench.card(postprocess=steps)
    assert type(card).model_validate_json(card.to_json()).postprocess == steps
    assert "min_area 7, fill_holes 3, largest_only True" in told(card)
    with pytest.raises(ValidationError, match="areas"):
        bench.card(postprocess=PostProcessing(min_area=10**10))


def test_the_scale_is_part_of_what_a_model_is(bench: Any) -> None:
    """Another scale gives other probabilities, so another id; it is told, and has bounds."""
    tiles = replace(bench.card().preprocessing, resize="tile")
    plain, scaled = (bench.card(preprocessing=replace(tiles, scale=scale)) for scale in (1.0, 0.5))
    assert plain.identity({}) != scaled.identity({})
    assert "tile at scale 0.5" in told(scaled)
    for wrong in (
        replace(tiles, scale=0.0),
        replace(tiles, scale=100.0),
        Preprocessing(height=4, width=6, scale=2.0),
    ):
        with pytest.raises(ValidationError, match="scale"):
            bench.card(preprocessing=wrong)
