"""Decoders with skips: U-Net, Attention U-Net and U-Net++, their versions' details as settings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from binseg.models.blocks import Join, Norm, Up, conv_block, join_maps, norm_layer, up_layer
from binseg.models.skeleton import Decoder, Encoder


@dataclass(frozen=True, kw_only=True)
class UNetStyle:
    """The settings that all blocks of one decoder share."""

    up: Up = "transpose"
    """Method that doubles the size of maps."""
    join: Join = "pad"
    """Method that brings the upsampled map and the skip to one size where they differ."""
    skip_first: bool = True
    """Order of the concatenation."""
    norm: Norm = "batch"
    """Normalisation after each convolution."""
    bias: bool = False
    """True if 3x3 convolutions have biases."""
    dropout: float = 0.0
    """Share of values dropped between the convolutions of a block."""
    attention: bool = False
    """True if skips pass an attention gate."""


class AttentionGate(nn.Module):
    """Weighs each pixel of a skip by how well it agrees with the map that comes from below.

    The paper (arXiv 1804.03999) gates with the coarser map before it is upsampled; here it is the
    upsampled map, so that the weights need no resizing of their own.

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
        """Return the skip, each pixel multiplied with a weight between 0 and 1."""
        agreement = torch.relu(self.skip(skip_BChw) + self.gating(gating_BChw))
        return skip_BChw * torch.sigmoid(self.weigh(agreement))


class UNetBlock(nn.Module):
    """Upsample, join with the skip if there is one, and convolve.

    Args:
        in_channels: channels of the map from below; upsampling brings them to `out_channels`.
        skip_channels: channels of the skip, 0 for none.
        out_channels: channels of the result.
        num_convs: number of 3x3 convolutions.
        doubles: whether the map from below is enlarged; a dilated encoder's already has the size.
        style: all other settings.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        num_convs: int = 2,
        doubles: bool = True,
        style: UNetStyle,
    ) -> None:
        super().__init__()
        self.style = style
        self.up = (
            up_layer(style.up, in_channels, out_channels)
            if doubles
            else nn.Conv2d(in_channels, out_channels, 1)
        )
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
        """Return the map of the next finer level; `size` is the aim where there is no skip."""
        up, skip = join_maps(self.up(maps_BChw), skip_BChw, rule=self.style.join, size=size)
        if skip is not None:
            if self.gate is not None:
                skip = self.gate(skip, up)
            up = torch.cat((skip, up) if self.style.skip_first else (up, skip), dim=1)
        out: Tensor = self.convs(up)
        return out


class UNetDecoder(Decoder):
    """One block per skip, from the coarsest map upwards, and perhaps more to full size.

    Args:
        encoder: whose feature maps it takes.
        width: channels at the finest level; 0 takes the encoder's `decoder_channels`.
        num_convs: 3x3 convolutions of each block that takes a skip.
        num_final_convs: 3x3 convolutions of each block without a skip that follows, until maps
            have the input's size; 0 for no such blocks.
        style: all other settings.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: int = 0,
        num_convs: int = 2,
        num_final_convs: int = 0,
        style: UNetStyle,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.reaches: list[int] = []
        below, reach = encoder.channels[-1], encoder.strides[-1]
        channels = encoder.decoder_channels(width)
        for index in reversed(range(len(channels))):
            # Where the skip is resized, the maps double in any case (report A).
            finer = encoder.strides[index] if style.join != "resize-skip" else max(1, reach // 2)
            block = UNetBlock(
                below,
                encoder.channels[index],
                channels[index],
                num_convs=num_convs,
                doubles=finer < reach,
                style=style,
            )
            self.blocks.append(block)
            below, reach = channels[index], finer
            self.reaches.append(reach)
        outs = list(channels[::-1])
        while num_final_convs and reach > 1:
            after, reach = max(1, below // 2), reach // 2
            self.blocks.append(UNetBlock(below, 0, after, num_convs=num_final_convs, style=style))
            outs.append(after)
            self.reaches.append(reach)
            below = after
        self.out_channels = outs[-1]
        self.side_channels = tuple(outs[-2::-1])

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return the finest map; at the encoder input's `size` where the blocks reach it."""
        maps = features[-1]
        for block, skip, aim in self._steps(features, size):
            maps = block(maps, skip, aim)
        return maps

    def levels(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> list[Tensor]:
        """Return the maps behind all blocks, finest first; `forward` lets go of the coarser."""
        maps = [features[-1]]
        for block, skip, aim in self._steps(features, size):
            maps.append(block(maps[-1], skip, aim))
        return maps[:0:-1]

    def _steps(
        self, features: tuple[Tensor, ...], size: tuple[int, int]
    ) -> list[tuple[nn.Module, Tensor | None, tuple[int, int]]]:
        """Pair each block with its skip and, for blocks without one, the size to aim at."""
        skips: list[Tensor | None] = [*features[-2::-1]]
        skips += [None] * (len(self.blocks) - len(skips))
        return [
            (block, skip, size if reach == 1 else (-(-size[0] // reach), -(-size[1] // reach)))
            for block, skip, reach in zip(self.blocks, skips, self.reaches, strict=True)
        ]


class UNetPlusPlusDecoder(Decoder):
    """The nested decoder of U-Net++ (arXiv 1807.10165): a triangle of blocks.

    Node (level, step) joins all earlier nodes of its level with the upsampled node
    (level + 1, step - 1).

    Args:
        encoder: whose feature maps it takes.
        width: channels at the finest level; 0 takes the encoder's `decoder_channels`.
        style: settings of the blocks.
    """

    def __init__(self, encoder: Encoder, *, width: int = 0, style: UNetStyle) -> None:
        super().__init__()
        channels = encoder.decoder_channels(width)
        self.depth = len(channels)
        self.nodes = nn.ModuleDict()
        for step in range(1, self.depth + 1):
            for level in range(self.depth + 1 - step):
                below = encoder.channels[level + 1] if step == 1 else channels[level + 1]
                self.nodes[f"{level}_{step}"] = UNetBlock(
                    below,
                    encoder.channels[level] + (step - 1) * channels[level],
                    channels[level],
                    doubles=encoder.strides[level] < encoder.strides[level + 1],
                    style=style,
                )
        self.out_channels = channels[0]
        self.side_channels = (channels[0],) * (self.depth - 1)

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return the last node of the finest level."""
        return self.levels(features, size)[0]

    def levels(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> list[Tensor]:
        """Return the nodes of the finest level, the last first, as the paper supervises them."""
        levels: list[list[Tensor]] = [[feature] for feature in features]
        for step in range(1, self.depth + 1):
            for level in range(self.depth + 1 - step):
                earlier = torch.cat(levels[level], dim=1)
                below = levels[level + 1][step - 1]
                levels[level].append(self.nodes[f"{level}_{step}"](below, earlier, size))
        return levels[0][:0:-1]
