"""From a bundle to one file for another runtime, with a proof that it answers alike."""

from binseg.export.core import core_onnx
from binseg.export.files import TARGETS, Facts, Made, make_file, open_file, tell_input
from binseg.export.pixels import Pixels
from binseg.export.proof import LIMITS, Limits, Proof, prove
from binseg.export.quantise import quantise
from binseg.export.raw import RawPixels

__all__ = [
    "LIMITS",
    "TARGETS",
    "Facts",
    "Limits",
    "Made",
    "Pixels",
    "Proof",
    "RawPixels",
    "core_onnx",
    "make_file",
    "open_file",
    "prove",
    "quantise",
    "tell_input",
]
