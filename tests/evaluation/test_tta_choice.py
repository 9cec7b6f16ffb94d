"""Mirror images: tried where the network has learnt from them, kept where they help."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import binseg
from binseg.cli.console import PlainProgress
from binseg.config import load_recipe
from binseg.data.dataset import Dataset
from binseg.data.sources import open_dataset
from binseg.evaluation.tuning import allowed_tta, choose_tta
from binseg.inference import ModelPredictor, verify_reference
from binseg.packaging import read_bundle, write_bundle
from binseg.pipelines.export_model import export_model
from binseg.pipelines.train_model import train
from binseg.postprocess import PostProcessing
from binseg.types import Preprocessing

Write = Callable[[Path, Sequence[int]], Path]


class Noisy:
    """A backend that sees the brightness, with noise of its own in every answer."""

    name, precision = "noisy", "fp32"

    def __init__(self, noise: float) -> None:
        self._random = np.random.default_rng(0)
        self._noise = noise

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        seen_NHW = 8 * (inputs_NCHW.mean(axis=1) - 0.45)
        noise_NHW = self._random.normal(0, self._noise, seen_NHW.shape)
        found: np.ndarray = (seen_NHW + noise_NHW).astype(np.float32)
        return found


def judge(noise: float) -> ModelPredictor:
    plain = Preprocessing(height=40, width=40, mean=(0.0,) * 3, std=(1.0,) * 3)
    return ModelPredictor(
        backend=Noisy(noise), preprocessing=plain, threshold=0.5, bundle_id="noisy"
    )


@pytest.fixture
def dataset(discs: Path) -> Dataset:
    recipe = load_recipe(sections={"data": {"path": str(discs)}})
    found = open_dataset(recipe.data)
    return replace(found, records=found.records[:10])


@pytest.mark.parametrize(
    ("orientation", "tta"), [("any", "all"), ("upright", "horizontal"), ("fixed", "none")]
)
def test_only_what_was_learnt_from_is_tried(orientation: str, tta: str) -> None:
    """Mirror images that the augmentation never draws are strangers to the network."""
    overrides = ["augment.preset=medium", f"augment.orientation={orientation}"]
    assert allowed_tta(load_recipe(overrides=overrides)) == tta


def test_flips_that_help_are_taken(dataset: Dataset) -> None:
    """Averaging answers with noise of their own is better by far."""
    recipe = load_recipe(overrides=["augment.preset=medium", "augment.orientation=any"])
    assert choose_tta(recipe, judge(3.0), dataset) == "all"
    # Without noise all mirror images answer alike, and there is nothing to gain.
    assert choose_tta(recipe, judge(0.0), dataset) == "none"
    few = replace(dataset, records=dataset.records[:2])
    assert choose_tta(recipe, judge(3.0), few) == "none"
    still = load_recipe(overrides=["augment.preset=none"])
    assert choose_tta(still, judge(3.0), dataset) == "none"


def test_flips_of_the_recipe_are_the_bundles(
    discs: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Scores, threshold and all later answers are of the mean that the recipe asked for."""
    recipe = load_recipe(
        sections={"data": {"path": str(discs)}},
        overrides=[*tiny, "train.tta=horizontal", "train.postprocess=tune"],
    )
    run = train(recipe, out=tmp_path / "run").folder
    model = binseg.load(run)
    assert model.card is not None
    assert (model.card.tta, model.tta) == ("horizontal", "horizontal")
    assert not model.remarks
    assert "without tta" not in str(binseg.load(run, tta="all").remarks)
    assert "with tta horizontal" in str(binseg.load(run, tta="all").remarks)
    report = binseg.evaluate(run, split="val")
    stored = model.card.scores["val, original size"]["dice"]
    assert report.mean["original"]["dice"] == pytest.approx(stored, abs=1e-6)


def test_a_card_decides_flips_and_corrections(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are part of what the bundle answers, and the reference sample is still the network's."""
    bundle = read_bundle(trained)
    card = bundle.card.model_copy(
        update={"tta": "all", "postprocess": PostProcessing(min_area=50), "id": ""}
    )
    changed = write_bundle(
        tmp_path / "changed", card=card, weights=bundle.weights(), reference=bundle.reference()
    )
    assert changed.card.id != bundle.card.id
    model = binseg.load(tmp_path / "changed")
    assert (model.tta, model.postprocessing) == ("all", PostProcessing(min_area=50))
    assert verify_reference(model, changed).passed
    image = np.random.default_rng(0).integers(0, 256, (36, 44, 3), dtype=np.uint8)
    plain = binseg.load(trained, tta="all")
    assert np.array_equal(model.predict(image).probability, plain.predict(image).probability)
    assert binseg.load(tmp_path / "changed", tta="none").tta == "none"
    # A single file is the network alone, and that is said.
    export_model(
        tmp_path / "changed", target="torch", out=tmp_path / "m.pt2", progress=PlainProgress()
    )
    said = capsys.readouterr().err
    assert "m.pt2 predicts without the model's test-time augmentation (tta all)" in said
    assert "m.pt2 predicts without the model's post-processing of masks" in said
