"""From a bundle to one file for another runtime, with a proof that it answers alike."""

from binseg.export.core import core_onnx
from binseg.export.files import TARGETS, Made, make_file
from binseg.export.proof import LIMITS, Proof, prove
from binseg.export.quantise import quantise
from binseg.export.raw import RawPixels

__all__ = [
    "LIMITS",
    "TARGETS",
    "Made",
    "Proof",
    "RawPixels",
    "core_onnx",
    "make_file",
    "prove",
    "quantise",
]
