"""Masks for files, folders, globs, stacks and pipes: one bad picture stops nobody else's."""

from binseg.workflows.predict.files import Failure, PredictResult, Written, predict_files
from binseg.workflows.predict.pipe import predict_bytes
from binseg.workflows.predict.watching import watch

__all__ = [
    "Failure",
    "PredictResult",
    "Written",
    "predict_bytes",
    "predict_files",
    "watch",
]
