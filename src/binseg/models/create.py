"""Encoders and decoders by name, and `create_model`, which puts any pair of them together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from binseg.config.networks import Option
from binseg.config.recipe import Recipe
from binseg.errors import UsageError, suggest
from binseg.models.blocks import he_initialise, initialise_head
from binseg.models.decoders.context import FPNDecoder, MLPDecoder, PyramidPoolingDecoder
from binseg.models.decoders.unet_family import UNetDecoder, UNetPlusPlusDecoder, UNetStyle
from binseg.models.encoders.densenet import DenseNetEncoder
from binseg.models.encoders.mix_transformer import MixTransformerEncoder
from binseg.models.encoders.mobile import (
    EFFICIENTNET,
    MOBILENET_V2,
    MobileEncoder,
    Stage,
    scaled_stages,
)
from binseg.models.encoders.plain import UNetEncoder
from binseg.models.encoders.resnet import ResNetEncoder
from binseg.models.keras_unet import KerasUNet
from binseg.models.option_rules import resolve
from binseg.models.skeleton import Decoder, Encoder, EncoderDecoder
from binseg.models.weights import load_encoder_weights
from binseg.progress import SILENT, Progress

__all__ = [
    "DECODERS",
    "ENCODERS",
    "DecoderEntry",
    "EncoderEntry",
    "build_model",
    "create_model",
    "num_parameters",
    "resolve_options",
]


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One row of `ENCODERS`."""

    summary: str
    source: str
    """The report or paper that describes it."""
    num_parameters: int
    """With 3 channels in and the default options."""
    build: Callable[..., Encoder]
    """Takes `in_channels` and all options by keyword."""
    defaults: Mapping[str, Option]
    """All options that it has; `OPTIONS` says what they mean."""
    full_size: bool = False
    """Whether its finest map has the input's size, so that no decoder needs to enlarge further."""


@dataclass(frozen=True, kw_only=True)
class DecoderEntry:
    """One row of `DECODERS`."""

    summary: str
    source: str
    """The report or paper that describes it."""
    build: Callable[..., Decoder]
    """Takes the encoder and all options but dropout by keyword."""
    defaults: Mapping[str, Option]
    """All options that it has; they win over those of an encoder by the same name."""


def _unet_encoder(in_channels: int, *, width: int, depth: int, **style: Any) -> Encoder:
    channels = tuple(width * 2**level for level in range(depth + 1))
    return UNetEncoder(in_channels, channels=channels, **style)


def _resnet(
    in_channels: int,
    *,
    width: int,
    encoder_norm: Any,
    encoder_bias: bool,
    factors: tuple[int, int, int, int] = (1, 2, 4, 8),
    **facts: Any,
) -> Encoder:
    """Build a published ResNet; each stage has so many times the stem's channels."""
    one, two, three, four = (width * factor for factor in factors)
    return ResNetEncoder(
        in_channels,
        channels=(width, one, two, three, four),
        norm=encoder_norm,
        bias=encoder_bias,
        **facts,
    )


def _small_resnet(
    in_channels: int,
    *,
    width: int,
    norm: Any,
    factors: tuple[int, int, int, int],
    num_blocks: tuple[int, int, int, int],
) -> Encoder:
    """Build a residual encoder for processors.

    It has nothing but 3x3 convolutions, few of them on many pixels, and channels in multiples of 16
    (whole vector registers); most of its depth is where maps are small.
    """
    one, two, three, four = (width * factor for factor in factors)
    return ResNetEncoder(
        in_channels,
        channels=(width, one, two, three, four),
        num_blocks=num_blocks,
        stem="3x3",
        mirrored=True,
        norm=norm,
        bias=norm == "none",
    )


def _densenet121(in_channels: int, *, width: int) -> Encoder:
    return DenseNetEncoder(in_channels, stem_channels=width, growth=max(1, width // 2))


def _mit_b0(in_channels: int, *, width: int, drop_path: float) -> Encoder:
    channels = (width, width * 2, width * 5, width * 8)
    return MixTransformerEncoder(in_channels, channels=channels, drop_path=drop_path)


_RESNET: Mapping[str, Option] = {
    "width": 64,
    "encoder_norm": "batch",
    "encoder_bias": False,
    "stem_feature": "before-pool",
    "output_stride": 32,
}


def _mobile(
    summary: str, num_parameters: int, stages: tuple[Stage, ...], *, lite: bool = True
) -> EncoderEntry:
    return EncoderEntry(
        summary=summary,
        source="arXiv 1905.11946, without squeeze-and-excitation" if lite else "arXiv 1801.04381",
        num_parameters=num_parameters,
        build=partial(MobileEncoder, stages=stages, tensorflow=lite),
        defaults={"width": 32},
    )


ENCODERS: dict[str, EncoderEntry] = {
    "unet": EncoderEntry(
        summary="the U-Net's own: blocks of two convolutions, from full size down",
        source="reports A to D; arXiv 1505.04597",
        num_parameters=18_847_168,
        build=_unet_encoder,
        defaults={"width": 64, "depth": 4, "norm": "batch", "bias": False, "dropout": 0.0},
        full_size=True,
    ),
    "resnet_small": EncoderEntry(
        summary="small residual encoder for processors",
        source="binseg",
        num_parameters=2_492_064,
        build=partial(_small_resnet, factors=(2, 4, 5, 8), num_blocks=(1, 2, 2, 1)),
        defaults={"width": 32, "norm": "batch"},
    ),
    "resnet_compact": EncoderEntry(
        summary="deep and narrow residual encoder for processors",
        source="binseg",
        num_parameters=2_937_296,
        build=partial(_small_resnet, factors=(2, 5, 10, 12), num_blocks=(2, 3, 3, 2)),
        defaults={"width": 16, "norm": "batch"},
    ),
    "resnet18": EncoderEntry(
        summary="ResNet-18",
        source="arXiv 1512.03385",
        num_parameters=11_176_512,
        build=partial(_resnet, num_blocks=(2, 2, 2, 2)),
        defaults=_RESNET,
    ),
    "resnet34": EncoderEntry(
        summary="ResNet-34",
        source="reports A, B and D; arXiv 1512.03385",
        num_parameters=21_284_672,
        build=partial(_resnet, num_blocks=(3, 4, 6, 3)),
        defaults=_RESNET,
    ),
    "resnet50": EncoderEntry(
        summary="ResNet-50, of bottleneck blocks",
        source="arXiv 1512.03385",
        num_parameters=23_508_032,
        build=partial(_resnet, num_blocks=(3, 4, 6, 3), block="bottleneck", factors=(4, 8, 16, 32)),
        defaults=_RESNET,
    ),
    "densenet121": EncoderEntry(
        summary="DenseNet-121",
        source="proposed by report B; arXiv 1608.06993",
        num_parameters=6_953_856,
        build=_densenet121,
        defaults={"width": 64},
    ),
    "mit_b0": EncoderEntry(
        summary="Mix Transformer B0, SegFormer's smallest encoder",
        source="proposed by report A; arXiv 2105.15203",
        num_parameters=3_319_392,
        build=_mit_b0,
        defaults={"width": 32, "drop_path": 0.1},
    ),
    "mobilenet_v2": _mobile("MobileNetV2", 1_811_712, MOBILENET_V2, lite=False),
    "efficientnet_lite0": _mobile("EfficientNet-Lite0", 2_958_848, EFFICIENTNET),
    "efficientnet_lite1": _mobile(
        "EfficientNet-Lite1", 3_723_520, scaled_stages(EFFICIENTNET, width=1.0, depth=1.1)
    ),
    "efficientnet_lite2": _mobile(
        "EfficientNet-Lite2", 4_357_952, scaled_stages(EFFICIENTNET, width=1.1, depth=1.2)
    ),
}
"""Every encoder by the name it has in recipes; a new one is a row here."""


def _unet_decoder(
    encoder: Encoder,
    *,
    decoder_width: int,
    decoder_convs: int,
    final_convs: int = 0,
    dropout: float,
    attention: bool = False,
    **style: Any,
) -> Decoder:
    """Build a U-Net's decoder; blocks of one convolution leave dropout to the head."""
    return UNetDecoder(
        encoder,
        width=decoder_width,
        num_convs=decoder_convs,
        num_final_convs=final_convs,
        style=UNetStyle(
            attention=attention, dropout=dropout if decoder_convs > 1 else 0.0, **style
        ),
    )


def _unetplusplus(encoder: Encoder, *, decoder_width: int, **style: Any) -> Decoder:
    return UNetPlusPlusDecoder(encoder, width=decoder_width, style=UNetStyle(**style))


def _of_one_width(
    encoder: Encoder, *, decoder_width: int, dropout: float, kind: type[Any], **style: Any
) -> Decoder:
    del dropout  # before the head
    decoder: Decoder = kind(encoder, width=decoder_width or 256, **style)
    return decoder


_UNET: Mapping[str, Option] = {
    "decoder_width": 0,
    "decoder_convs": 2,
    "final_convs": 1,
    "up": "transpose",
    "join": "pad",
    "skip_first": False,
    "norm": "batch",
    "bias": False,
    "dropout": 0.0,
}

DECODERS: dict[str, DecoderEntry] = {
    "unet": DecoderEntry(
        summary="U-Net: upsample, join with the skip, convolve, level by level",
        source="reports A to D; arXiv 1505.04597",
        build=_unet_decoder,
        defaults=_UNET,
    ),
    "unetplusplus": DecoderEntry(
        summary="U-Net++: nested, every level refined again and again",
        source="proposed by report A; arXiv 1807.10165",
        build=_unetplusplus,
        defaults={name: _UNET[name] for name in ("decoder_width", "up", "norm", "bias", "dropout")},
    ),
    "attention_unet": DecoderEntry(
        summary="U-Net with attention gates on its skips",
        source="proposed by report A; arXiv 1804.03999",
        build=partial(_unet_decoder, attention=True),
        defaults=_UNET,
    ),
    "fpn": DecoderEntry(
        summary="feature pyramid, logits at a quarter of the size",
        source="proposed by report A; arXiv 1612.03144, 1901.02446",
        build=partial(_of_one_width, kind=FPNDecoder),
        defaults={"decoder_width": 256, "norm": "group", "bias": False, "dropout": 0.0},
    ),
    "psp": DecoderEntry(
        summary="pyramid pooling on the coarsest map; give ResNets output_stride 8",
        source="proposed by report A; arXiv 1612.01105",
        build=partial(_of_one_width, kind=PyramidPoolingDecoder),
        defaults={"decoder_width": 256, "norm": "batch", "bias": False, "dropout": 0.1},
    ),
    "mlp": DecoderEntry(
        summary="SegFormer's: one linear layer per scale, logits at a quarter of the size",
        source="proposed by report A; arXiv 2105.15203",
        build=partial(_of_one_width, kind=MLPDecoder),
        defaults={"decoder_width": 256, "dropout": 0.1},
    ),
}
"""Every decoder by the name it has in recipes; a new one is a row here."""

KERAS = "keras_unet"
"""The one network that is not made of two parts: Keras builds it whole (tutorial C)."""
_KERAS_OPTIONS: Mapping[str, Option] = {"width": 64, "depth": 4, "dropout": 0.0, "up": "transpose"}


def create_model(
    decoder: str = "unet",
    *,
    encoder: str = "resnet34",
    encoder_weights: str | None = None,
    in_channels: int = 3,
    out_channels: int = 1,
    progress: Progress = SILENT,
    **options: Option,
) -> nn.Module:
    """Build a network that gives logits (B, out_channels, H, W) for images (B, in_channels, H, W).

    Any encoder goes with any decoder, and images may have any size from 1 x 1 up.

    Args:
        decoder: a name of `DECODERS`, or `keras_unet` (with the encoder `unet`).
        encoder: a name of `ENCODERS`.
        encoder_weights: weights to start the encoder from (`load_encoder_weights`); None samples
            them.
        in_channels: channels of the images.
        out_channels: channels of the logits.
        progress: is told what loading the weights left out or changed.
        options: changes to the pair's defaults (`resolve_options`).

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.

    >>> create_model("fpn", encoder="resnet18", in_channels=4, width=8).encoder.channels
    (8, 8, 16, 32, 64)
    """
    resolved = resolve_options(decoder, encoder, options)
    for name, num in (("in_channels", in_channels), ("out_channels", out_channels)):
        if num < 1:
            raise UsageError(f"{name} is {num}; a network has 1 or more")
    if decoder == KERAS:
        if encoder_weights is not None:
            raise UsageError(f"{KERAS} has no encoder of its own to load encoder_weights into")
        return KerasUNet(in_channels, out_channels=out_channels, **resolved)  # type: ignore[arg-type]
    ours, theirs = ENCODERS[encoder], DECODERS[decoder]
    maps = ours.build(in_channels, **{name: resolved[name] for name in ours.defaults})
    taken = {name: value for name, value in resolved.items() if name in theirs.defaults}
    model = _assembled(
        maps, theirs.build(maps, **taken), out_channels, dropout=_head_dropout(decoder, taken)
    )
    if encoder_weights is not None:
        load_encoder_weights(model, encoder_weights, progress=progress)
    return model


def _head_dropout(decoder: str, options: Mapping[str, Option]) -> float:
    """Return the share dropped before the head, where the decoder's blocks drop nothing."""
    inside = decoder == "unetplusplus" or options.get("decoder_convs", 1) != 1
    share = options["dropout"]
    assert isinstance(share, float)
    return 0.0 if inside else share


def _assembled(
    encoder: Encoder, decoder: Decoder, out_channels: int, *, dropout: float
) -> EncoderDecoder:
    """Put a 1x1 convolution on the decoder and sample first weights."""
    head = nn.Conv2d(decoder.out_channels, out_channels, 1)
    he_initialise(encoder)
    he_initialise(decoder)
    initialise_head(head)
    whole = nn.Sequential(nn.Dropout(dropout), head) if dropout > 0 else head
    return EncoderDecoder(encoder=encoder, decoder=decoder, head=whole)


def resolve_options(
    decoder: str, encoder: str, options: Mapping[str, Option] | None = None
) -> dict[str, Option]:
    """Return all options of a pair: both parts' defaults, changed by those given.

    An option that both parts have is one option, and the decoder's default counts.

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.

    >>> resolve_options("mlp", "mit_b0", {"width": 16})
    {'width': 16, 'drop_path': 0.1, 'decoder_width': 256, 'dropout': 0.1}
    """
    for what, name, known in (
        ("encoder", encoder, [*ENCODERS]),
        ("decoder", decoder, [*DECODERS, KERAS]),
    ):
        if name not in known:
            raise UsageError(f"there is no {what} {name}; {suggest(name, known)}")
    if decoder == KERAS:
        if encoder != "unet":
            raise UsageError(f"{KERAS} is a whole U-Net: its encoder is unet, not {encoder}")
        return resolve(KERAS, _KERAS_OPTIONS, options or {})
    defaults = {**ENCODERS[encoder].defaults, **DECODERS[decoder].defaults}
    if ENCODERS[encoder].full_size:
        defaults.pop("final_convs", None)
    return resolve(f"{decoder} on {encoder}", defaults, options or {})


def build_model(recipe: Recipe, *, progress: Progress = SILENT) -> nn.Module:
    """Build a recipe's network; its first weights follow from `train.seed` alone.

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.
        DataError: encoder weights that can't be had, or don't fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return create_model(
            encoder_weights=recipe.model.encoder_weights,
            in_channels=recipe.input.channels,
            progress=progress,
            **recipe.model.arguments(),
        )


def num_parameters(model: nn.Module) -> int:
    """Count the numbers that training may change."""
    return sum(parameter.numel() for parameter in model.parameters())
