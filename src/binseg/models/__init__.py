"""Networks: images in, logits of foreground out, at the input's size."""

from binseg.models.create import (
    OPTIONS,
    build_model,
    create_model,
    load_encoder_weights,
    num_parameters,
    resolve_options,
    weights_path,
)
from binseg.models.decoders import DECODERS
from binseg.models.encoders import ENCODERS
