"""torch.compile on request, and training without it where nothing can compile."""

from typing import Any

import pytest
import torch
from torch import nn

from binseg.config import ModelConfig
from binseg.models import create_model
from binseg.progress import SILENT
from binseg.training import devices
from binseg.training.devices import compiled

CPU = torch.device("cpu")


@pytest.fixture
def model() -> nn.Module:
    """A small network."""
    torch.manual_seed(0)
    return create_model(**ModelConfig(name="unet-compact", options={"width": 4}).arguments())


def test_without_a_compiler_it_is_said_and_trained_without(
    model: nn.Module, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, when it was asked for; else nothing is said."""
    monkeypatch.setattr(devices, "has_compiler", lambda device: False)
    heard = listen()
    assert compiled(model, asked=False, device=CPU, progress=heard) is model
    assert heard.lines == []
    assert compiled(model, asked=True, device=CPU, progress=heard) is model
    assert len(heard.lines) == 1
    assert "no compiler" in heard.lines[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own, about its compiler
def test_compiled_networks_answer_alike(model: nn.Module) -> None:
    """The same logits and the same gradients."""
    if not devices.has_compiler(CPU):
        pytest.skip("no compiler on this machine")
    translated = compiled(model, asked=True, device=CPU, progress=SILENT)
    assert translated is not model
    images = torch.rand(2, 3, 32, 32)
    gradients = []
    for network in (model, translated):
        model.zero_grad()
        network(images).square().mean().backward()
        gradients.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
