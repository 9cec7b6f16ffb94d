"""Convolutional encoders: the U-Net's own, ResNets, DenseNets, MobileNetV2, EfficientNet-Lite.

Published weights load by torchvision's names. EfficientNet-Lite is EfficientNet (arXiv 1905.11946)
without squeeze-and-excitation and with ReLU6, stem, first and last stage not scaled (TensorFlow's
`tpu/models/official/efficientnet/lite`).
"""

import math
from collections import OrderedDict
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.models.skeleton import Encoder, Norm, conv_block, conv_unit, norm_layer


class UNetEncoder(Encoder):
    """The contracting half of the U-Net (arXiv 1505.04597), padded so that the size stays."""

    def __init__(
        self,
        in_channels: int,
        *,
        width: int = 64,
        depth: int = 4,
        norm: Norm,
        bias: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.strides = tuple(2**level for level in range(depth + 1))
        self.channels = tuple(width * stride for stride in self.strides)
        self.pool = nn.MaxPool2d(2)
        self.levels = nn.ModuleList(
            conv_block(before, after, norm=norm, bias=bias, dropout=dropout)
            for before, after in pairwise((in_channels, *self.channels))
        )

    def decoder_channels(self, width: int = 0) -> tuple[int, ...]:
        """Return the encoder's own channels, as in the paper, unless a width is given."""
        return super().decoder_channels(width) if width else self.channels[:-1]

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return feature maps at full size, half, a quarter, ... (rounded down)."""
        features: list[Tensor] = []
        for level in self.levels:
            features.append(level(self.pool(features[-1]) if features else images_BCHW))
        return tuple(features)


class ResidualBlock(nn.Module):
    """Convolutions beside a shortcut; a `bottleneck` has its stride at 3x3, as in torchvision."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck: bool,
        stride: int,
        dilation: int,
        norm: Norm,
        bias: bool,
    ) -> None:
        super().__init__()
        inner = max(1, out_channels // 4) if bottleneck else out_channels
        kernels, strided = ((1, 3, 1), 1) if bottleneck else ((3, 3), 0)
        self.num_convs = len(kernels)
        widths = [in_channels, *[inner] * (len(kernels) - 1), out_channels]
        for index, kernel in enumerate(kernels):
            spread = dilation if kernel == 3 else 1
            before, after = widths[index : index + 2]
            step, pad = stride if index == strided else 1, spread * (kernel // 2)
            conv = nn.Conv2d(before, after, kernel, step, pad, dilation=spread, bias=bias)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", norm_layer(norm, after))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            # The gradient of a strided 1x1 convolution from 8 channels in bf16 writes past its
            # memory in torch 2.13's CPU library (a crash with unet-small at width 8); narrow ones
            # therefore pick their pixels first.
            kind = _PickedConv2d if in_channels < 16 and stride > 1 else nn.Conv2d
            self.downsample = nn.Sequential(
                kind(in_channels, out_channels, 1, stride=stride, bias=bias),
                norm_layer(norm, out_channels),
            )

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Return maps of `out_channels` at 1/stride of the size, rounded up."""
        part = self.get_submodule
        maps = maps_BChw
        for number in range(1, self.num_convs + 1):
            maps = part(f"bn{number}")(part(f"conv{number}")(maps))
            if number < self.num_convs:
                maps = self.relu(maps)
        shortcut = maps_BChw if self.downsample is None else self.downsample(maps_BChw)
        out: Tensor = self.relu(maps + shortcut)
        return out


class _PickedConv2d(nn.Conv2d):
    """A 1x1 convolution of a stride: every so many pixels, then the convolution of stride 1."""

    def forward(self, maps_BChw: Tensor) -> Tensor:
        tall, wide = self.stride
        return functional.conv2d(maps_BChw[:, :, ::tall, ::wide], self.weight, self.bias)


class ResNetEncoder(Encoder):
    """A stem and four stages of residual blocks (arXiv 1512.03385); five feature maps.

    Stages have `factors` times the stem's `width` channels and `num_blocks` each; `mirrored` has a
    U-Net decoder take the same channels. The stem `7x7` is one convolution of stride 2 and a max
    pooling, as published; `3x3` is two convolutions, cheaper and finer for small networks, and the
    first stage has the second stride. An `output_stride` of 16 or 8 dilates the last stages.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        width: int = 64,
        factors: tuple[int, ...] = (1, 2, 4, 8),
        num_blocks: tuple[int, ...] = (3, 4, 6, 3),
        bottleneck: bool = False,
        mirrored: bool = False,
        stem: Literal["7x7", "3x3"] = "7x7",
        stem_feature: Literal["before-pool", "after-pool"] = "before-pool",
        encoder_norm: Norm = "batch",
        encoder_bias: bool = False,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        assert stem == "7x7" or stem_feature == "before-pool", "the 3x3 stem has no pooling"
        self.channels = (width, *(width * factor for factor in factors))
        self.mirrored = mirrored
        self.stem_after_pool = stem_feature == "after-pool"
        norm, bias, kernel = encoder_norm, encoder_bias, int(stem[0])
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride=2, padding=kernel // 2, bias=bias)
        self.bn1 = norm_layer(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity()
        self.stem2: nn.Module = nn.Identity()
        if stem == "7x7":
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.stem2 = conv_unit(width, width, norm=norm, bias=bias)
        reached, dilation = (4, 1) if stem == "7x7" else (2, 1)
        strides = [4 if self.stem_after_pool else 2]
        for index, (wanted, count) in enumerate(zip((4, 8, 16, 32), num_blocks, strict=True)):
            stride = wanted // max(reached, wanted // 2)
            if stride == 2 and reached * 2 > output_stride:
                stride, dilation = 1, dilation * 2
            reached *= stride
            strides.append(reached)
            before, after = self.channels[index : index + 2]
            block = partial(
                ResidualBlock, bottleneck=bottleneck, dilation=dilation, norm=norm, bias=bias
            )
            blocks = nn.Sequential(block(before, after, stride=stride))
            for _ in range(count - 1):
                blocks.append(block(after, after, stride=1))
            self.add_module(f"layer{index + 1}", blocks)
        self.strides = tuple(strides)

    def decoder_channels(self, width: int = 0) -> tuple[int, ...]:
        """Return the channels of a U-Net decoder: by size, or the encoder's own if mirrored."""
        own = self.mirrored and not width
        return self.channels[:-1] if own else super().decoder_channels(width)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the stem's map and one per stage; as published at 1/2, 1/4, ..., 1/32."""
        stem = self.stem2(self.relu(self.bn1(self.conv1(images_BCHW))))
        maps = self.maxpool(stem)
        features = [maps if self.stem_after_pool else stem]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            maps = self.get_submodule(name)(maps)
            features.append(maps)
        return tuple(features)


class _DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution: `growth` new channels."""

    def __init__(self, in_channels: int, *, growth: int) -> None:
        super().__init__()
        inner = growth * 4
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, maps_BChw: Tensor) -> Tensor:
        inner = self.conv1(functional.relu(self.norm1(maps_BChw)))
        new = self.conv2(functional.relu(self.norm2(inner)))
        return torch.cat((maps_BChw, new), dim=1)


class DenseNetEncoder(Encoder):
    """DenseNet-121 (arXiv 1608.06993): five feature maps, each behind norm and ReLU."""

    num_layers = (6, 12, 24, 16)

    def __init__(self, in_channels: int, *, width: int = 64) -> None:
        super().__init__()
        growth = max(1, width // 2)
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(width),
        )
        channels, widths = width, [width]
        for index, num in enumerate(self.num_layers, start=1):
            block = parts[f"denseblock{index}"] = nn.Sequential()
            for n in range(num):
                layer = _DenseLayer(channels + n * growth, growth=growth)
                block.add_module(f"denselayer{n + 1}", layer)
            channels += num * growth
            widths.append(channels)
            if index < len(self.num_layers):
                transition = parts[f"transition{index}"] = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(channels))
                conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
                transition.add_module("conv", conv)
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.channels = tuple(widths)
        self.strides = tuple(2 ** (level + 1) for level in range(len(widths)))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the stem's map and one per dense block: at 1/2, 1/4, 1/8, 1/16, 1/32."""
        part = self.features.get_submodule
        features = [functional.relu(part("norm0")(part("conv0")(images_BCHW)))]
        maps = functional.max_pool2d(features[0], 3, stride=2, padding=1)
        last = len(self.num_layers)
        for index in range(1, last):
            maps = part(f"denseblock{index}")(maps)
            # Taken behind the transition's norm, before its convolution halves the channels.
            features.append(functional.relu(part(f"transition{index}.norm")(maps)))
            maps = functional.avg_pool2d(part(f"transition{index}.conv")(features[-1]), 2)
        features.append(functional.relu(part("norm5")(part(f"denseblock{last}")(maps))))
        return tuple(features)


class Stage(NamedTuple):
    """Inverted residual blocks in a row; the first one has the stride."""

    num_blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


MOBILENET_V2 = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(3, 3, 2, 6, 32), Stage(4, 3, 2, 6, 64),
    Stage(3, 3, 1, 6, 96), Stage(3, 3, 2, 6, 160), Stage(1, 3, 1, 6, 320),
)  # fmt: skip
EFFICIENTNET = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip
"""EfficientNet-B0's stages, and so EfficientNet-Lite0's."""


def scaled_stages(stages: tuple[Stage, ...], *, width: float, depth: float) -> tuple[Stage, ...]:
    """Scale EfficientNet-Lite's channels (to multiples of 8), and inner stages' depths.

    >>> [stage.channels for stage in scaled_stages(EFFICIENTNET, width=1.1, depth=1.2)]
    [16, 24, 48, 88, 120, 208, 352]
    """
    first, *between, last = (s._replace(channels=_by_8(s.channels * width)) for s in stages)
    deeper = [stage._replace(num_blocks=math.ceil(stage.num_blocks * depth)) for stage in between]
    return (first, *deeper, last)


def _by_8(channels: float) -> int:
    """Round to a multiple of 8, but never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the odd pixel goes to the right and below."""

    def forward(self, maps_BChw: Tensor) -> Tensor:
        pads: list[int] = []
        for side in (-1, -2):
            stride, kernel = self.stride[side], self.kernel_size[side]
            missing = kernel - stride + -maps_BChw.shape[side] % stride
            pads += [missing // 2, missing - missing // 2]
        padded = functional.pad(maps_BChw, pads)
        return functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class _ConvNorm(nn.Sequential):
    """Convolution, batch norm and, where it is asked for, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
        same: bool,
    ) -> None:
        # At stride 1 both paddings are the same.
        kind, pad = (_SameConv2d, 0) if same and stride > 1 else (nn.Conv2d, kernel // 2)
        conv = kind(in_channels, out_channels, kernel, stride, pad, groups=groups, bias=False)
        # TensorFlow's EfficientNets have another epsilon and, in torch's words, momentum.
        eps, momentum = (1e-3, 0.01) if same else (1e-5, 0.1)
        norm = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=norm)
        if relu:
            parts["relu"] = nn.ReLU6(inplace=True)
        super().__init__(parts)
        self.is_depthwise = groups > 1

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Run the layers; a depthwise convolution in float32 where a processor trains in bf16.

        torch 2.13's gradients of those in bf16 take up to 15 times as long there.
        """
        is_mixed = self.training and maps_BChw.is_cpu and torch.is_autocast_enabled("cpu")
        maps = maps_BChw
        for part in self:
            if self.is_depthwise and is_mixed and isinstance(part, nn.Conv2d):
                with torch.autocast("cpu", enabled=False):
                    maps = part(maps.float()).to(maps.dtype)
            else:
                maps = part(maps)
        return maps


class InvertedResidual(nn.Module):
    """Expand the channels, convolve each alone, project them back; add the input where it fits."""

    def __init__(
        self, in_channels: int, out_channels: int, stage: Stage, *, stride: int, same: bool
    ) -> None:
        super().__init__()
        inner, kernel = in_channels * stage.expand, stage.kernel
        self.adds = stride == 1 and in_channels == out_channels
        widens = stage.expand > 1
        self.expand = _ConvNorm(in_channels, inner, same=same) if widens else nn.Identity()
        self.depthwise = _ConvNorm(
            inner, inner, kernel=kernel, stride=stride, groups=inner, same=same
        )
        self.project = _ConvNorm(inner, out_channels, relu=False, same=same)

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Return maps of `out_channels` at 1/stride of the size, rounded up."""
        out: Tensor = self.project(self.depthwise(self.expand(maps_BChw)))
        return maps_BChw + out if self.adds else out


class MobileEncoder(Encoder):
    """A stem and stages of inverted residuals; `tensorflow` takes its padding, eps, momentum."""

    def __init__(
        self, in_channels: int, *, width: int, stages: tuple[Stage, ...], tensorflow: bool
    ) -> None:
        super().__init__()
        self.width = width
        self.stem = _ConvNorm(in_channels, width, kernel=3, stride=2, same=tensorflow)
        self.blocks = nn.ModuleList()
        before, reach = width, 2
        taken: dict[int, tuple[int, int]] = {}
        for stage in stages:
            channels = max(1, round(stage.channels * width / 32))
            reach *= stage.stride
            for index in range(stage.num_blocks):
                stride = 1 if index else stage.stride
                self.blocks.append(
                    InvertedResidual(before, channels, stage, stride=stride, same=tensorflow)
                )
                before = channels
            taken[reach] = (channels, len(self.blocks) - 1)  # the last map of a size counts
        self.strides = tuple(taken)
        self.channels = tuple(channels for channels, _ in taken.values())
        self.taken = [index for _, index in taken.values()]

    def decoder_channels(self, width: int = 0) -> tuple[int, ...]:
        """Return channels for a decoder of a third of the encoder's size: 40, 40, 80, 160."""
        return super().decoder_channels(width or max(1, self.width * 5 // 4))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return one map per size, finest first."""
        maps = self.stem(images_BCHW)
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            maps = block(maps)
            if index in self.taken:
                features.append(maps)
        return tuple(features)
