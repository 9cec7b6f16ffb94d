"""The one way from a picture to a probability, for Python, the shell, training and evaluation.

    picture -> prepare -> batches -> normalise -> backend -> sigmoid -> blend -> Prediction

Batches only save time: a picture's probability doesn't depend on what it is batched with, beyond
the last bits of float32 that a runtime may round differently for another batch size.

prediction.py what comes out: probability, threshold, mask
single.py     one model with its preprocessing and threshold
ensemble.py   several, as the mean of their probabilities
opening.py    from files; the golden sample that proves them
machine.py    which of them this machine has proven already
images.py     what `predict` takes, as pixels
"""

from binseg.predictor.ensemble import Ensemble
from binseg.predictor.images import ImageLike
from binseg.predictor.opening import GoldenCheck, load, verify_golden
from binseg.predictor.prediction import Prediction
from binseg.predictor.single import Predictor, sigmoid

__all__ = [
    "Ensemble",
    "GoldenCheck",
    "ImageLike",
    "Prediction",
    "Predictor",
    "load",
    "sigmoid",
    "verify_golden",
]
