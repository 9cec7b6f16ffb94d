"""The one shape of all networks here (encoder, decoder, head; any size), and its building blocks.

Shape letters: B batch, C channels, H, W height and width of the input; a feature map's own height
and width are h, w.
"""

import math
from collections import OrderedDict
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

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
    units = nn.Sequential()
    for left in range(num_convs - 1, -1, -1):
        share = dropout if left else 0.0
        units.append(conv_unit(in_channels, out_channels, norm=norm, bias=bias, dropout=share))
        in_channels = out_channels
    return units


def up_layer(up: Up, in_channels: int, out_channels: int) -> nn.Module:
    """Double height and width: a transposed 2x2 convolution, or 1x1 and interpolation."""
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
    """Bring an upsampled map and its skip to one size, by the `rule`; without a skip to `size`."""
    if rule == "resize-skip":
        return up_BChw, None if skip_BChw is None else resize(skip_BChw, size_of(up_BChw))
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


class Encoder(nn.Module):
    """Turns images into feature maps, finest first; what decoders need to know is on it."""

    channels: tuple[int, ...]  # channels of each feature map
    strides: tuple[int, ...]
    """Input pixels per feature pixel, in each map; the last is the least input that makes sense."""
    trained_with: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation of the images that the encoder's weights were trained on."""

    def decoder_channels(self, width: int = 0) -> tuple[int, ...]:
        """Return a U-Net decoder's channels, finest first: `width` at a quarter, doubled below."""
        width = width or self.channels[0]
        return tuple(width * max(1, stride // 4) for stride in self.strides[:-1])


class Decoder(nn.Module):
    """Turns an encoder's feature maps and the size of its input into one map for the head."""

    out_channels: int  # channels of the map that goes to the head


def pad_to_minimum(images_BCHW: Tensor, minimum: int) -> Tensor:
    """Repeat the right and lower edge pixels until both sides are at least `minimum`."""
    height, width = images_BCHW.shape[-2:]
    if height >= minimum and width >= minimum:
        return images_BCHW
    padding = (0, max(0, minimum - width), 0, max(0, minimum - height))
    return functional.pad(images_BCHW, padding, mode="replicate")


def crop_to(maps_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep the upper left corner of `size`; maps of that size come back as they are."""
    return maps_BChw if size_of(maps_BChw) == size else maps_BChw[..., : size[0], : size[1]]


def size_of(maps_BChw: Tensor) -> tuple[int, int]:
    """Return height and width."""
    return maps_BChw.shape[-2], maps_BChw.shape[-1]


def resize(maps_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly where the size differs; one-pixel maps are spread out, for exporters."""
    if size_of(maps_BChw) == size:
        return maps_BChw
    if size_of(maps_BChw) == (1, 1):
        return maps_BChw.expand(-1, -1, *size)
    return functional.interpolate(maps_BChw, size=size, mode="bilinear", align_corners=False)


class EncoderDecoder(nn.Module):
    """An image-to-logits network made of ready parts; the logits have the input's size.

    K is the head's number of channels, 1 for foreground against background. Inputs smaller than the
    encoder's last stride are padded by repeating their edge, and the logits are cropped back, so
    that 1 x 1 works as well as 572 x 572.
    """

    def __init__(self, *, encoder: Encoder, decoder: Decoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits, one per input pixel and channel."""
        padded_BCHW = pad_to_minimum(images_BCHW, self.encoder.strides[-1])
        size = size_of(padded_BCHW)
        logits_BKHW = resize(self.head(self.decoder(self.encoder(padded_BCHW), size)), size)
        return crop_to(logits_BKHW, size_of(images_BCHW))
