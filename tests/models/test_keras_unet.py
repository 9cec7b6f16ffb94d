"""The Keras U-Net is our U-Net, built by Keras."""

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from binseg.config import load_recipe
from binseg.errors import MissingExtraError, UsageError
from binseg.models import create_model


def keras_unet(**options: int | float | str) -> nn.Module:
    """The Keras network, or a skipped test where Keras is not installed."""
    torch.manual_seed(0)
    try:
        asked: dict[str, Any] = {"width": 4, "depth": 3, **options}
        return create_model("keras_unet", encoder="unet", **asked)
    except MissingExtraError as error:
        pytest.skip(str(error))


def _ours(parameter: Tensor, name: str) -> Tensor:
    """A Keras kernel (h, w, in, out; transposed: h, w, out, in) in torch's order."""
    return parameter if name.endswith("bias") else parameter.permute(3, 2, 0, 1)


def test_same_weights_same_logits_as_the_torch_unet() -> None:
    """With its weights copied across, our norm-free U-Net gives the same logits: same network."""
    theirs = keras_unet().eval()
    twin = load_recipe("em-unet").model.arguments()
    ours = create_model(**(twin | {"width": 4, "depth": 3})).eval()
    # Both list their layers in the order of computation, and each has a kernel and a bias; but
    # Keras joins (skip, up) and report A joins (up, skip): that half of the kernel trades places.
    given = list(theirs.named_parameters())
    wanted = list(ours.named_parameters())
    assert len(given) == len(wanted)
    with torch.no_grad():
        for (their_name, value), (our_name, parameter) in zip(given, wanted, strict=True):
            turned = _ours(value, their_name)
            if our_name.endswith("convs.0.conv.weight"):
                turned = turned.roll(turned.shape[1] // 2, dims=1)
            parameter.copy_(turned)
    images_BCHW = torch.rand(2, 3, 48, 64)
    with torch.inference_mode():
        expected = ours(images_BCHW)
        torch.testing.assert_close(theirs(images_BCHW), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0


def test_weights_are_plain_torch_parameters_with_our_names() -> None:
    """The state dict doesn't depend on Keras's counters: a second network has the same names."""
    first, second = keras_unet(), keras_unet()
    names = list(first.state_dict())
    assert names == list(second.state_dict())
    assert names[0] == "down1_conv1_kernel"
    assert names[-1] == "head_bias"
    assert "bottom_conv2_kernel" in names
    assert all(isinstance(parameter, nn.Parameter) for parameter in first.parameters())


def test_copies_are_independent() -> None:
    """A deep copy (moving averages make one) keeps its numbers while the first one trains."""
    model = keras_unet().eval()
    kept, images_BCHW = copy.deepcopy(model), torch.rand(1, 3, 16, 16)
    before = model(images_BCHW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(kept(images_BCHW), before)
    assert not torch.allclose(model(images_BCHW), before)


@pytest.mark.parametrize("up", ["transpose", "bilinear", "nearest"])
def test_ways_of_doubling(up: str) -> None:
    """Conv2DTranspose and both kinds of UpSampling2D give logits at any size."""
    model = keras_unet(up=up, depth=2).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 13, 6)).shape == (1, 1, 13, 6)


def test_dropout_follows_torchs_seed_and_stops_in_eval_mode() -> None:
    """One seed governs dropout, and predictions are not random."""
    model, images_BCHW = keras_unet(dropout=0.5), torch.rand(1, 3, 16, 16)
    torch.manual_seed(1)
    first = model.train()(images_BCHW)
    torch.manual_seed(1)
    assert torch.equal(model(images_BCHW), first)
    assert not torch.equal(model(images_BCHW), first)
    model.eval()
    assert torch.equal(model(images_BCHW), model(images_BCHW))


def test_first_weights_are_he_normal() -> None:
    """Kernels have the deviation sqrt(2 / inputs) of Keras's he_normal and no far outliers."""
    model = keras_unet(width=32, depth=2)
    kernel = model.get_parameter("bottom_conv2_kernel").detach()
    std = (2 / (9 * 128)) ** 0.5
    assert abs(kernel.std().item() / std - 1) < 0.02
    assert kernel.abs().max() < 2.3 * std


def test_absent_keras_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Keras, the error says what to install."""
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(MissingExtraError, match=r'pip install "binseg\[keras\]"'):
        create_model("keras_unet", encoder="unet")


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras set to another backend is not switched behind the user's back."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UsageError, match="set to run on jax, and keras_unet needs it on torch"):
        create_model("keras_unet", encoder="unet")
