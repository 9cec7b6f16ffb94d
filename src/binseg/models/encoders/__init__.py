"""Encoders by name: images to feature maps, finest first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from binseg.config.named_models import Option
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
from binseg.models.encoders.timm_features import TimmEncoder
from binseg.models.skeleton import Encoder

__all__ = ["ENCODERS", "TIMM", "TIMM_WEIGHTS", "EncoderEntry", "encoder_entry"]

TIMM = "timm:"
"""Encoders that begin so are networks of timm."""
TIMM_WEIGHTS = "imagenet"
"""The weights that timm publishes for a name, whatever they were trained on."""


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
    """True if its finest map has the input's size, so that no decoder needs to enlarge further."""
    has_own_start: bool = False
    """True if `build` leaves weights that are not to be sampled anew."""


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


def encoder_entry(name: str, weights: str | None = None) -> EncoderEntry:
    """Look up an encoder; one of timm's gets its row here."""
    if not name.startswith(TIMM):
        return ENCODERS[name]
    return EncoderEntry(
        summary="a network of timm",
        source="timm",
        num_parameters=0,
        build=partial(
            TimmEncoder, name=name.removeprefix(TIMM), pretrained=weights == TIMM_WEIGHTS
        ),
        defaults={},
        has_own_start=True,
    )
