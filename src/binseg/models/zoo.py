"""All networks by name: here, and only here, are their numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn

from binseg.config.recipe import Option
from binseg.errors import UsageError
from binseg.models import builders
from binseg.models.keras_unet import KerasUNet
from binseg.models.options import nearest, resolve

__all__ = ["MODELS", "ModelEntry", "build_model", "num_parameters", "resolve_options"]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One line of the zoo."""

    name: str
    summary: str
    source: str
    """The report or paper that describes it."""
    num_parameters: int
    """With 3 channels in and the default options."""
    build: Callable[..., nn.Module]
    """Takes `in_channels` and all options by keyword."""
    defaults: Mapping[str, Option]
    """All options that the model has; `models/options.py` says what they mean."""


def build_model(
    name: str, *, in_channels: int = 3, options: Mapping[str, Option] = MappingProxyType({})
) -> nn.Module:
    """Build a network by name, with fresh weights; it gives logits at its input's size.

    Args:
        name: a key of `MODELS`.
        in_channels: channels of the images.
        options: changes to the model's defaults.

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.
    """
    resolved = resolve_options(name, options)
    if in_channels < 1:
        raise UsageError(f"a model can't have {in_channels} input channels; give 1 or more")
    return MODELS[name].build(in_channels, **resolved)


def resolve_options(name: str, options: Mapping[str, Option]) -> dict[str, Option]:
    """All options of a model: its defaults, changed by those given.

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.

    >>> resolve_options("unet", {"width": 16})["width"]
    16
    """
    if name not in MODELS:
        raise UsageError(
            f"there is no model {name}{nearest(name, MODELS)}; there are {', '.join(MODELS)}"
        )
    return resolve(name, MODELS[name].defaults, options)


def num_parameters(model: nn.Module) -> int:
    """Count the numbers that training may change."""
    return sum(parameter.numel() for parameter in model.parameters())


_UNET: dict[str, Option] = {
    "width": 64,
    "depth": 4,
    "norm": "batch",
    "bias": False,
    "dropout": 0.0,
    "up": "transpose",
}
_RESNET_UNET: dict[str, Option] = {
    "width": 64,
    "encoder_norm": "batch",
    "norm": "batch",
    "bias": False,
    "dropout": 0.0,
    "up": "transpose",
}

MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="unet",
            summary="U-Net, batch norm, upsampled maps zero-padded to the skip",
            source="report D; arXiv 1505.04597",
            num_parameters=31_037_633,
            build=builders.unet,
            defaults=_UNET,
        ),
        ModelEntry(
            name="unet-a",
            summary="U-Net without norm, skip behind the upsampled map",
            source="report A; arXiv 1505.04597",
            num_parameters=31_031_745,
            build=partial(builders.unet, join="resize-skip", skip_first=False),
            defaults=_UNET | {"norm": "none", "bias": True},
        ),
        ModelEntry(
            name="unet-b",
            summary="U-Net, batch norm and biases, skip before the upsampled map",
            source="report B; arXiv 1505.04597",
            num_parameters=31_043_521,
            build=partial(builders.unet, join="resize-up"),
            defaults=_UNET | {"bias": True},
        ),
        ModelEntry(
            name="resnet34-unet",
            summary="ResNet-34 encoder, U-Net decoder to full size",
            source="report D; arXiv 1512.03385",
            num_parameters=24_442_305,
            build=partial(builders.resnet34_unet, version="d"),
            defaults=_RESNET_UNET,
        ),
        ModelEntry(
            name="resnet34-unet-a",
            summary="ResNet-34 encoder with biases, decoder without norm to half size",
            source="report A; arXiv 1512.03385",
            num_parameters=24_432_321,
            build=partial(builders.resnet34_unet, version="a"),
            defaults=_RESNET_UNET | {"norm": "none", "bias": True},
        ),
        ModelEntry(
            name="resnet34-unet-b",
            summary="ResNet-34 encoder, five-level decoder, maps resized to the skip",
            source="report B; arXiv 1512.03385",
            num_parameters=24_452_673,
            build=partial(builders.resnet34_unet, version="b"),
            defaults=_RESNET_UNET | {"bias": True},
        ),
        ModelEntry(
            name="unet-small",
            summary="Small residual U-Net for processors, first convolution at half size",
            source="binseg",
            num_parameters=3_415_649,
            build=builders.unet_small,
            defaults={"width": 32, "norm": "batch", "dropout": 0.0, "up": "bilinear"},
        ),
        ModelEntry(
            name="unet-compact",
            summary="Deep and narrow residual U-Net for processors, logits at half size",
            source="binseg",
            num_parameters=3_583_809,
            build=builders.unet_compact,
            defaults={"width": 16, "norm": "batch", "dropout": 0.0, "up": "bilinear"},
        ),
        ModelEntry(
            name="unetplusplus",
            summary="U-Net++: nested decoder, every level refined again and again",
            source="proposed by report A; arXiv 1807.10165",
            num_parameters=9_045_825,
            build=builders.unetplusplus,
            defaults=_UNET | {"width": 32},
        ),
        ModelEntry(
            name="attention-unet",
            summary="U-Net with attention gates on its skips",
            source="proposed by report A; arXiv 1804.03999",
            num_parameters=31_389_157,
            build=partial(builders.unet, attention=True),
            defaults=_UNET,
        ),
        ModelEntry(
            name="resnet34-fpn",
            summary="ResNet-34 encoder, feature pyramid decoder at a quarter of the size",
            source="proposed by report A; arXiv 1612.03144, 1901.02446",
            num_parameters=23_155_393,
            build=builders.resnet34_fpn,
            defaults={
                "width": 64,
                "encoder_norm": "batch",
                "decoder_width": 256,
                "norm": "group",
                "bias": False,
                "dropout": 0.0,
            },
        ),
        ModelEntry(
            name="resnet34-psp",
            summary="ResNet-34 encoder dilated to stride 8, pyramid pooling",
            source="proposed by report A; arXiv 1612.01105",
            num_parameters=23_907_777,
            build=builders.resnet34_psp,
            defaults={
                "width": 64,
                "encoder_norm": "batch",
                "decoder_width": 256,
                "norm": "batch",
                "bias": False,
                "dropout": 0.1,
                "output_stride": 8,
            },
        ),
        ModelEntry(
            name="densenet121-unet",
            summary="DenseNet-121 encoder, U-Net decoder to full size",
            source="proposed by report B; arXiv 1608.06993",
            num_parameters=12_958_209,
            build=builders.densenet121_unet,
            defaults={
                "width": 64,
                "norm": "batch",
                "bias": False,
                "dropout": 0.0,
                "up": "transpose",
            },
        ),
        ModelEntry(
            name="segformer-b0",
            summary="Mix Transformer B0 encoder, all-MLP decoder at a quarter of the size",
            source="proposed by report A; arXiv 2105.15203",
            num_parameters=3_714_401,
            build=builders.segformer_b0,
            defaults={"width": 32, "decoder_width": 256, "dropout": 0.1, "drop_path": 0.1},
        ),
        ModelEntry(
            name="keras-unet",
            summary="U-Net of Keras 3 layers on torch, without norm (extra: keras)",
            source="report C; arXiv 1505.04597",
            num_parameters=31_031_745,
            build=KerasUNet,
            defaults={"width": 64, "depth": 4, "dropout": 0.0, "up": "transpose"},
        ),
    )
}
"""All networks by name."""
