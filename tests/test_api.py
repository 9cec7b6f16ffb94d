"""The calls of `import binseg`: each is tried as its documentation writes it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import binseg
from binseg.errors import UsageError
from binseg.inference import ModelPredictor
from binseg.types import Preprocessing


class Counting:
    """A backend that answers with the brightness, and notes the size of each batch."""

    name, precision = "counting", "fp32"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Give the mean over the channels."""
        self.sizes.append(len(inputs_NCHW))
        found: np.ndarray = inputs_NCHW.mean(axis=1)
        return found


def counting(batch_size: int = 8, **changes: object) -> tuple[ModelPredictor, Counting]:
    """A model of that backend."""
    backend = Counting()
    shape = Preprocessing(height=32, width=32, **changes)  # type: ignore[arg-type]
    model = ModelPredictor(
        backend=backend, preprocessing=shape, threshold=0.5, bundle_id="c", batch_size=batch_size
    )
    return model, backend


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_list_shares_batches_and_answers_as_one_by_one() -> None:
    """Ten images of ten sizes are two batches of at most eight; each mask is that of its image."""
    model, backend = counting()
    images = [noise(seed, 20 + seed, 50 - seed) for seed in range(10)]
    found = model.predict(images)
    assert backend.sizes == [8, 2]
    for image, prediction in zip(images, found, strict=True):
        alone = model.predict(image)
        assert isinstance(alone, binseg.Prediction), "one in, one out"
        np.testing.assert_array_equal(alone.probability, prediction.probability)
    assert model.predict([]) == []
    backend.sizes.clear()
    model.predict(images, batch_size=3)
    assert backend.sizes == [3, 3, 3, 1]


def test_tiles_of_one_size_share_batches_too() -> None:
    """Images that are one tile each are computed together; a large one is computed by itself."""
    model, backend = counting(resize="tile", overlap=0.0)
    images = [noise(0, 30, 32), noise(1, 32, 20), noise(2, 200, 200), noise(3, 31, 31)]
    found = model.predict(images)
    assert backend.sizes[0] == 3
    assert sum(backend.sizes) == 3 + model.num_inputs(200, 200)
    for image, prediction in zip(images, found, strict=True):
        np.testing.assert_allclose(
            prediction.probability, model.predict(image).probability, atol=1e-6
        )


def test_a_prediction_becomes_arrays_and_files(tmp_path: Path) -> None:
    """Mask, overlay, cut-out and objects agree with each other and with the files."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:20, 10:30] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    model, _ = counting()
    prediction = model.predict(tmp_path / "a.png")
    (one,) = prediction.objects()
    assert (one.top, one.left, one.height, one.width) == (8, 10, 12, 20)
    assert np.array_equal(prediction.cutout()[:, :, 3] > 127, prediction.mask)
    assert prediction.overlay().shape == image.shape
    for name in ("m.png", "m.tif"):
        with Image.open(prediction.save(tmp_path / name)) as written:
            assert np.array_equal(np.asarray(written) == 255, prediction.mask)
    assert '"image": "a.png"' in prediction.save(tmp_path / "m.geojson").read_text()
    assert prediction.save(tmp_path / "m.csv").read_text().count("\n") == 2
    with Image.open(prediction.save(tmp_path / "o.png", kind="overlay")) as written:
        assert np.array_equal(np.asarray(written), prediction.overlay())
    with pytest.raises(UsageError, match=r"must end in one of \.png"):
        prediction.save(tmp_path / "m.doc")
    large = binseg.Prediction(probability_HW=prediction.probability, threshold=0.5, bundle_id="c")
    with pytest.raises(UsageError, match="too large to keep"):
        large.overlay()


def test_train_gives_a_run_with_its_model(
    tmp_path: Path, discs: Path, write_discs: Callable[[Path, Sequence[int]], Path]
) -> None:
    """`train`, `run.model`, `predict`, `evaluate` and `predict_files`, as the docs write them."""
    run = binseg.train(
        discs,
        out=tmp_path / "run",
        recipe="demo",
        epochs=1,
        train__batch_size=6,
        size=32,
        lr=0.02,
        device="cpu",
        precision="fp32",
        model={"name": "unet", "options": {"width": 3, "depth": 2}},
    )
    model = run.model
    assert run.report.split == "val"
    assert model.card is not None
    assert model.card.recipe["train"]["epochs"] == 1  # type: ignore[index,call-overload]
    assert model.card.architecture.options["width"] == 3
    report = model.evaluate(split="val")
    assert report.mean["original"] == run.report.mean["original"]
    others = write_discs(tmp_path / "others", range(100, 103))
    result = binseg.predict_files(model, others / "images", out=tmp_path / "masks")
    assert [one.mask.name for one in result.written] == [
        "disc100.png",
        "disc101.png",
        "disc102.png",
    ]
    with Image.open(result.written[0].mask) as mask:
        assert np.array_equal(np.asarray(mask) > 0, model.predict(result.written[0].source).mask)
    again = binseg.load(tmp_path / "run", batch_size=2)
    assert isinstance(again, binseg.Model)
    with pytest.raises(UsageError, match="twice"):
        binseg.Ensemble([model, again])


def test_a_model_is_exported_by_the_name_of_its_file(trained: Path, tmp_path: Path) -> None:
    """ONNX by its suffix; another suffix is refused with those that there are."""
    model = binseg.load(trained)
    with pytest.raises(UsageError, match=r"ends in one of \.onnx"):
        model.export(tmp_path / "m.doc")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = model.export(tmp_path / "m.onnx")
    assert made.path == tmp_path / "m.onnx"
    assert all(proof.passed for proof in made.proofs)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"epoch": 3}, "there is no setting 'epoch': did you mean epochs"),
        ({"name": "unet"}, "give one of .*model__name"),
        ({"trian__epochs": 3}, "trian: unknown key; did you mean train"),
    ],
)
def test_settings_that_are_unclear_are_refused(
    settings: dict[str, object], match: str, tmp_path: Path
) -> None:
    """A typo names the nearest setting, and a name of several sections all of them."""
    with pytest.raises(UsageError, match=match):
        binseg.train("synthetic", out=tmp_path / "r", recipe="demo", **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="which images"):
        binseg.train(out=tmp_path / "r")


def test_a_budget_and_a_recipe_of_ones_own(tmp_path: Path) -> None:
    """A budget goes into the recipe; a Recipe's own settings stay where nothing is said."""
    from binseg.api import _changed, _sections

    recipe = binseg.load_recipe("demo", overrides=["train.seed=5"])
    changed = _changed(recipe, _sections("folder", {"epochs": 2}))
    assert (changed.data.path, changed.train.epochs, changed.train.seed) == ("folder", 2, 5)
    assert changed.model == recipe.model


def test_data_sets_open(discs: Path) -> None:
    """A folder's images are listed with their masks."""
    dataset = binseg.open_dataset(discs)
    assert len(dataset.records) == 16
    assert all(record.mask_path is not None for record in dataset.records)
