"""SegFormer's decoder (arXiv 2105.15203): one linear layer per scale, one to fuse them."""

import torch
from torch import Tensor, nn

from binseg.models.blocks import conv_unit
from binseg.models.skeleton import Decoder, resize

__all__ = ["MLPDecoder"]


class MLPDecoder(Decoder):
    """Bring all maps to one number of channels and the finest size, and mix them pixel by pixel.

    Args:
        encoder_channels: channels of the feature maps, finest first.
        width: channels of each brought map and of the result.
    """

    def __init__(self, encoder_channels: tuple[int, ...], *, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in encoder_channels)
        self.fuse = conv_unit(
            width * len(encoder_channels), width, kernel=1, norm="batch", bias=False
        )

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """One map at the size of the finest feature map (a quarter)."""
        del size
        finest = (features[0].shape[-2], features[0].shape[-1])
        brought = [
            resize(project(feature), finest)
            for project, feature in zip(self.project, features, strict=True)
        ]
        out: Tensor = self.fuse(torch.cat(brought, dim=1))
        return out
