"""Decoders by name: an encoder's feature maps to one map for the head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from binseg.config.named_models import Option
from binseg.models.decoders.context import FPNDecoder, MLPDecoder, PyramidPoolingDecoder
from binseg.models.decoders.unet_family import UNetDecoder, UNetPlusPlusDecoder, UNetStyle
from binseg.models.skeleton import Decoder, Encoder

__all__ = ["DECODERS", "DecoderEntry"]


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
