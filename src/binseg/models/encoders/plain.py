"""The contracting half of the U-Net (arXiv 1505.04597), with padding so that the size stays."""

from itertools import pairwise

from torch import Tensor, nn

from binseg.models.blocks import Norm, conv_block
from binseg.models.skeleton import Encoder


class UNetEncoder(Encoder):
    """Blocks of two convolutions, each but the first behind a 2x2 max pooling.

    Args:
        in_channels: channels of the images.
        channels: channels of each level; `(64, 128, 256, 512, 1024)` in the paper.
        norm: what follows each convolution.
        bias: whether convolutions have biases.
        dropout: share of values dropped between the two convolutions of a block.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: tuple[int, ...],
        norm: Norm,
        bias: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.strides = tuple(2**level for level in range(len(channels)))
        self.pool = nn.MaxPool2d(2)
        self.levels = nn.ModuleList(
            conv_block(before, after, norm=norm, bias=bias, dropout=dropout)
            for before, after in pairwise((in_channels, *channels))
        )

    def decoder_channels(self, width: int = 0) -> tuple[int, ...]:
        """Return the encoder's own channels, as in the paper, unless a width is given."""
        return super().decoder_channels(width) if width else self.channels[:-1]

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return feature maps at full size, half, a quarter, ... (rounded down)."""
        features: list[Tensor] = []
        maps = images_BCHW
        for index, level in enumerate(self.levels):
            maps = level(maps if index == 0 else self.pool(maps))
            features.append(maps)
        return tuple(features)
