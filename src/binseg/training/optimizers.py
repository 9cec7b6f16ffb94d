"""The optimisers by name, in torch's fused form: one pass over the weights instead of several."""

from collections.abc import Iterable

import torch
from torch import nn

from binseg.config.recipe import OptimizerConfig

__all__ = ["build_optimizer"]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe for all weights that learn.

    Weight decay falls on every parameter, norms and biases included, as in the source reports and
    as torch does by default; Adam's decay is the L2 kind that the reports used, AdamW's is
    decoupled.
    """
    weights: Iterable[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    lr, decay = config.lr, config.weight_decay
    match config.name:
        case "adam":
            return torch.optim.Adam(weights, lr=lr, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(weights, lr=lr, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                weights, lr=lr, weight_decay=decay, momentum=config.momentum, fused=True
            )
