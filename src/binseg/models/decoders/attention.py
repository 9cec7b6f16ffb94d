"""Attention gates on skips (Attention U-Net, arXiv 1804.03999)."""

import torch
from torch import Tensor, nn

from binseg.models.blocks import Norm, norm_layer

__all__ = ["AttentionGate"]


class AttentionGate(nn.Module):
    """Weighs each pixel of a skip by how well it agrees with the map that comes from below.

    The paper gates with the coarser map before it is upsampled; here it is the upsampled map, so
    that the weights need no resizing of their own.

    Args:
        skip_channels: channels of the skip.
        gating_channels: channels of the upsampled map.
        norm: what follows each 1x1 convolution.
    """

    def __init__(self, skip_channels: int, gating_channels: int, *, norm: Norm) -> None:
        super().__init__()
        inner = max(1, skip_channels // 2)
        # One norm behind the sum's first term and one behind the second, as the paper draws it.
        self.skip = nn.Sequential(nn.Conv2d(skip_channels, inner, 1), norm_layer(norm, inner))
        self.gating = nn.Sequential(nn.Conv2d(gating_channels, inner, 1), norm_layer(norm, inner))
        self.weigh = nn.Conv2d(inner, 1, 1)

    def forward(self, skip_BChw: Tensor, gating_BChw: Tensor) -> Tensor:
        """The skip, each pixel multiplied with a weight between 0 and 1."""
        agreement = torch.relu(self.skip(skip_BChw) + self.gating(gating_BChw))
        return skip_BChw * torch.sigmoid(self.weigh(agreement))
