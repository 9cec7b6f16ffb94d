"""OpenVINO: the network that was exported into a bundle, on the processor."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from binseg.errors import UsageError
from binseg.inference.runtimes import checked_logits, num_threads
from binseg.packaging.networks import compile_openvino


class OpenVinoBackend:
    """A compiled OpenVINO model as a backend.

    Args:
        compiled: an `openvino.CompiledModel` that takes inputs and gives logits.
        precision: fp32, bf16 or int8.
    """

    name = "openvino cpu"

    def __init__(self, compiled: Any, *, precision: str) -> None:
        self.precision = precision
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """Compute the logits of a batch of normalised inputs."""
        found = self._request.infer([inputs_NCHW], share_inputs=True)[0]
        return checked_logits(found, inputs_NCHW)


def openvino_backend(data: bytes, *, precision: str, name: str) -> OpenVinoBackend:
    """Open a network in memory.

    OpenVINO takes bf16 by default on processors that have it; here the precision is always stated,
    and checked afterwards.

    Args:
        data: ONNX that takes inputs and gives logits.
        precision: fp32, bf16, or int8 where it was exported so.
        name: what errors call it.

    Raises:
        MissingExtraError: openvino isn't installed.
        BundleError: openvino can't read it.
        UsageError: bf16 on a processor without it.
    """
    compiled, used = compile_openvino(
        data,
        precision=precision,
        name=name,
        PERFORMANCE_HINT="LATENCY",
        INFERENCE_NUM_THREADS=num_threads(),
    )
    if precision == "bf16" and used != "bf16":
        raise UsageError("this processor doesn't compute in bf16 with openvino; take fp32")
    return OpenVinoBackend(compiled, precision=precision)
