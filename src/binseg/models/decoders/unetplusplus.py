"""The nested decoder of U-Net++ (arXiv 1807.10165): every level is refined again and again."""

import torch
from torch import Tensor, nn

from binseg.models.decoders.unet import UNetBlock, UNetStyle
from binseg.models.skeleton import Decoder

__all__ = ["UNetPlusPlusDecoder"]


class UNetPlusPlusDecoder(Decoder):
    """A triangle of blocks.

    Node (level, step) joins all earlier nodes of its level with the upsampled node
    (level + 1, step - 1).

    Args:
        encoder_channels: channels of the feature maps, finest first; nodes keep their level's.
        style: settings of the blocks.
    """

    def __init__(self, encoder_channels: tuple[int, ...], *, style: UNetStyle) -> None:
        super().__init__()
        self.depth = len(encoder_channels) - 1
        self.nodes = nn.ModuleDict(
            {
                f"{level}_{step}": UNetBlock(
                    encoder_channels[level + 1],
                    step * encoder_channels[level],
                    encoder_channels[level],
                    style=style,
                )
                for step in range(1, self.depth + 1)
                for level in range(self.depth + 1 - step)
            }
        )
        self.out_channels = encoder_channels[0]
        self.side_channels = (encoder_channels[0],) * (self.depth - 1)

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """The last node of the finest level."""
        return self.levels(features, size)[0]

    def levels(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> list[Tensor]:
        """The nodes of the finest level, the last first, as the paper teaches them."""
        levels: list[list[Tensor]] = [[feature] for feature in features]
        for step in range(1, self.depth + 1):
            for level in range(self.depth + 1 - step):
                earlier = torch.cat(levels[level], dim=1)
                below = levels[level + 1][step - 1]
                levels[level].append(self.nodes[f"{level}_{step}"](below, earlier, size))
        return levels[0][:0:-1]
