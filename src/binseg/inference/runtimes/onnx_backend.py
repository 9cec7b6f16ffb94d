"""ONNX Runtime: the network that was exported into a bundle, on the processor."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from binseg.errors import UsageError
from binseg.inference.runtimes.exported import checked_logits, exported_network, num_threads
from binseg.packaging import Bundle
from binseg.packaging.networks import onnx_session

__all__ = ["OnnxBackend", "onnx_backend", "open_onnxruntime"]


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
        """The logits of a batch of normalised inputs."""
        logits = self._session.run(None, {"inputs": inputs_NCHW})[0]
        return checked_logits(logits, inputs_NCHW)


def open_onnxruntime(bundle: Bundle, *, device: str, precision: str) -> OnnxBackend:
    """Open the bundle's exported network.

    Raises:
        MissingExtraError: onnxruntime isn't installed.
        BundleError: the bundle holds no exported network.
        UsageError: bf16 or cuda, which it doesn't compute in here.
    """
    if device == "cuda" or precision == "bf16":
        raise UsageError(
            f"onnxruntime computes on the processor in fp32 or int8 here, not {precision} on "
            f"{device}; take --backend torch or openvino"
        )
    return onnx_backend(
        exported_network(bundle, precision), precision=precision, name=str(bundle.path)
    )


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
