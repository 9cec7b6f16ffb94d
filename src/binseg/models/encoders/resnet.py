"""ResNets (arXiv 1512.03385), with torchvision's parameter names.

`conv1`, `bn1`, `layer1.0.conv1`, `layer2.0.downsample.0`, ...: published weights load by name.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from binseg.models.blocks import Norm, conv_unit, norm_layer
from binseg.models.skeleton import Encoder


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm = "batch",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels,
            out_channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            bias=bias,
        )
        self.bn1 = norm_layer(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias
        )
        self.bn2 = norm_layer(norm, out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                _shortcut(in_channels, out_channels, stride=stride, bias=bias),
                norm_layer(norm, out_channels),
            )

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Return maps of `out_channels` at 1/stride of the size, rounded up."""
        shortcut = maps_BChw if self.downsample is None else self.downsample(maps_BChw)
        maps = self.relu(self.bn1(self.conv1(maps_BChw)))
        out: Tensor = self.relu(self.bn2(self.conv2(maps)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """A 3x3 convolution on a quarter of the channels, between 1x1 ones, beside a shortcut.

    The 3x3 convolution has the stride, as in torchvision (the paper strides the first one).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm = "batch",
        bias: bool = False,
    ) -> None:
        super().__init__()
        inner = max(1, out_channels // 4)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=bias)
        self.bn1 = norm_layer(norm, inner)
        self.conv2 = nn.Conv2d(
            inner, inner, 3, stride=stride, padding=dilation, dilation=dilation, bias=bias
        )
        self.bn2 = norm_layer(norm, inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=bias)
        self.bn3 = norm_layer(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                _shortcut(in_channels, out_channels, stride=stride, bias=bias),
                norm_layer(norm, out_channels),
            )

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Return maps of `out_channels` at 1/stride of the size, rounded up."""
        shortcut = maps_BChw if self.downsample is None else self.downsample(maps_BChw)
        maps = self.relu(self.bn1(self.conv1(maps_BChw)))
        maps = self.relu(self.bn2(self.conv2(maps)))
        out: Tensor = self.relu(self.bn3(self.conv3(maps)) + shortcut)
        return out


class _PickedConv2d(nn.Conv2d):
    """A 1x1 convolution of a stride: every so many pixels, then the convolution of stride 1."""

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Return the same numbers as the strided convolution."""
        tall, wide = self.stride
        picked = maps_BChw[:, :, ::tall, ::wide]
        return functional.conv2d(picked, self.weight, self.bias)


def _shortcut(in_channels: int, out_channels: int, *, stride: int, bias: bool) -> nn.Conv2d:
    """Return the 1x1 convolution beside a block.

    The gradient of a strided one from 8 channels in bf16 writes past its memory in torch 2.13's
    CPU library (a crash with unet-small at width 8); narrow ones therefore pick their pixels first.
    """
    kind = _PickedConv2d if in_channels < 16 and stride > 1 else nn.Conv2d
    return kind(in_channels, out_channels, 1, stride=stride, bias=bias)


class ResNetEncoder(Encoder):
    """A stem and four stages of residual blocks; five feature maps.

    Args:
        in_channels: channels of the images.
        channels: of the stem and the four stages; `(64, 64, 128, 256, 512)` in ResNet-34.
        num_blocks: in each stage; `(3, 4, 6, 3)` in ResNet-34.
        block: `basic` (ResNet-18 and 34) or `bottleneck` (ResNet-50).
        mirrored: whether a U-Net decoder takes the encoder's own channels.
        stem: `7x7` is one 7x7 convolution of stride 2 and a 3x3 max pooling of stride 2 before the
            stages, as published; `3x3` is two 3x3 convolutions, the first of stride 2, and
            the first stage has the second stride: cheaper and finer, for small networks.
        stem_feature: take the stem's map `before-pool` (half size) or `after-pool` (a quarter).
        norm: what follows each convolution; published weights need `batch`.
        bias: whether convolutions have biases (published ones have none).
        output_stride: 32, or 16 or 8 to dilate the last stages instead of striding (PSPNet).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: tuple[int, int, int, int, int] = (64, 64, 128, 256, 512),
        num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        block: Literal["basic", "bottleneck"] = "basic",
        mirrored: bool = False,
        stem: Literal["7x7", "3x3"] = "7x7",
        stem_feature: Literal["before-pool", "after-pool"] = "before-pool",
        norm: Norm = "batch",
        bias: bool = False,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        assert stem == "7x7" or stem_feature == "before-pool", "the 3x3 stem has no pooling"
        self.channels = channels
        self.mirrored = mirrored
        self.stem_after_pool = stem_feature == "after-pool"
        kernel = 7 if stem == "7x7" else 3
        self.conv1 = nn.Conv2d(
            in_channels, channels[0], kernel, stride=2, padding=kernel // 2, bias=bias
        )
        self.bn1 = norm_layer(norm, channels[0])
        self.relu = nn.ReLU(inplace=True)
        if stem == "7x7":
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
            self.stem2: nn.Module = nn.Identity()
        else:
            self.maxpool = nn.Identity()
            self.stem2 = conv_unit(channels[0], channels[0], norm=norm, bias=bias)
        reached, dilation = (4, 1) if stem == "7x7" else (2, 1)
        strides = [4 if self.stem_after_pool else 2]
        for index, (wanted, count) in enumerate(zip((4, 8, 16, 32), num_blocks, strict=True)):
            stride = wanted // max(reached, wanted // 2)
            if stride == 2 and reached * 2 > output_stride:
                stride, dilation = 1, dilation * 2
            reached *= stride
            strides.append(reached)
            stage = _stage(
                BasicBlock if block == "basic" else Bottleneck,
                channels[index],
                channels[index + 1],
                count=count,
                stride=stride,
                dilation=dilation,
                norm=norm,
                bias=bias,
            )
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        self.strides = tuple(strides)

    def decoder_channels(self, width: int = 0) -> tuple[int, ...]:
        """Return the channels of a U-Net decoder: by size, or the encoder's own if mirrored."""
        return (
            self.channels[:-1] if self.mirrored and not width else super().decoder_channels(width)
        )

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the stem's map and one per stage; as published at 1/2, 1/4, ..., 1/32."""
        stem = self.stem2(self.relu(self.bn1(self.conv1(images_BCHW))))
        maps = self.maxpool(stem)
        features = [maps if self.stem_after_pool else stem]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            maps = self.get_submodule(name)(maps)
            features.append(maps)
        return tuple(features)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    out_channels: int,
    *,
    count: int,
    stride: int,
    dilation: int,
    norm: Norm,
    bias: bool,
) -> Iterator[nn.Module]:
    """Yield the blocks of a stage; the first changes channels and size."""
    for index in range(count):
        yield block(
            in_channels if index == 0 else out_channels,
            out_channels,
            stride=stride if index == 0 else 1,
            dilation=dilation,
            norm=norm,
            bias=bias,
        )
