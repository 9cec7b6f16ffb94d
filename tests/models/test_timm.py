"""Encoders of timm, and torchvision and timm as referees of ours; run by `.ci/timm`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from binseg.config import load_recipe
from binseg.config.named_models import WEIGHTS
from binseg.errors import DataError, UsageError
from binseg.models import build_model, create_model, weights_path
from binseg.models.skeleton import EncoderDecoder

torchvision: Any = pytest.importorskip("torchvision")
timm: Any = pytest.importorskip("timm")


def lively(model: nn.Module) -> nn.Module:
    """Give batch norms statistics that matter."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return model.eval()


def features(encoder: str, **options: Any) -> nn.Module:
    model = create_model(encoder=encoder, **options)
    assert isinstance(model, EncoderDecoder)
    return model.encoder.eval()


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "densenet121", "mobilenet_v2"]
)
def test_torchvisions_weights_give_torchvisions_features(name: str, tmp_path: Path) -> None:
    """A state dict of torchvision, in our encoder, computes what torchvision computes."""
    torch.manual_seed(0)
    theirs = lively(getattr(torchvision.models, name)(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "published.pth")
    model = create_model(encoder=name, encoder_weights=str(tmp_path / "published.pth"))
    images = torch.rand(2, 3, 97, 131)
    with torch.inference_mode():
        ours = model.eval().encoder(images)[-1]  # type: ignore[operator]
        torch.testing.assert_close(ours, _last_map(name, theirs, images), rtol=1e-3, atol=1e-4)


def _last_map(name: str, model: Any, images: Tensor) -> Tensor:
    if name == "mobilenet_v2":
        maps: Tensor = model.features[:-1](images)  # its last 1x1 convolution is the classifier's
        return maps
    if name == "densenet121":
        return torch.relu(model.features(images))
    maps = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        maps = stage(maps)
    return maps


def test_lite0_is_timms_at_odd_sizes() -> None:
    """With the published weights, all five maps are those of timm's network, SAME padding too."""
    assert weights_path(WEIGHTS["efficientnet_lite0", "imagenet"]) is not None
    ours = features("efficientnet_lite0", encoder_weights="imagenet")
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    wanted = theirs.state_dict()
    # Both list their layers in the order of computation.
    values = list(ours.state_dict().values())
    assert [value.shape for value in wanted.values()] == [value.shape for value in values]
    theirs.load_state_dict(dict(zip(wanted, values, strict=True)))
    images = torch.rand(2, 3, 97, 131)
    with torch.inference_mode():
        for mine, other in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050", "fbnetc_100"]
)
@pytest.mark.parametrize("decoder", ["unet", "fpn"])
def test_any_network_of_timm_is_an_encoder(name: str, decoder: str) -> None:
    """It builds (on the meta device too, as bundles do), runs at any size, learns and exports."""
    torch.manual_seed(0)
    with torch.device("meta"):
        expected = create_model(decoder, encoder=f"timm:{name}", in_channels=5).state_dict()
    model = create_model(decoder, encoder=f"timm:{name}", in_channels=5)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }
    model.eval()
    with torch.inference_mode():
        for height, width in ((1, 1), (45, 70), (64, 96)):
            assert model(torch.rand(2, 5, height, width)).shape == (2, 1, height, width)
    model.train()(torch.rand(2, 5, 64, 64)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    images = torch.rand(1, 5, 64, 64)
    program = torch.export.export(model.eval(), (images,))
    torch.testing.assert_close(program.module()(images), model(images))


def test_what_is_no_encoder_is_refused() -> None:
    """Unknown names and tags, and networks whose maps don't halve, are one line each."""
    for name, message in (
        ("resnet18000", "timm has no network resnet18000"),
        ("resnet10t.nonsense", "timm:resnet10t.nonsense can't be an encoder: Invalid pretrained"),
        ("mixer_s16_224", "its maps have strides 16, 16, 16, and decoders need"),
    ):
        with pytest.raises(UsageError, match=message):
            create_model(encoder=f"timm:{name}")
    with pytest.raises(UsageError, match="no option width"):
        create_model(encoder="timm:resnet10t", width=8)


def test_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network timm's own errors are pages long; ours says what failed."""
    monkeypatch.setenv("BINSEG_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    with pytest.raises(DataError, match=r"timm's weights of resnet10t can't be fetched") as caught:
        create_model(encoder="timm:resnet10t", encoder_weights="imagenet")
    assert "\n" not in str(caught.value)


def test_timms_weights_need_their_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained weights with another mean than the recipe's are refused until it is stated."""
    plain = timm.create_model

    def local(name: str, *, pretrained: bool, **options: Any) -> Any:
        del pretrained
        return plain(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", local)
    chosen = ["model.decoder=fpn", "model.encoder_weights=imagenet"]
    usual = load_recipe(overrides=[*chosen, "model.encoder=timm:resnet10t"])
    assert isinstance(build_model(usual), EncoderDecoder)
    halves = [*chosen, "model.encoder=timm:mobilenetv3_small_050"]
    config = timm.get_pretrained_cfg("mobilenetv3_small_050")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: replace(config, mean=(0.5,) * 3))
    with pytest.raises(UsageError, match=r"were trained with input.mean=\[0.5, 0.5, 0.5\] .* set"):
        build_model(load_recipe(overrides=halves))
    build_model(load_recipe(overrides=[*halves, "input.mean=[0.5]"]))
