"""A graph with the preprocessing inside answers like binseg's own prediction, at any size."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from binseg.config import ModelConfig
from binseg.config.named_models import MODELS
from binseg.errors import MissingExtraError, UsageError
from binseg.inference import ModelPredictor
from binseg.inference.runtimes.torch import TorchBackend
from binseg.models import DECODERS, ENCODERS, create_model
from binseg.models.skeleton import resize
from binseg.packaging.networks import openvino_core
from binseg.packaging.raw_pixels import (
    RawPixels,
    _stretched,
    core_onnx,
    example_size,
    multiple_of,
    to_onnx,
)
from binseg.types import Preprocessing

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("openvino")

SIZES = ((1, 9), (31, 64), (32, 48), (64, 64), (77, 50), (120, 150), (259, 300))
PAIRS = [
    ("unet", "keras_unet"),
    *((encoder, "unet") for encoder in ENCODERS),
    *(("resnet18", decoder) for decoder in DECODERS if decoder != "unet"),
    ("mit_b0", "mlp"),
]
"""Each encoder and each decoder once, at least."""
WHOLE = Preprocessing(height=64, width=96, resize="tile")


def photo(height: int, width: int) -> np.ndarray:
    """A smooth colour image."""
    random = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network whose answer varies with the image."""
    torch.manual_seed(0)
    return create_model(**ModelConfig(name="unet-compact", options={"width": 4}).arguments()).eval()


def onnx_of(raw: RawPixels) -> bytes:
    height, width = example_size(raw.network, raw.shape)
    axes = {0: "num", 1: "height", 2: "width"}
    return to_onnx(
        raw,
        torch.zeros(2, height, width, 3, dtype=getattr(torch, raw.pixels)),
        names=("pixels", "probability"),
        dynamic={"pixels": axes, "probability": axes},
    )


def runners(data: bytes) -> list[Any]:
    """The file in onnxruntime and in openvino, as functions of pixels (N, H, W, C)."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    core = openvino_core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [lambda pixels: session.run(None, {"pixels": pixels})[0], lambda p: compiled(p)[0]]


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "tile"])
@pytest.mark.parametrize(
    ("pixels", "intensity", "depth"),
    [
        ("uint8", "dtype", 8),
        ("float32", "dtype", 8),
        ("float32", "percentile", 8),
        ("uint8", "dtype", 16),
        ("float32", "percentile", 16),
    ],
)
def test_preprocessing_is_inside_the_graph(
    network: nn.Module, mode: str, pixels: str, intensity: str, depth: Any
) -> None:
    """Raw pixels of any size, and several images at once, give what binseg's prediction gives.

    Tiles: for images up to the largest tile, which both see alike.
    """
    largest = 128 if mode == "tile" else 0
    preprocessing = Preprocessing(
        height=64,
        width=64,
        resize=mode,  # type: ignore[arg-type]
        intensity=intensity,  # type: ignore[arg-type]
        depth=depth,
        largest_tile=largest,
    )
    ours = ModelPredictor(
        backend=TorchBackend(network),
        preprocessing=preprocessing,
        threshold=0.5,
        bundle_id="x",
        temperature=1.7,
    )
    raw = RawPixels(network, preprocessing, temperature=1.7, pixels=pixels).eval()  # type: ignore[arg-type]
    run_all = runners(onnx_of(raw))
    for height, width in SIZES:
        if largest and max(height, width) > largest:
            continue
        image = photo(height, width)
        if pixels == "float32":
            image = (image / 255).astype(np.float32)
        expected = ours.predict(image).probability
        for run in run_all:
            found = run(np.stack([image, image[::-1]]))
            assert found.shape == (2, *expected.shape)
            # A level of 255 may be rounded otherwise where sums are in another order.
            assert np.abs(found[0] - expected).max() < 0.02
            assert np.abs(found[0] - expected).mean() < 0.001


def small(encoder: str, decoder: str) -> nn.Module:
    """Give a pair with few channels; the test is skipped where its optional part is absent."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 4} | (
        {"decoder_width": 8} if decoder in ("fpn", "psp", "mlp") else {}
    )
    try:
        return create_model(decoder, encoder=encoder, **options).eval()
    except MissingExtraError as problem:
        pytest.skip(str(problem))


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        *PAIRS,
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in product(ENCODERS, DECODERS)
            if pair not in PAIRS
        ),
    ],
)
def test_every_pair_at_any_size(encoder: str, decoder: str) -> None:
    """Whole images of odd sizes, small ones too, equal torch in onnxruntime and openvino."""
    raw = RawPixels(small(encoder, decoder), WHOLE, temperature=1.0).eval()
    run_all = runners(onnx_of(raw))
    for height, width in ((1, 9), (101, 130)):
        image = photo(height, width)[None]
        with torch.inference_mode():
            expected = raw(torch.from_numpy(image)).numpy()
        for run in run_all:
            assert np.abs(run(image) - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("resnet34", "psp"),
        ("mit_b0", "mlp"),
        ("unet", "unet"),
        ("resnet_compact", "unet"),
        ("efficientnet_lite0", "unet"),
    ],
)
def test_the_network_alone_in_other_batches(encoder: str, decoder: str) -> None:
    """Batches of another number than the traced one, at an odd input size."""
    model = small(encoder, decoder)
    data = core_onnx(model, Preprocessing(height=45, width=67))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    inputs = torch.randn(3, 3, 45, 67)
    with torch.inference_mode():
        expected = model(inputs).numpy()
    found = session.run(None, {"inputs": inputs.numpy()})[0]
    assert found.shape == expected.shape == (3, 1, 45, 67)
    assert np.abs(found - expected).max() < 1e-3 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_every_network_at_its_own_width(name: str) -> None:
    """The networks as they are trained, at sizes that are no multiple of anything."""
    torch.manual_seed(0)
    model = create_model(**ModelConfig(name=name).arguments()).eval()
    raw = RawPixels(model, WHOLE, temperature=1.0).eval()
    run_all = runners(onnx_of(raw))
    for height, width in ((1, 9), (64, 96), (131, 203)):
        image = photo(height, width)[None]
        with torch.inference_mode():
            expected = raw(torch.from_numpy(image)).numpy()
        for run in run_all:
            assert np.abs(run(image) - expected).max() < 1e-2


class Spread(nn.Module):
    """Averages an image to one pixel and spreads that out again."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        mean = images_BCHW.mean(dim=(1, 2, 3), keepdim=True)
        return resize(mean, (images_BCHW.shape[2], images_BCHW.shape[3]))


def test_a_single_pixel_is_spread_out_rightly() -> None:
    """Interpolation from 1 x 1, over which exporters stumble, isn't in any graph."""
    data = to_onnx(
        Spread(), torch.randn(2, 3, 8, 10), names=("x", "y"), dynamic={"x": {2: "h", 3: "w"}}
    )
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 13, 7)
    expected = Spread()(images).numpy()
    np.testing.assert_allclose(session.run(None, {"x": images.numpy()})[0], expected, atol=1e-6)


def test_percentiles_are_those_of_numpy() -> None:
    """Each channel of each image is stretched by its own values; a constant one becomes 0."""
    random = np.random.default_rng(0)
    photos = random.gamma(2.0, 30.0, (2, 3, 17, 23)).astype(np.float32)
    photos[1] *= 7
    found = _stretched(torch.from_numpy(photos)).numpy()
    for one, stretched in zip(photos, found, strict=True):
        low, high = np.percentile(one, (0.5, 99.5), axis=(1, 2), keepdims=True)
        expected = np.clip((one - low) / (high - low), 0, 1)
        np.testing.assert_allclose(stretched, expected, atol=4e-5)
    assert not _stretched(torch.full((1, 1, 4, 5), 9.0)).any()


def test_whole_images_at_a_scale(network: nn.Module) -> None:
    """Tiles at half the size: the same image is computed at half its size, and brought back."""
    raw = RawPixels(network, replace(WHOLE, scale=0.5), temperature=1.0).eval()
    run_all = runners(onnx_of(raw))
    image = photo(151, 203)[None]
    with torch.inference_mode():
        expected = raw(torch.from_numpy(image)).numpy()
    assert expected.shape == (1, 151, 203)
    for run in run_all:
        assert np.abs(run(image) - expected).max() < 5e-3


def test_multiples_and_pixels(network: nn.Module) -> None:
    """Sides are multiples of 32, or of more where a network is deeper; other pixels are refused."""
    assert multiple_of(network) == 32
    assert multiple_of(create_model("unet", encoder="unet", width=2, depth=6)) == 64
    with pytest.raises(UsageError, match="uint8, float32"):
        RawPixels(network, WHOLE, temperature=1.0, pixels="int16")  # type: ignore[arg-type]


def test_an_export_made_twice_is_the_same_file(network: nn.Module) -> None:
    """To the byte, so that hashes of bundles mean something."""
    shape = Preprocessing(height=64, width=64)
    assert core_onnx(network, shape) == core_onnx(network, shape)
