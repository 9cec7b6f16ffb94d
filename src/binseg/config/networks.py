"""Named networks: an encoder, a decoder and their options under one name. Data, no code."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["MODELS", "NamedModel", "model_label"]

Option = bool | int | float | str | list[int] | list[float] | None


class NamedModel(NamedTuple):
    """One row of `MODELS`."""

    decoder: str
    encoder: str
    num_parameters: int
    """With 3 channels in."""
    summary: str
    options: Mapping[str, Option]


_SMALL: Mapping[str, Option] = {"decoder_convs": 1, "skip_first": True, "up": "bilinear"}

MODELS: dict[str, NamedModel] = {
    "unet": NamedModel(
        "unet", "unet", 31_037_633, "U-Net of report D", {"skip_first": True}
    ),
    "resnet34-unet": NamedModel(
        "unet", "resnet34", 24_442_305, "ResNet34-UNet of report D", {}
    ),
    "unet-small": NamedModel(
        "unet", "resnet_small", 3_415_649, "for processors, to full size", _SMALL
    ),
    "unet-compact": NamedModel(
        "unet", "resnet_compact", 3_583_809,
        "for processors and things that are large against a pixel: logits at half size",
        {**_SMALL, "final_convs": 0},
    ),
    "lite0-unet": NamedModel(
        "unet", "efficientnet_lite0", 3_867_369,
        "for processors, made to begin from ImageNet: logits at half size",
        {"up": "bilinear", "final_convs": 0},
    ),
    "unetplusplus": NamedModel(
        "unetplusplus", "unet", 9_045_825, "U-Net++ as in its paper", {"width": 32}
    ),
    "attention-unet": NamedModel(
        "attention_unet", "unet", 31_389_157, "Attention U-Net", {"skip_first": True}
    ),
    "resnet34-fpn": NamedModel("fpn", "resnet34", 23_155_393, "feature pyramid", {}),
    "resnet34-psp": NamedModel(
        "psp", "resnet34", 23_907_777, "PSPNet on a dilated ResNet-34", {"output_stride": 8}
    ),
    "densenet121-unet": NamedModel(
        "unet", "densenet121", 12_958_209, "U-Net on DenseNet-121, proposed by report B", {}
    ),
    "segformer-b0": NamedModel("mlp", "mit_b0", 3_714_401, "SegFormer B0", {}),
}  # fmt: skip
"""The networks that `--model` takes; what the reports changed about them is in their recipes."""


def model_label(decoder: str, encoder: str) -> str:
    """Return a short name for people: that of `MODELS` where one has this pair.

    >>> model_label("unet", "resnet34"), model_label("fpn", "mit_b0")
    ('resnet34-unet', 'mit_b0-fpn')
    """
    for name, model in MODELS.items():
        if (model.decoder, model.encoder) == (decoder, encoder):
            return name
    return f"{encoder}-{decoder}"
