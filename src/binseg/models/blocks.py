"""The small parts that encoders and decoders share: convolutions, norms, upsampling, joining."""

import math
from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from binseg.models.skeleton import resize, size_of

Norm = Literal["batch", "group", "none"]
Up = Literal["transpose", "bilinear", "nearest"]
Join = Literal["pad", "resize-skip", "resize-up"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """The normalisation that goes behind a convolution; `none` leaves maps as they are."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        # 32 groups as in the paper (arXiv 1803.08494), or fewer, so that each has some channels:
        # over one channel of a small map there is nothing to average.
        groups = math.gcd(32, channels)
        while groups > 1 and channels // groups < 4:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    assert norm == "none"
    return nn.Identity()


def conv_unit(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    norm: Norm,
    bias: bool,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Convolution (with a bias if it has no norm), norm, ReLU, perhaps dropout; one size."""
    bias = bias or norm == "none"
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm != "none":
        parts["norm"] = norm_layer(norm, out_channels)
    parts["relu"] = nn.ReLU(inplace=True)
    if dropout > 0:
        parts["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(parts)


def conv_block(
    in_channels: int,
    out_channels: int,
    *,
    num_convs: int = 2,
    norm: Norm,
    bias: bool,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A U-Net's block: 3x3 convolutions in a row, dropout between them."""
    shares = [dropout] * (num_convs - 1) + [0.0]
    befores = [in_channels] + [out_channels] * (num_convs - 1)
    return nn.Sequential(
        *(
            conv_unit(before, out_channels, norm=norm, bias=bias, dropout=share)
            for before, share in zip(befores, shares, strict=True)
        )
    )


def up_layer(up: Up, in_channels: int, out_channels: int) -> nn.Module:
    """Double height and width: a transposed 2x2 convolution, or 1x1 convolution and interpolation.

    The 1x1 convolution comes first: the same function on a quarter of the pixels.
    """
    if up == "transpose":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    conv = nn.Conv2d(in_channels, out_channels, 1)
    align = None if up == "nearest" else False
    double = nn.Upsample(scale_factor=2, mode=up, align_corners=align)
    return nn.Sequential(OrderedDict[str, nn.Module](conv=conv, up=double))


def fit_by_padding(maps_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-pad all around (or crop all around) to `size`, the odd pixel to the right and below."""
    height, width = size_of(maps_BChw)
    if (height, width) == size:
        return maps_BChw
    top, left = max(0, height - size[0]) // 2, max(0, width - size[1]) // 2
    cropped = maps_BChw[..., top : top + size[0], left : left + size[1]]
    down, across = max(0, size[0] - height), max(0, size[1] - width)
    padding = (across // 2, across - across // 2, down // 2, down - down // 2)
    return functional.pad(cropped, padding) if any(padding) else cropped


def join_maps(
    up_BChw: Tensor, skip_BChw: Tensor | None, *, rule: Join, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """Bring an upsampled map and its skip (or, without one, the map alone) to one size.

    `pad` fits the upsampled map to the skip with zeros, and `resize-up` bilinearly; `resize-skip`
    resizes the skip to the upsampled map. `size` is the aim where there is no skip.
    """
    if rule == "resize-skip":
        if skip_BChw is None:
            return up_BChw, None
        return up_BChw, resize(skip_BChw, size_of(up_BChw))
    if skip_BChw is not None:
        size = size_of(skip_BChw)
    fitted = fit_by_padding(up_BChw, size) if rule == "pad" else resize(up_BChw, size)
    return fitted, skip_BChw


def he_initialise(module: nn.Module) -> None:
    """Sample all convolutions anew for networks of ReLUs (arXiv 1502.01852), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.ConvTranspose2d):
            # With a kernel as large as the stride, each output pixel sees one tap per input
            # channel; no ReLU follows, so the gain is 1.
            nn.init.normal_(part.weight, std=math.sqrt(1 / part.in_channels))
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def initialise_head(head: nn.Conv2d) -> None:
    """Start logits around 0 with a modest spread: training begins undecided."""
    nn.init.normal_(head.weight, std=math.sqrt(1 / head.in_channels))
    if head.bias is not None:
        nn.init.zeros_(head.bias)
