"""Networks: images in, logits of foreground out, at the input's size."""

from binseg.models.create import OPTIONS, build_model, create_model, num_parameters, resolve_options
from binseg.models.decoders import DECODERS
from binseg.models.encoders import ENCODERS
from binseg.models.weights import load_encoder_weights, weights_path
