"""First weights: He initialisation, which keeps the scale of maps through ReLU layers."""

import math

from torch import nn

__all__ = ["he_initialise", "initialise_head"]


def he_initialise(module: nn.Module) -> None:
    """Draw all convolutions anew for networks of ReLUs (arXiv 1502.01852), biases zero.

    Norm layers keep torch's start (scale 1, shift 0).
    """
    for part in module.modules():
        if isinstance(part, nn.ConvTranspose2d):
            # With a kernel as large as the stride, each output pixel sees one tap per input
            # channel; no ReLU follows, so the gain is 1.
            nn.init.normal_(part.weight, std=math.sqrt(1 / part.in_channels))
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def initialise_head(head: nn.Conv2d) -> None:
    """Start logits around 0 with a modest spread: training begins undecided."""
    nn.init.normal_(head.weight, std=math.sqrt(1 / head.in_channels))
    if head.bias is not None:
        nn.init.zeros_(head.bias)
