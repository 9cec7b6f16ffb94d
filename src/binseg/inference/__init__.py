"""The one way from an image to a prediction, for Python, the shell, the server and its jobs.

    source -> decode -> prepare -> batches -> logits -> sigmoid -> blend -> Prediction -> sink

Batches only save time: an image's probability doesn't depend on what it is batched with, beyond
the last bits of float32 that a runtime may round differently for another batch size.
"""

from binseg.inference.opening import (
    EnsemblePredictor,
    LoadSettings,
    ReferenceCheck,
    load,
    verify_reference,
)
from binseg.inference.predict_options import ImageLike, PredictOptions
from binseg.inference.prediction import Prediction
from binseg.inference.predictor import ModelPredictor, Predictor, sigmoid
