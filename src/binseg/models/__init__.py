"""Networks: images in, logits of foreground out, at the input's size."""

from binseg.models.create import (
    DECODERS,
    ENCODERS,
    DecoderEntry,
    EncoderEntry,
    build_model,
    create_model,
    num_parameters,
    resolve_options,
)
from binseg.models.weights import load_encoder_weights

__all__ = [
    "DECODERS",
    "ENCODERS",
    "DecoderEntry",
    "EncoderEntry",
    "build_model",
    "create_model",
    "load_encoder_weights",
    "num_parameters",
    "resolve_options",
]
