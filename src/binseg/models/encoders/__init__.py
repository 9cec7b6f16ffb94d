"""Encoders by name: images to feature maps, finest first."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from binseg.config.named_models import Option
from binseg.errors import DataError, UsageError, needing, one_line
from binseg.models.encoders.convolutional import (
    EFFICIENTNET,
    MOBILENET_V2,
    DenseNetEncoder,
    MobileEncoder,
    ResNetEncoder,
    UNetEncoder,
    scaled_stages,
)
from binseg.models.encoders.mix_transformer import MixTransformerEncoder
from binseg.models.skeleton import Encoder


class TimmEncoder(Encoder):
    """A `features_only` network of timm; its weights are those of the tag in its name.

    Raises MissingExtraError, UsageError (no such network, no feature maps) and DataError (weights).
    """

    def __init__(self, in_channels: int, *, name: str, pretrained: bool) -> None:
        super().__init__()
        if os.environ.get("BINSEG_OFFLINE", "") not in ("", "0"):
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when timm's downloader is imported
        with needing("timm", extra="timm", purpose=f"the encoder timm:{name}"):
            import timm
        if not timm.is_model(name.partition(".")[0]):
            lists = "python -c 'import timm; print(timm.list_models())' lists them"
            raise UsageError(f"timm has no network {name}; {lists}")
        try:
            self.features = timm.create_model(
                name, pretrained=pretrained, features_only=True, in_chans=in_channels
            )
        except RuntimeError as error:
            raise UsageError(f"timm:{name} can't be an encoder: {one_line(str(error))}") from error
        except OSError as error:
            raise DataError(
                f"timm's weights of {name} can't be fetched ({one_line(str(error))}); go online "
                "once, or leave encoder_weights out"
            ) from error
        facts = self.features.feature_info
        self.channels = tuple(facts.channels())
        self.strides = tuple(facts.reduction())
        ratios = {high / low for low, high in pairwise(self.strides)}
        if ratios != {2.0} or self.strides[0] not in (1, 2, 4):
            raise UsageError(
                f"timm:{name} can't be an encoder: its maps have strides "
                f"{', '.join(map(str, self.strides))}, and decoders need maps that halve"
            )
        if pretrained:
            config = timm.get_pretrained_cfg(name)
            self.trained_with = (tuple(config.mean), tuple(config.std))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return one map per stage, finest first."""
        maps: tuple[Tensor, ...] = tuple(self.features(images_BCHW))
        return maps


TIMM = "timm:"  # encoders that begin so are networks of timm
TIMM_WEIGHTS = "imagenet"
"""The weights that timm publishes for a name, whatever they were trained on."""


class EncoderEntry(NamedTuple):
    """One row of `ENCODERS`."""

    summary: str
    source: str  # the report or paper that describes it
    num_parameters: int  # with 3 channels in and the default options
    build: Callable[..., Encoder]  # takes `in_channels` and all options by keyword
    defaults: Mapping[str, Option]  # all options that it has; `OPTIONS` says what they mean
    full_size: bool = False
    """True if its finest map has the input's size, so that no decoder needs to enlarge further."""
    has_own_start: bool = False  # True if `build` leaves weights that are not to be sampled anew


def _small_resnet(in_channels: int, *, norm: Any, **sizes: Any) -> Encoder:
    """Build a residual encoder for processors: 3x3 convolutions, most of them on small maps."""
    bias = norm == "none"
    return ResNetEncoder(
        in_channels, stem="3x3", mirrored=True, encoder_norm=norm, encoder_bias=bias, **sizes
    )


_RESNET: Mapping[str, Option] = {
    "width": 64, "encoder_norm": "batch", "encoder_bias": False, "stem_feature": "before-pool",
    "output_stride": 32,
}  # fmt: skip
_WIDTH: Mapping[str, Option] = {"width": 32}
_LITE = "arXiv 1905.11946, without squeeze-and-excitation"


def _lite(**scales: float) -> Callable[..., Encoder]:
    return partial(MobileEncoder, stages=scaled_stages(EFFICIENTNET, **scales), tensorflow=True)


ENCODERS: dict[str, EncoderEntry] = {
    "unet": EncoderEntry(
        "the U-Net's own: blocks of two convolutions, from full size down",
        "reports A to D; arXiv 1505.04597", 18_847_168, UNetEncoder,
        {"width": 64, "depth": 4, "norm": "batch", "bias": False, "dropout": 0.0}, full_size=True,
    ),
    "resnet_small": EncoderEntry(
        "small residual encoder for processors", "binseg", 2_492_064,
        partial(_small_resnet, factors=(2, 4, 5, 8), num_blocks=(1, 2, 2, 1)),
        {"width": 32, "norm": "batch"},
    ),
    "resnet_compact": EncoderEntry(
        "deep and narrow residual encoder for processors", "binseg", 2_937_296,
        partial(_small_resnet, factors=(2, 5, 10, 12), num_blocks=(2, 3, 3, 2)),
        {"width": 16, "norm": "batch"},
    ),
    "resnet18": EncoderEntry(
        "ResNet-18", "arXiv 1512.03385", 11_176_512,
        partial(ResNetEncoder, num_blocks=(2, 2, 2, 2)), _RESNET,
    ),
    "resnet34": EncoderEntry(
        "ResNet-34", "reports A, B and D; arXiv 1512.03385", 21_284_672, ResNetEncoder, _RESNET
    ),
    "resnet50": EncoderEntry(
        "ResNet-50, of bottleneck blocks", "arXiv 1512.03385", 23_508_032,
        partial(ResNetEncoder, bottleneck=True, factors=(4, 8, 16, 32)), _RESNET,
    ),
    "densenet121": EncoderEntry(
        "DenseNet-121", "proposed by report B; arXiv 1608.06993", 6_953_856,
        DenseNetEncoder, {"width": 64},
    ),
    "mit_b0": EncoderEntry(
        "Mix Transformer B0, SegFormer's smallest encoder",
        "proposed by report A; arXiv 2105.15203", 3_319_392,
        MixTransformerEncoder, {"width": 32, "drop_path": 0.1},
    ),
    "mobilenet_v2": EncoderEntry(
        "MobileNetV2", "arXiv 1801.04381", 1_811_712,
        partial(MobileEncoder, stages=MOBILENET_V2, tensorflow=False), _WIDTH,
    ),
    "efficientnet_lite0": EncoderEntry(
        "EfficientNet-Lite0", _LITE, 2_958_848, _lite(width=1.0, depth=1.0), _WIDTH
    ),
    "efficientnet_lite1": EncoderEntry(
        "EfficientNet-Lite1", _LITE, 3_723_520, _lite(width=1.0, depth=1.1), _WIDTH
    ),
    "efficientnet_lite2": EncoderEntry(
        "EfficientNet-Lite2", _LITE, 4_357_952, _lite(width=1.1, depth=1.2), _WIDTH
    ),
}  # fmt: skip
"""Every encoder by the name it has in recipes; a new one is a row here."""


def encoder_entry(name: str, weights: str | None = None) -> EncoderEntry:
    """Look up an encoder; one of timm's gets its row here."""
    if not name.startswith(TIMM):
        return ENCODERS[name]
    build = partial(TimmEncoder, name=name.removeprefix(TIMM), pretrained=weights == TIMM_WEIGHTS)
    return EncoderEntry("a network of timm", "timm", 0, build, {}, has_own_start=True)
