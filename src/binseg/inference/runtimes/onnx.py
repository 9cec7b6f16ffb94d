"""ONNX Runtime: the network that was exported into a bundle, on the processor."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from binseg.inference.runtimes import checked_logits, num_threads
from binseg.packaging.networks import onnx_session


class OnnxBackend:
    """An ONNX Runtime session as a backend.

    Args:
        session: an `onnxruntime.InferenceSession` with `inputs` and `logits`.
        precision: fp32 or int8, as the network was exported.
    """

    name = "onnxruntime cpu"

    def __init__(self, session: Any, *, precision: str) -> None:
        self.precision = precision
        self._session = session

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """Compute the logits of a batch of normalised inputs."""
        logits = self._session.run(None, {"inputs": inputs_NCHW})[0]
        return checked_logits(logits, inputs_NCHW)


def onnx_backend(data: bytes, *, precision: str, name: str) -> OnnxBackend:
    """Open a network in memory.

    Args:
        data: ONNX with `inputs` and `logits`.
        precision: fp32 or int8, as it was exported.
        name: what errors call it.

    Raises:
        MissingExtraError: onnxruntime isn't installed.
        BundleError: onnxruntime can't read it.
    """
    session = onnx_session(data, name=name, num_threads=num_threads())
    return OnnxBackend(session, precision=precision)
