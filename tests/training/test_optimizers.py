import pytest
import torch
from torch import nn

from binseg.config.recipe import OptimizerConfig
from binseg.training.optim import build_optimizer

PLAIN = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_steps_are_plain_steps(name: str) -> None:
    """Each optimiser moves weights as torch's plain one with the same numbers."""
    config = OptimizerConfig.model_validate({"name": name, "lr": 0.01, "weight_decay": 0.1})
    layers = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        extra = {"momentum": 0.9} if name == "sgd" else {}
        optimizer = (
            build_optimizer(layer, config)
            if fused
            else PLAIN[name](layer.parameters(), lr=0.01, weight_decay=0.1, fused=False, **extra)
        )
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        layers.append(layer.weight.detach())
    torch.testing.assert_close(layers[0], layers[1])


def test_frozen_weights_are_left_out() -> None:
    """What needs no gradient isn't given to the optimiser, so that decay can't move it."""
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad = False
    optimizer = build_optimizer(layer, OptimizerConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
