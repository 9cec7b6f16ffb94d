"""Networks: images in, logits of foreground out, at the input's size."""

from binseg.models.weights import load_encoder_weights
from binseg.models.zoo import MODELS, ModelEntry, build_model, num_parameters, resolve_options

__all__ = [
    "MODELS",
    "ModelEntry",
    "build_model",
    "load_encoder_weights",
    "num_parameters",
    "resolve_options",
]
