"""The expanding half of the U-Net, with the details in which its versions differ as settings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from binseg.models.blocks import Join, Norm, Up, conv_block, join_maps, up_layer
from binseg.models.decoders.attention import AttentionGate
from binseg.models.skeleton import Decoder

__all__ = ["UNetBlock", "UNetDecoder", "UNetStyle"]


@dataclass(frozen=True, kw_only=True)
class UNetStyle:
    """What the blocks of one U-Net decoder have in common."""

    up: Up = "transpose"
    """How maps are doubled in size."""
    join: Join = "pad"
    """How the upsampled map and the skip come to one size where they differ."""
    skip_first: bool = True
    """Order of the concatenation."""
    norm: Norm = "batch"
    """What follows each convolution."""
    bias: bool = False
    """Whether 3x3 convolutions have biases."""
    dropout: float = 0.0
    """Share of values dropped between the convolutions of a block."""
    attention: bool = False
    """Whether skips pass an attention gate."""


class UNetBlock(nn.Module):
    """Upsample, join with the skip if there is one, and convolve.

    Args:
        in_channels: channels of the map from below; upsampling brings them to `out_channels`.
        skip_channels: channels of the skip, 0 for none.
        out_channels: channels of the result.
        num_convs: number of 3x3 convolutions.
        style: all other settings.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        num_convs: int = 2,
        style: UNetStyle,
    ) -> None:
        super().__init__()
        self.style = style
        self.up = up_layer(style.up, in_channels, out_channels)
        self.gate: nn.Module | None = None
        if style.attention and skip_channels:
            self.gate = AttentionGate(skip_channels, out_channels, norm=style.norm)
        self.convs = conv_block(
            out_channels + skip_channels,
            out_channels,
            num_convs=num_convs,
            norm=style.norm,
            bias=style.bias,
            dropout=style.dropout,
        )

    def forward(self, maps_BChw: Tensor, skip_BChw: Tensor | None, size: tuple[int, int]) -> Tensor:
        """The map of the next finer level; `size` is the aim where there is no skip."""
        up, skip = join_maps(self.up(maps_BChw), skip_BChw, rule=self.style.join, size=size)
        if skip is not None:
            if self.gate is not None:
                skip = self.gate(skip, up)
            up = torch.cat((skip, up) if self.style.skip_first else (up, skip), dim=1)
        out: Tensor = self.convs(up)
        return out


class UNetDecoder(Decoder):
    """One block per skip, from the coarsest map upwards, and perhaps one more to full size.

    Args:
        encoder_channels: channels of the feature maps, finest first.
        channels: channels behind each block that takes a skip, coarsest first.
        final_channels: channels of a last block without a skip; 0 for no such block.
        num_convs: 3x3 convolutions of each block that takes a skip.
        num_final_convs: 3x3 convolutions of the last block without a skip.
        style: all other settings.
    """

    def __init__(
        self,
        encoder_channels: tuple[int, ...],
        *,
        channels: tuple[int, ...],
        final_channels: int = 0,
        num_convs: int = 2,
        num_final_convs: int = 2,
        style: UNetStyle,
    ) -> None:
        super().__init__()
        skips = encoder_channels[-2::-1]
        assert len(skips) == len(channels), "one block per skip"
        before = (encoder_channels[-1], *channels)
        self.blocks = nn.ModuleList(
            UNetBlock(below, skip, after, num_convs=num_convs, style=style)
            for below, skip, after in zip(before, skips, channels, strict=False)
        )
        if final_channels:
            self.blocks.append(
                UNetBlock(before[-1], 0, final_channels, num_convs=num_final_convs, style=style)
            )
        self.out_channels = final_channels or channels[-1]
        self.side_channels = channels[::-1] if final_channels else channels[-2::-1]

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """The finest map; at the encoder input's `size` where the blocks reach it."""
        maps = features[-1]
        for block, skip in zip(self.blocks, self._skips(features), strict=False):
            maps = block(maps, skip, size)
        return maps

    def levels(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> list[Tensor]:
        """The maps behind all blocks, the finest first; `forward` lets go of the coarser ones."""
        maps = [features[-1]]
        for block, skip in zip(self.blocks, self._skips(features), strict=False):
            maps.append(block(maps[-1], skip, size))
        return maps[:0:-1]

    def _skips(self, features: tuple[Tensor, ...]) -> list[Tensor | None]:
        return [*features[-2::-1], None]
