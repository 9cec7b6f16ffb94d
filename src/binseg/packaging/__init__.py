"""The shipped artefact: one folder or zip with card, weights, reference sample and hashes.

    name/
    ├── card.json              what the model is: architecture, preprocessing, threshold, scores
    ├── weights.safetensors    the state dict, by name
    ├── reference.safetensors     a sample input and the probability that it must give
    ├── network.onnx           (where exported) the network for ONNX Runtime and OpenVINO
    ├── network-int8.onnx      (where exported) the same in 8-bit numbers
    ├── proofs.json            (where exported) how these answered beside torch
    └── SHA256SUMS             hashes of all of them; `sha256sum -c SHA256SUMS` checks by hand

Loading never guesses and never unpickles: what is missing, cut short, edited, foreign or of a
newer format is one `BundleError`. The hashes find damage and mix-ups; they don't prove who made a
bundle, so one from a stranger is as trustworthy as its sender (but runs no code).
"""

from binseg.packaging.card import Architecture, Card, Corrections, DataFacts, Threshold
from binseg.packaging.reader import Bundle, Reference, read_bundle
from binseg.packaging.sources import NETWORK, NETWORK_INT8, PROOFS
from binseg.packaging.writer import pack_zip, write_bundle

__all__ = [
    "NETWORK",
    "NETWORK_INT8",
    "PROOFS",
    "Architecture",
    "Bundle",
    "Card",
    "Corrections",
    "DataFacts",
    "Reference",
    "Threshold",
    "pack_zip",
    "read_bundle",
    "write_bundle",
]
