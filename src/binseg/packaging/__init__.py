"""The shipped model: a bundle of card, weights, reference sample and hashes; and its exports.

    name/
    ├── card.json              every fact: architecture, preprocessing, threshold, scores
    ├── weights.safetensors    the state dict, by name
    ├── reference.safetensors  the reference sample: inputs, and the probability they must give
    ├── network.onnx           (where exported) the network for ONNX Runtime and OpenVINO
    ├── network-int8.onnx      (where exported) the same in 8-bit numbers
    ├── proofs.json            (where exported) how these compared with torch
    └── SHA256SUMS             hashes of all of them; `sha256sum -c SHA256SUMS` checks by hand

Loading never guesses and never unpickles. The hashes find damage and mix-ups; they don't prove who
made a bundle, so one from a stranger is as trustworthy as its sender (but runs no code).
"""

from binseg.packaging.bundle import (
    Bundle,
    Reference,
    pack_zip,
    read_bundle,
    revise_card,
    rewritten,
    write_bundle,
)
from binseg.packaging.card import (
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    Architecture,
    Card,
    DataFacts,
    Guarantee,
    Knowledge,
    Threshold,
)
