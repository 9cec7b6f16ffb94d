"""The model that comes with binseg: small, whole, licensed, and good at what it says."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from binseg.cli import app
from binseg.inference import load, verify_reference
from binseg.inference.pretrained import default_bundle_path, photo_path
from binseg.packaging import read_bundle


def test_the_bundle_is_small_and_says_what_it_is() -> None:
    """Below 9 MB; the card names the data, its licence, and the score that it was shipped with."""
    assert default_bundle_path().stat().st_size < 9_000_000
    card = read_bundle(default_bundle_path()).card
    assert card.name == "pets"
    assert "CC BY-SA 4.0" in card.licence
    assert "Oxford-IIIT Pet" in card.data.note
    assert card.scores["val, original size"]["dice"] > 0.945


def test_it_computes_its_reference_sample() -> None:
    """Weights stored in 16 bits compute in float32, and give the stored answer."""
    model = load(default_bundle_path(), device="cpu")
    assert model.bundle is not None
    assert verify_reference(model, model.bundle).passed


def test_it_finds_the_cat() -> None:
    """The cat's face fills the middle of the photo; the upper right corner is background."""
    mask = load(default_bundle_path(), device="cpu").predict(photo_path()).mask
    assert mask[100:250, 100:300].mean() > 0.99
    assert mask[:60, 420:].mean() < 0.1
    assert 0.6 < mask.mean() < 0.9


def test_the_built_in_model_is_taken_by_name(tmp_path: Path) -> None:
    """`binseg predict pets PHOTO` takes the built-in model; a photo alone is refused."""
    argv = ["predict", "pets", str(photo_path()), "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == 0
    written = json.loads(result.stdout)["written"][0]
    with Image.open(written["mask"]) as mask:
        assert np.asarray(mask).shape == (300, 451)
    alone = CliRunner().invoke(app, ["predict", str(photo_path()), "--out", str(tmp_path / "no")])
    assert alone.exit_code == 2
    assert "--model pets" in alone.stderr
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "model.zip")])
    assert result.exit_code == 2
    assert "no model among" in result.stderr
