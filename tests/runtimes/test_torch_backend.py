import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from binseg.errors import BundleError, MissingExtraError, UsageError
from binseg.inference.runtimes import open_backend
from binseg.inference.runtimes.torch import TorchBackend
from binseg.models import create_model
from binseg.packaging import Architecture, Bundle, Card, Reference, write_bundle
from binseg.types import Preprocessing

OPTIONS: dict[str, Any] = {"width": 2, "depth": 1}


class Toy(nn.Module):
    """One layer of each kind that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.drop(self.norm(self.conv(inputs)))
        return result


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return create_model("unet", encoder="unet", **OPTIONS).eval()


def inputs(num: int = 2, size: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, 3, size, size)).astype(np.float32)


def bundle_of(
    folder: Path, weights: dict[str, np.ndarray], *, name: str = "unet", **options: Any
) -> Bundle:
    return write_bundle(
        folder,
        card=Card(
            name="tiny",
            architecture=Architecture(decoder=name, encoder="unet", options=OPTIONS | options),
            preprocessing=Preprocessing(height=8, width=8),
        ),
        weights=weights,
        reference=Reference(
            input_NHWC=np.zeros((1, 8, 8, 3), np.uint8),
            probability_NHW=np.zeros((1, 8, 8), np.float32),
        ),
    )


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_logits_are_those_of_the_model(tmp_path: Path) -> None:
    """A bundle's backend gives what the live model gives, as float32 without the channel."""
    model = tiny()
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs()))[:, 0].numpy()
    for backend in (TorchBackend(model), open_backend(bundle_of(tmp_path / "b", state(model)))):
        logits = backend.logits(inputs())
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        assert (backend.name, backend.precision) == ("torch cpu", "fp32")


def test_a_model_in_training_is_not_disturbed() -> None:
    """Every layer's mode (a frozen one's too), the statistics and the random numbers stay."""
    model = Toy().train()
    model.norm.eval()
    torch.manual_seed(1)
    before = (state(model)["norm.running_mean"].copy(), torch.get_rng_state())
    first = TorchBackend(model).logits(inputs())
    np.testing.assert_array_equal(first, TorchBackend(model).logits(inputs()))
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    np.testing.assert_array_equal(state(model)["norm.running_mean"], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_mode_comes_back_after_a_failure() -> None:
    """An error inside the model leaves it in training all the same."""
    model = Toy().train()
    with pytest.raises(RuntimeError):
        TorchBackend(model).logits(np.zeros((1, 5, 4, 4), np.float32))
    assert model.training
    assert model.drop.training


def test_training_goes_on_after_a_call_inside_autocast() -> None:
    """No cast made for prediction is kept where a later training step would trip over it."""
    model = Toy().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        TorchBackend(model, precision="bf16").logits(inputs())
        model(torch.from_numpy(inputs())).sum().backward()
    assert model.conv.weight.grad is not None


def test_fp32_means_fp32_inside_autocast() -> None:
    """The backend's precision holds whatever autocast its caller is in."""
    model = tiny()
    plain = TorchBackend(model).logits(inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(TorchBackend(model).logits(inputs()), plain)


def test_bf16_is_near_fp32_and_not_equal(tmp_path: Path) -> None:
    """bf16 is used when asked for, and only then."""
    bundle = bundle_of(tmp_path / "b", state(tiny()))
    exact = open_backend(bundle, precision="auto").logits(inputs())
    backend = open_backend(bundle, precision="bf16")
    rough = backend.logits(inputs())
    assert backend.precision == "bf16"
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"name": "troch"}, "did you mean torch"),
        ({"name": "caffe"}, "accepted: auto, .*torch"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"precision": "fp16"}, "no precision 'fp16'"),
    ],
)
def test_unknown_choices_are_refused(tmp_path: Path, choice: dict[str, str], match: str) -> None:
    """A misspelt backend, device or precision is refused with what there is."""
    with pytest.raises(UsageError, match=match):
        open_backend(bundle_of(tmp_path / "b", state(tiny())), **choice)


def test_an_absent_gpu_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for cuda without one is refused; auto takes the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bundle = bundle_of(tmp_path / "b", state(tiny()))
    with pytest.raises(UsageError, match="no CUDA GPU"):
        open_backend(bundle, device="cuda")
    assert open_backend(bundle).name == "torch cpu"


def test_missing_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, the error says what to install."""
    bundle = bundle_of(tmp_path / "b", state(tiny()))
    monkeypatch.delitem(sys.modules, "binseg.inference.runtimes.torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"binseg\[train\]"):
        open_backend(bundle)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """Missing, unknown, reshaped and retyped weights are one line with the first of them."""
    good = state(tiny())
    name = next(iter(good))
    for weights, match in (
        ({key: good[key] for key in list(good)[1:]}, f"{name} is missing"),
        (good | {"extra\x1b": good[name]}, "not in the network"),
        (good | {name: good[name][:1]}, "the network has"),
        (good | {name: good[name].astype(np.float64)}, "float64"),
    ):
        with pytest.raises(BundleError, match=match) as caught:
            open_backend(bundle_of(tmp_path / "b", weights))
        assert str(caught.value).isprintable()


def test_an_unknown_architecture_is_the_bundles_fault(tmp_path: Path) -> None:
    """A network or an option that this binseg doesn't have is an error about the bundle."""
    with pytest.raises(BundleError, match="architecture is unknown"):
        open_backend(bundle_of(tmp_path / "b", state(tiny()), name="vgg"))
    with pytest.raises(BundleError, match="architecture is unknown"):
        open_backend(bundle_of(tmp_path / "b", state(tiny()), colour=1))


def test_a_claimed_giant_costs_nothing(tmp_path: Path) -> None:
    """A card that claims a network of terabytes is refused before its memory is taken."""
    with pytest.raises(BundleError, match="weights don't fit"):
        open_backend(bundle_of(tmp_path / "b", state(tiny()), width=1024, depth=7))
    # Keras has no meta device: what it claims is compared with the weights before it builds.
    with pytest.raises(BundleError, match="larger than the weights"):
        open_backend(bundle_of(tmp_path / "b", state(tiny()), name="keras_unet", width=1024))


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    """Opening a bundle leaves torch's random numbers where they were."""
    bundle = bundle_of(tmp_path / "b", state(tiny()))
    before = torch.get_rng_state()
    open_backend(bundle)
    assert torch.equal(torch.get_rng_state(), before)
