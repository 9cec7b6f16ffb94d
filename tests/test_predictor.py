from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from PIL import Image, ImageOps

import binseg
from binseg.errors import BundleError, ImageError, TrainingError, UsageError
from binseg.inference import ModelPredictor, load, sigmoid, verify_reference
from binseg.inference.runtimes.torch import TorchBackend
from binseg.models import create_model
from binseg.packaging import (
    Architecture,
    Bundle,
    Card,
    Reference,
    Threshold,
    pack_zip,
    write_bundle,
)
from binseg.transforms.preprocess import prepare
from binseg.types import Preprocessing

OPTIONS: dict[str, Any] = {"width": 2, "depth": 1}
PLAIN = Preprocessing(height=16, width=16, mean=(0.0,) * 3, std=(1.0,) * 3)


class Red:
    """A backend whose logit is 8 r - 4, so that the answer to any image is known."""

    name, precision = "red", "fp32"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        self.sizes.append(len(inputs_NCHW))
        return 8 * inputs_NCHW[:, 0] - 4


class Broken:
    """A backend that gives NaN."""

    name, precision = "broken", "bf16"

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        return np.full_like(inputs_NCHW[:, 0], np.nan)


def predictor(backend: Any = None, *, batch_size: int = 8, **changes: Any) -> ModelPredictor:
    return ModelPredictor(
        backend=backend or Red(),
        preprocessing=replace(PLAIN, **changes),
        threshold=0.5,
        bundle_id="test",
        batch_size=batch_size,
    )


def photo(height: int = 16, width: int = 16) -> np.ndarray:
    """Smooth colours, so that resizing changes little."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([rows, columns, rows * columns], axis=2).astype(np.float32)


def bundle(folder: Path, *, reference_shift: float = 0.0) -> Bundle:
    torch.manual_seed(0)
    model = create_model("unet", encoder="unet", **OPTIONS).eval()
    inputs = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    maker = predictor(TorchBackend(model))
    probability = np.clip(maker.probability_of_inputs(inputs) + np.float32(reference_shift), 0, 1)
    return write_bundle(
        folder,
        card=Card(
            name="<tiny>",
            architecture=Architecture(decoder="unet", encoder="unet", options=OPTIONS),
            preprocessing=PLAIN,
            threshold=Threshold(value=0.3),
        ),
        weights={name: tensor.numpy() for name, tensor in model.state_dict().items()},
        reference=Reference(input_NHWC=inputs, probability_NHW=probability),
    )


def test_sigmoid_is_scipys() -> None:
    """The logistic function equals scipy's, far out too, in float32 and without warnings."""
    logits = np.concatenate([np.linspace(-200, 200, 4001), [1e30, -1e30]]).astype(np.float32)
    assert sigmoid(logits).dtype == np.float32
    np.testing.assert_allclose(sigmoid(logits), scipy.special.expit(logits), rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "tile"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (1, 1), (5, 40), (61, 33)])
def test_the_answer_has_the_images_size(mode: str, height: int, width: int) -> None:
    """Whatever the size and the resize mode, the answer is the known one, at the image's size."""
    image = photo(height, width)
    prediction = predictor(resize=mode).predict(image)
    assert prediction.probability.shape == (height, width)
    assert prediction.probability.dtype == np.float32
    if min(height, width) > 16:
        expected = scipy.special.expit(8 * image[:, :, 0] - 4)
        np.testing.assert_allclose(prediction.probability, expected, atol=0.03)
    assert prediction.image_HWC is not None
    assert prediction.bundle_id == "test"


def test_every_way_to_give_an_image_is_the_same(tmp_path: Path) -> None:
    """Path, string, PIL image and arrays of each type give one answer."""
    pixels = (photo(20, 30) * 255).astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    model = predictor()
    expected = model.predict(pixels).probability
    given = (path, str(path), Image.fromarray(pixels), pixels.astype(np.uint16) * 257)
    for image in given:
        np.testing.assert_array_equal(model.predict(image).probability, expected)
    for kind in (np.float32, np.float64):
        answer = model.predict((pixels / 255).astype(kind)).probability
        np.testing.assert_allclose(answer, expected, atol=0.01)


def test_black_and_white_arrays_are_images() -> None:
    """A bool array is black and white, and a map without channels is grey."""
    half = np.zeros((16, 16), np.bool_)
    half[:8] = True
    answer = predictor().predict(half)
    np.testing.assert_array_equal(answer.mask, half)
    grey = predictor().predict(half.astype(np.uint8)[:, :, None] * np.uint8(255))
    np.testing.assert_array_equal(answer.probability, grey.probability)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_a_turned_pil_image_is_turned(tmp_path: Path, kind: str) -> None:
    """A camera's EXIF turn holds for PIL images as for files, and once only."""
    image = Image.fromarray((photo(16, 8) * 255).astype(np.uint8))
    image.getexif()[274] = 6
    image.save(tmp_path / f"a.{kind}", exif=image.getexif())
    model = predictor()
    expected = model.predict(tmp_path / f"a.{kind}").probability
    assert expected.shape == (8, 16)
    with Image.open(tmp_path / f"a.{kind}") as opened:
        for same in (opened, opened.copy(), ImageOps.exif_transpose(opened)):
            np.testing.assert_allclose(model.predict(same).probability, expected, atol=0.02)
    np.testing.assert_allclose(model.predict(image).probability, expected, atol=0.1)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        ([[1, 2], [3, 4]], "got a list; predict takes a path"),
        (None, "got a NoneType"),
        (torch.zeros(3, 4, 4), r"got a torch\.Tensor"),
        (np.zeros((2, 4, 4, 3), np.uint8), "or a list of such images"),
        (np.zeros(4, np.uint8), "one image"),
        (np.zeros((0, 4), np.uint8), "none of them 0"),
    ],
    ids=["list", "none", "tensor", "batch", "line", "empty"],
)
def test_what_is_no_image_is_refused(image: Any, match: str) -> None:
    """Lists, tensors and batches are refused with what is accepted."""
    with pytest.raises(UsageError, match=match):
        predictor().predict(image)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.full((4, 4), 255.0), "scale them to 0..1"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4, 7), np.uint8), "7 channels"),
    ],
    ids=["range", "nan", "int64", "channels"],
)
def test_images_that_do_not_fit_are_refused(image: np.ndarray, match: str) -> None:
    """Floats outside [0, 1], wide integers and odd channel counts are refused, not guessed at."""
    with pytest.raises(ImageError, match=match):
        predictor().predict(image)


def test_any_float_range_is_fine_for_a_percentile_model() -> None:
    """A model that stretches each image takes floats of any range."""
    image = photo(16, 16)
    model = predictor(intensity="percentile")
    np.testing.assert_allclose(
        model.predict(image * 4000 - 100).probability, model.predict(image).probability, atol=0.02
    )


def test_pages_are_chosen_in_files_only(tmp_path: Path) -> None:
    """A multi-page file needs `page=`, and nothing else takes it."""
    path = tmp_path / "stack.tif"
    pages = [Image.fromarray(np.full((9, 9), value, np.uint8)) for value in (0, 255)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="page"):
        predictor().predict(path)
    assert predictor().predict(path, page=1).mask.all()
    with pytest.raises(UsageError, match="page=1 is for multi-page files"):
        predictor().predict(np.zeros((9, 9), np.uint8), page=1)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A file that is missing or no image is one line with its name."""
    (tmp_path / "text.png").write_text("hello")
    for name in ("none.png", "text.png"):
        with pytest.raises(ImageError, match=name):
            predictor().predict(tmp_path / name)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_only_saves_time(tmp_path: Path, batch_size: int) -> None:
    """Tiles computed one at a time or all at once give one answer, up to float32's last bits."""
    image = photo(50, 40)
    torch.manual_seed(0)
    model = create_model("unet", encoder="unet", **OPTIONS).eval()
    answers = [
        predictor(TorchBackend(model), batch_size=size, resize="tile").predict(image).probability
        for size in (8, batch_size)
    ]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)
    backend = Red()
    predictor(backend, batch_size=batch_size, resize="tile").predict(image)
    assert max(backend.sizes) <= batch_size


def test_prediction_and_validation_share_their_numbers() -> None:
    """A prepared input's probability is what `predict` gives for its image, to the bit."""
    image = (photo() * 255).astype(np.uint8)
    inputs, _ = prepare(image, PLAIN)
    np.testing.assert_array_equal(
        predictor().probability_of_inputs(inputs)[0], predictor().predict(image).probability
    )
    assert predictor().probability_of_inputs(inputs[:0]).shape == (0, 16, 16)


def test_many_images_stream() -> None:
    """Images are read as their predictions are asked for, so an endless source is fine."""
    asked = []

    def endless() -> Any:
        while True:
            asked.append(1)
            yield photo()

    answers = predictor().predict_many(endless())
    next(answers)
    next(answers)
    assert len(asked) == 2


def test_the_callers_array_is_not_changed() -> None:
    """Predicting leaves the given pixels as they were."""
    image = photo(20, 20)
    before = image.copy()
    predictor().predict(image)
    np.testing.assert_array_equal(image, before)


def test_nan_is_told_with_its_cause(tmp_path: Path) -> None:
    """NaN from a model in training is a TrainingError, from a bundle a BundleError."""
    model = predictor(Broken())
    with pytest.raises(TrainingError, match=r"NaN or infinity.*learning rate"):
        model.predict(photo())
    model.bundle = bundle(tmp_path / "b")
    with pytest.raises(BundleError, match="train it again"):
        model.predict(photo())


def test_settings_out_of_range_are_refused() -> None:
    """A threshold that is no probability and a batch of nothing are refused."""
    with pytest.raises(UsageError, match="batch_size 0"):
        predictor(batch_size=0)
    with pytest.raises(UsageError, match=r"threshold 1\.5"):
        ModelPredictor(backend=Red(), preprocessing=PLAIN, threshold=1.5, bundle_id="x")


def test_loading_gives_the_model_back(tmp_path: Path) -> None:
    """Folder, zip and run give one model, with its threshold, id and card."""
    made = bundle(tmp_path / "run" / "bundle")
    image = photo(30, 20)
    torch.manual_seed(0)
    live = predictor(TorchBackend(create_model("unet", encoder="unet", **OPTIONS).eval()))
    for path in (made.path, tmp_path / "run", str(pack_zip(made, tmp_path / "m.zip"))):
        model = binseg.load(path)
        prediction = model.predict(image)
        assert (prediction.threshold, prediction.bundle_id) == (0.3, made.card.id)
        assert model.card == made.card
        np.testing.assert_allclose(
            prediction.probability, live.predict(image).probability, atol=1e-6
        )


def test_the_reference_sample_proves_the_model(tmp_path: Path) -> None:
    """The sample is met in fp32, within tolerance in bf16, and a wrong one is found out."""
    good = bundle(tmp_path / "good")
    check = verify_reference(load(good.path), good)
    assert check.passed
    assert check.largest_difference < 1e-5
    rough = verify_reference(load(good.path, precision="bf16"), good)
    assert rough.passed
    assert rough.largest_difference > 0
    wrong = bundle(tmp_path / "wrong", reference_shift=0.01)
    assert not verify_reference(load(wrong.path), wrong).passed


def test_a_predictor_shows_itself(tmp_path: Path) -> None:
    """Its text names model, size, threshold and runtime; notebooks see the card, escaped."""
    model = load(bundle(tmp_path / "b").path)
    for fact in ("'<tiny>'", "unet", "16x16 stretch", "threshold 0.3", "torch cpu fp32"):
        assert fact in repr(model)
    assert "&lt;tiny&gt;" in model._repr_html_()
    assert "bundle test" in repr(predictor())
    assert "test" in predictor()._repr_html_()
