"""From options to parts put together: what channels, blocks and details each network has.

Each function takes `in_channels` and the model's options (`models/options.py` says what they mean);
keywords with a default are facts of a version, not options.
"""

from typing import Literal

from torch import nn

from binseg.models.blocks import Join, Norm, Up
from binseg.models.decoders.fpn import FPNDecoder
from binseg.models.decoders.mlp import MLPDecoder
from binseg.models.decoders.pyramid_pooling import PyramidPoolingDecoder
from binseg.models.decoders.unet import UNetDecoder, UNetStyle
from binseg.models.decoders.unetplusplus import UNetPlusPlusDecoder
from binseg.models.encoders.densenet import DenseNetEncoder
from binseg.models.encoders.mix_transformer import MixTransformerEncoder
from binseg.models.encoders.resnet import ResNetEncoder
from binseg.models.encoders.unet import UNetEncoder
from binseg.models.initialise import he_initialise, initialise_head
from binseg.models.skeleton import Decoder, Encoder, EncoderDecoder

__all__ = [
    "densenet121_unet",
    "resnet34_fpn",
    "resnet34_psp",
    "resnet34_unet",
    "segformer_b0",
    "unet",
    "unet_compact",
    "unet_small",
    "unetplusplus",
]


def _assemble(encoder: Encoder, decoder: Decoder, *, dropout: float = 0.0) -> EncoderDecoder:
    """Put a 1x1 convolution on the decoder and draw first weights."""
    head = nn.Conv2d(decoder.out_channels, 1, 1)
    he_initialise(encoder)
    he_initialise(decoder)
    initialise_head(head)
    whole = nn.Sequential(nn.Dropout(dropout), head) if dropout > 0 else head
    return EncoderDecoder(encoder=encoder, decoder=decoder, head=whole)


def unet(
    in_channels: int,
    *,
    width: int,
    depth: int,
    norm: Norm,
    bias: bool,
    dropout: float,
    up: Up,
    join: Join = "pad",
    skip_first: bool = True,
    attention: bool = False,
) -> nn.Module:
    """The U-Nets of reports A, B and D, and Attention U-Net."""
    channels = tuple(width * 2**level for level in range(depth + 1))
    style = UNetStyle(
        up=up,
        join=join,
        skip_first=skip_first,
        norm=norm,
        bias=bias,
        dropout=dropout,
        attention=attention,
    )
    return _assemble(
        UNetEncoder(in_channels, channels=channels, norm=norm, bias=bias, dropout=dropout),
        UNetDecoder(channels, channels=channels[-2::-1], style=style),
    )


def _resnet34(
    in_channels: int,
    *,
    width: int,
    norm: Norm,
    bias: bool = False,
    stem_feature: Literal["before-pool", "after-pool"] = "before-pool",
    output_stride: int = 32,
) -> ResNetEncoder:
    return ResNetEncoder(
        in_channels,
        channels=(width, width, width * 2, width * 4, width * 8),
        num_blocks=(3, 4, 6, 3),
        stem_feature=stem_feature,
        norm=norm,
        bias=bias,
        output_stride=output_stride,
    )


def resnet34_unet(
    in_channels: int,
    *,
    width: int,
    encoder_norm: Norm,
    norm: Norm,
    bias: bool,
    dropout: float,
    up: Up,
    version: Literal["a", "b", "d"],
) -> nn.Module:
    """The ResNet34-UNets of reports A, B and D."""
    # A takes the stem's map behind the pooling and ends at half size; its logits are resized.
    ends_at_half = version == "a"
    encoder = _resnet34(
        in_channels,
        width=width,
        norm=encoder_norm,
        bias=version == "a",
        stem_feature="after-pool" if ends_at_half else "before-pool",
    )
    joins: dict[str, Join] = {"a": "resize-skip", "b": "resize-up", "d": "pad"}
    style = UNetStyle(
        up=up, join=joins[version], skip_first=False, norm=norm, bias=bias, dropout=dropout
    )
    decoder = UNetDecoder(
        encoder.channels,
        channels=(width * 4, width * 2, width, width),
        final_channels=0 if ends_at_half else max(1, width // 2),
        num_final_convs=1 if version == "d" else 2,
        style=style,
    )
    return _assemble(encoder, decoder)


def unet_small(in_channels: int, *, width: int, norm: Norm, dropout: float, up: Up) -> nn.Module:
    """A residual U-Net for processors.

    Nothing but 3x3 convolutions, few of them on many pixels; channels in multiples of 16 (whole
    vector registers); most of its depth where maps are small.
    """
    encoder = ResNetEncoder(
        in_channels,
        channels=(width, width * 2, width * 4, width * 5, width * 8),
        num_blocks=(1, 2, 2, 1),
        stem="3x3",
        norm=norm,
        bias=norm == "none",
    )
    decoder = UNetDecoder(
        encoder.channels,
        channels=encoder.channels[-2::-1],
        final_channels=max(1, width // 2),
        num_convs=1,
        num_final_convs=1,
        style=UNetStyle(up=up, norm=norm, bias=norm == "none"),
    )
    return _assemble(encoder, decoder, dropout=dropout)


def unet_compact(in_channels: int, *, width: int, norm: Norm, dropout: float, up: Up) -> nn.Module:
    """A deeper and narrower residual U-Net that answers at half the size.

    For things that are large against a pixel: the last doubling is bilinear, and what it saves is
    spent on depth, where a network learns what it looks at.
    """
    encoder = ResNetEncoder(
        in_channels,
        channels=(width, width * 2, width * 5, width * 10, width * 12),
        num_blocks=(2, 3, 3, 2),
        stem="3x3",
        norm=norm,
        bias=norm == "none",
    )
    decoder = UNetDecoder(
        encoder.channels,
        channels=encoder.channels[-2::-1],
        num_convs=1,
        style=UNetStyle(up=up, norm=norm, bias=norm == "none"),
    )
    return _assemble(encoder, decoder, dropout=dropout)


def unetplusplus(
    in_channels: int,
    *,
    width: int,
    depth: int,
    norm: Norm,
    bias: bool,
    dropout: float,
    up: Up,
) -> nn.Module:
    """U-Net++ on the U-Net's encoder."""
    channels = tuple(width * 2**level for level in range(depth + 1))
    style = UNetStyle(up=up, norm=norm, bias=bias, dropout=dropout)
    return _assemble(
        UNetEncoder(in_channels, channels=channels, norm=norm, bias=bias, dropout=dropout),
        UNetPlusPlusDecoder(channels, style=style),
    )


def resnet34_fpn(
    in_channels: int,
    *,
    width: int,
    encoder_norm: Norm,
    decoder_width: int,
    norm: Norm,
    bias: bool,
    dropout: float,
) -> nn.Module:
    """A feature pyramid on ResNet-34."""
    encoder = _resnet34(in_channels, width=width, norm=encoder_norm)
    decoder = FPNDecoder(encoder.channels, width=decoder_width, norm=norm, bias=bias)
    return _assemble(encoder, decoder, dropout=dropout)


def resnet34_psp(
    in_channels: int,
    *,
    width: int,
    encoder_norm: Norm,
    output_stride: int,
    decoder_width: int,
    norm: Norm,
    bias: bool,
    dropout: float,
) -> nn.Module:
    """Pyramid pooling on a dilated ResNet-34, as PSPNet."""
    encoder = _resnet34(in_channels, width=width, norm=encoder_norm, output_stride=output_stride)
    decoder = PyramidPoolingDecoder(encoder.channels, width=decoder_width, norm=norm, bias=bias)
    return _assemble(encoder, decoder, dropout=dropout)


def densenet121_unet(
    in_channels: int, *, width: int, norm: Norm, bias: bool, dropout: float, up: Up
) -> nn.Module:
    """A U-Net decoder to full size on DenseNet-121."""
    encoder = DenseNetEncoder(
        in_channels,
        stem_channels=width,
        growth=max(1, width // 2),
        num_layers=(6, 12, 24, 16),
    )
    decoder = UNetDecoder(
        encoder.channels,
        channels=(width * 4, width * 2, width, width),
        final_channels=max(1, width // 2),
        num_final_convs=1,
        style=UNetStyle(up=up, skip_first=False, norm=norm, bias=bias, dropout=dropout),
    )
    return _assemble(encoder, decoder)


def segformer_b0(
    in_channels: int, *, width: int, decoder_width: int, dropout: float, drop_path: float
) -> nn.Module:
    """SegFormer B0."""
    encoder = MixTransformerEncoder(
        in_channels,
        channels=(width, width * 2, width * 5, width * 8),
        num_blocks=(2, 2, 2, 2),
        num_heads=(1, 2, 5, 8),
        reductions=(8, 4, 2, 1),
        drop_path=drop_path,
    )
    return _assemble(encoder, MLPDecoder(encoder.channels, width=decoder_width), dropout=dropout)
