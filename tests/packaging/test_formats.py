"""Bundles of every released format stay readable; `fixtures/` is never made anew after that."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from binseg.cli import app
from binseg.inference import load, verify_reference
from binseg.packaging import read_bundle
from binseg.packaging.card import FORMAT_VERSION

FIXTURES = Path(__file__).parent / "fixtures"
FIRST = FIXTURES / "format-1"
"""A unet of width 4, trained on bright rectangles; written when format 1 was the newest."""


def test_every_format_so_far_has_its_fixture() -> None:
    """Whoever raises the format version adds a bundle of it, and keeps the older ones."""
    assert sorted(path.name for path in FIXTURES.iterdir()) == [
        f"format-{number + 1}" for number in range(FORMAT_VERSION)
    ]


def test_a_bundle_of_format_1_is_read_for_ever() -> None:
    """Its hashes, id and facts are those that were written in 2026."""
    bundle = read_bundle(FIRST)
    assert bundle.card.format_version == 1
    assert bundle.card.id == "a652958f206a"
    assert bundle.card.threshold.value == 0.4
    options = bundle.card.architecture.options
    assert {name: options[name] for name in ("width", "depth", "norm", "skip_first")} == {
        "width": 4, "depth": 2, "norm": "batch", "skip_first": True,
    }  # fmt: skip
    assert bundle.sha256["weights.safetensors"][:12] == "bdc95a5878de"


def test_a_bundle_of_format_1_answers_as_it_did() -> None:
    """Its network computes the probability that is stored beside it, and `predict` its mask."""
    model = load(FIRST, backend="torch", device="cpu", precision="fp32")
    assert model.bundle is not None
    assert verify_reference(model, model.bundle).passed
    reference = model.bundle.reference()
    for input_HWC, probability_HW in zip(
        reference.input_NHWC, reference.probability_NHW, strict=True
    ):
        prediction = model.predict(input_HWC)
        assert np.abs(prediction.probability - probability_HW).max() < 1e-4
        assert (prediction.mask == (probability_HW > 0.4)).mean() > 0.999


def test_a_bundle_from_the_future_is_one_line(bench: Any, tmp_path: Path) -> None:
    """Whatever a later format holds, its reader learns to upgrade, with exit code 1."""
    folder = tmp_path / "later"
    shutil.copytree(FIRST, folder)
    later = {"format_version": FORMAT_VERSION + 1, "layers": [{"unheard": "of"}]}
    bench.forge(folder, "card.json", json.dumps(later).encode())
    result = CliRunner().invoke(app, ["verify", str(folder)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "made by a newer binseg" in result.stderr
    assert "upgrade" in result.stderr
