"""The one way from an image to a probability, for Python, the shell, training and evaluation.

    image -> prepare -> batches -> normalise -> backend -> sigmoid -> blend -> Prediction

Batches only save time: an image's probability doesn't depend on what it is batched with, beyond
the last bits of float32 that a runtime may round differently for another batch size.

prediction.py what comes out: probability, threshold, mask
single.py     one model with its preprocessing and threshold
ensemble.py   several, as the mean of their probabilities
opening.py    from files; the reference sample that proves them
machine.py    which of them this machine has proven already
images.py     what `predict` takes, as pixels
"""

from binseg.inference.ensemble import Ensemble
from binseg.inference.images import ImageLike
from binseg.inference.opening import ReferenceCheck, load, verify_reference
from binseg.inference.prediction import Prediction
from binseg.inference.single import Predictor, sigmoid

__all__ = [
    "Ensemble",
    "ImageLike",
    "Prediction",
    "Predictor",
    "ReferenceCheck",
    "load",
    "sigmoid",
    "verify_reference",
]
