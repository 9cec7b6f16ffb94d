"""Decoders by name: an encoder's feature maps to one map for the head.

U-Net, Attention U-Net and U-Net++ refine level by level, with skips; feature pyramid, pyramid
pooling and MLP gather surroundings at coarse sizes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.config.named_models import Option
from binseg.models.skeleton import (
    Decoder,
    Encoder,
    Join,
    Norm,
    Up,
    conv_block,
    conv_unit,
    join_maps,
    norm_layer,
    resize,
    size_of,
    up_layer,
)


@dataclass(frozen=True, kw_only=True)
class UNetStyle:
    """The options (of these names) that all blocks of a decoder share; `attention` gates skips."""

    up: Up = "transpose"
    join: Join = "pad"
    skip_first: bool = True
    norm: Norm = "batch"
    bias: bool = False
    dropout: float = 0.0
    attention: bool = False


class AttentionGate(nn.Module):
    """Weighs each pixel of a skip by its agreement with the map from below (arXiv 1804.03999)."""

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
    """Upsample (if it `doubles`), join with the skip if there is one, and convolve."""

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
        self.style, both = style, (in_channels, out_channels)
        self.up = up_layer(style.up, *both) if doubles else nn.Conv2d(*both, 1)
        self.gate: nn.Module | None = None
        if style.attention and skip_channels:
            self.gate = AttentionGate(skip_channels, out_channels, norm=style.norm)
        block = partial(conv_block, norm=style.norm, bias=style.bias, dropout=style.dropout)
        self.convs = block(out_channels + skip_channels, out_channels, num_convs=num_convs)

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
    """One block per skip, from the coarsest map upwards, and perhaps more to full size."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        decoder_width: int = 0,
        decoder_convs: int = 2,
        final_convs: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        style = UNetStyle(**options)
        self.blocks = nn.ModuleList()
        self.reaches: list[int] = []
        below, reach = encoder.channels[-1], encoder.strides[-1]
        widths = encoder.decoder_channels(decoder_width)
        skips = list(zip(encoder.channels, widths, encoder.strides, strict=False))
        while skips or (final_convs and reach > 1):
            skip, out, finer = skips.pop() if skips else (0, max(1, below // 2), reach // 2)
            if style.join == "resize-skip":  # the maps double in any case (report A)
                finer = max(1, reach // 2)
            num_convs = decoder_convs if skip else final_convs
            doubles = finer < reach
            block = UNetBlock(below, skip, out, num_convs=num_convs, doubles=doubles, style=style)
            self.blocks.append(block)
            below, reach = out, finer
            self.reaches.append(reach)
        self.out_channels = below

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return the finest map; at the encoder input's `size` where the blocks reach it."""
        maps, skips = features[-1], [*features[-2::-1]]
        for index, (block, reach) in enumerate(zip(self.blocks, self.reaches, strict=True)):
            aim = size if reach == 1 else (-(-size[0] // reach), -(-size[1] // reach))
            maps = block(maps, skips[index] if index < len(skips) else None, aim)
        return maps


class UNetPlusPlusDecoder(Decoder):
    """The nested decoder of U-Net++ (arXiv 1807.10165): node (level, step) joins all before."""

    def __init__(self, encoder: Encoder, *, decoder_width: int = 0, **style: Any) -> None:
        super().__init__()
        channels = encoder.decoder_channels(decoder_width)
        depth = len(channels)
        steps = range(1, depth + 1)
        self.places = [(level, step) for step in steps for level in range(depth + 1 - step)]
        self.nodes = nn.ModuleDict()
        for level, step in self.places:
            self.nodes[f"{level}_{step}"] = UNetBlock(
                encoder.channels[level + 1] if step == 1 else channels[level + 1],
                encoder.channels[level] + (step - 1) * channels[level],
                channels[level],
                doubles=encoder.strides[level] < encoder.strides[level + 1],
                style=UNetStyle(**style),
            )
        self.out_channels = channels[0]

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return the last node of the finest level."""
        levels: list[list[Tensor]] = [[feature] for feature in features]
        for level, step in self.places:
            earlier, below = torch.cat(levels[level], dim=1), levels[level + 1][step - 1]
            levels[level].append(self.nodes[f"{level}_{step}"](below, earlier, size))
        return levels[0][-1]


def _first_quarter(encoder: Encoder) -> int:
    last = len(encoder.strides) - 1
    return next((index for index, stride in enumerate(encoder.strides) if stride >= 4), last)


class FPNDecoder(Decoder):
    """Feature pyramid (arXiv 1612.03144) with the branches of Panoptic FPN (arXiv 1901.02446)."""

    def __init__(self, encoder: Encoder, *, decoder_width: int, norm: Norm, bias: bool) -> None:
        super().__init__()
        width = decoder_width or WIDTH
        self.first = _first_quarter(encoder)
        self.out_channels = out = max(1, width // 2)
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels in encoder.channels[self.first :]
        )
        # A map that is n levels below the finest is convolved and doubled n times; the finest is
        # convolved once.
        self.branches = nn.ModuleList(
            nn.ModuleList(
                conv_unit(out if index else width, out, norm=norm, bias=bias)
                for index in range(max(1, level))
            )
            for level in range(len(self.laterals))
        )

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return one map at the size of the finest map that is taken (a quarter)."""
        taken = zip(self.laterals, features[self.first :], strict=True)
        pyramid = [lateral(feature) for lateral, feature in taken]
        for level in range(len(pyramid) - 2, -1, -1):
            pyramid[level] = pyramid[level] + resize(pyramid[level + 1], size_of(pyramid[level]))
        climbed = []
        for level, (branch, maps) in enumerate(zip(self.branches, pyramid, strict=True)):
            assert isinstance(branch, nn.ModuleList)
            climbed.append(maps)
            for index, unit in enumerate(branch):
                finer = pyramid[max(0, level - index - 1)]
                climbed[level] = resize(unit(climbed[level]), size_of(finer))
        total: Tensor = reduce(torch.add, climbed)
        return total


WIDTH = 256  # channels of a pyramid, of pooled context and of an MLP, unless told otherwise
CELLS = (1, 2, 3, 6)  # cells a side over which pyramid pooling averages


class PyramidPoolingDecoder(Decoder):
    """Pyramid pooling (PSPNet, arXiv 1612.01105): averages over `CELLS` beside every pixel."""

    def __init__(self, encoder: Encoder, *, decoder_width: int, norm: Norm, bias: bool) -> None:
        super().__init__()
        self.out_channels = width = decoder_width or WIDTH
        channels = encoder.channels[-1]
        inner = max(1, channels // len(CELLS))
        # Over a single cell and a batch of one, batch norm would have one value to average: it
        # stops with an error in training. That branch goes without.
        single: Norm = "none" if norm == "batch" else norm
        self.branches = nn.ModuleList(
            conv_unit(channels, inner, kernel=1, norm=single if num == 1 else norm,
                      bias=bias or num == 1)
            for num in CELLS
        )  # fmt: skip
        self.fuse = conv_unit(channels + inner * len(CELLS), width, norm=norm, bias=bias)

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return one map at the size of the encoder's last feature map."""
        maps = features[-1]
        context = [
            resize(branch(_cells(maps, num)), size_of(maps))
            for num, branch in zip(CELLS, self.branches, strict=True)
        ]
        out: Tensor = self.fuse(torch.cat([maps, *context], dim=1))
        return out


def _cells(maps_BChw: Tensor, num: int) -> Tensor:
    """Average over num x num cells; for ONNX, without adaptive pooling, by matrix products."""
    if not torch.onnx.is_in_onnx_export():
        return functional.adaptive_avg_pool2d(maps_BChw, num)
    down, across = (_averaging(length, num) for length in maps_BChw.shape[-2:])
    return torch.matmul(down, torch.matmul(maps_BChw, across.transpose(0, 1)))


def _averaging(length: int, num: int) -> Tensor:
    """Return the matrix (num, length) of adaptive pooling: cells may share a pixel at the seam."""
    cells, pixels = torch.arange(num)[:, None], torch.arange(length)[None]
    starts, ends = cells * length // num, ((cells + 1) * length + num - 1) // num
    inside = ((pixels >= starts) & (pixels < ends)).float()
    return inside / inside.sum(dim=1, keepdim=True)


class MLPDecoder(Decoder):
    """SegFormer's decoder (arXiv 2105.15203): one linear layer per scale, one to fuse them."""

    def __init__(self, encoder: Encoder, *, decoder_width: int) -> None:
        super().__init__()
        self.first = _first_quarter(encoder)
        self.out_channels = width = decoder_width or WIDTH
        taken = encoder.channels[self.first :]
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in taken)
        self.fuse = conv_unit(width * len(taken), width, kernel=1, norm="batch", bias=False)

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return one map at the size of the finest map that is taken (a quarter)."""
        taken = features[self.first :]
        pairs = zip(self.project, taken, strict=True)
        projected = [resize(project(feature), size_of(taken[0])) for project, feature in pairs]
        out: Tensor = self.fuse(torch.cat(projected, dim=1))
        return out


class DecoderEntry(NamedTuple):
    """One row of `DECODERS`."""

    summary: str
    source: str  # the report or paper that describes it
    build: Callable[..., Decoder]
    """Takes the encoder and all options by keyword, but a dropout that is the head's."""
    defaults: Mapping[str, Option]
    """All options that it has; they win over those of an encoder by the same name."""


_UNET: Mapping[str, Option] = {
    "decoder_width": 0, "decoder_convs": 2, "final_convs": 1, "up": "transpose", "join": "pad",
    "skip_first": False, "norm": "batch", "bias": False, "dropout": 0.0,
}  # fmt: skip

DECODERS: dict[str, DecoderEntry] = {
    "unet": DecoderEntry(
        "U-Net: upsample, join with the skip, convolve, level by level",
        "reports A to D; arXiv 1505.04597", UNetDecoder, _UNET,
    ),
    "unetplusplus": DecoderEntry(
        "U-Net++: nested, every level refined again and again",
        "proposed by report A; arXiv 1807.10165", UNetPlusPlusDecoder,
        {name: _UNET[name] for name in ("decoder_width", "up", "norm", "bias", "dropout")},
    ),
    "attention_unet": DecoderEntry(
        "U-Net with attention gates on its skips",
        "proposed by report A; arXiv 1804.03999", partial(UNetDecoder, attention=True), _UNET,
    ),
    "fpn": DecoderEntry(
        "feature pyramid, logits at a quarter of the size",
        "proposed by report A; arXiv 1612.03144, 1901.02446", FPNDecoder,
        {"decoder_width": 256, "norm": "group", "bias": False, "dropout": 0.0},
    ),
    "psp": DecoderEntry(
        "pyramid pooling on the coarsest map; give ResNets output_stride 8",
        "proposed by report A; arXiv 1612.01105", PyramidPoolingDecoder,
        {"decoder_width": 256, "norm": "batch", "bias": False, "dropout": 0.1},
    ),
    "mlp": DecoderEntry(
        "SegFormer's: one linear layer per scale, logits at a quarter of the size",
        "proposed by report A; arXiv 2105.15203", MLPDecoder,
        {"decoder_width": 256, "dropout": 0.1},
    ),
}  # fmt: skip
"""Every decoder by the name it has in recipes; a new one is a row here."""
