"""Inverted residuals for small machines: MobileNetV2 (arXiv 1801.04381) and EfficientNet-Lite.

EfficientNet-Lite is EfficientNet (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6,
stem, first and last stage not scaled (TensorFlow's `tpu/models/official/efficientnet/lite`).
"""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.models.skeleton import Encoder


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
        """Return maps at 1/stride of the size, rounded up."""
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
    """A stem and stages of inverted residuals; feature maps at 1/2, 1/4, 1/8, 1/16, 1/32.

    The classifier's 1x1 convolution is left out; `tensorflow` takes its padding, epsilon and
    momentum.
    """

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
