"""OpenVINO: the network that was exported into a bundle, on the processor."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from binseg.backends.exported import exported_network
from binseg.bundle import Bundle
from binseg.errors import MissingExtraError, UsageError

__all__ = ["OpenVinoBackend", "open_openvino"]


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
        """The logits of a batch of normalised inputs."""
        found = self._request.infer([inputs_NCHW], share_inputs=True)[0]
        return np.array(found[:, 0], np.float32)


def open_openvino(bundle: Bundle, *, device: str, precision: str) -> OpenVinoBackend:
    """Open the bundle's exported network.

    OpenVINO takes bf16 by default on processors that have it; here the precision is always stated,
    and checked afterwards.

    Raises:
        MissingExtraError: openvino isn't installed.
        BundleError: the bundle holds no exported network.
        UsageError: cuda, or bf16 on a processor without it.
    """
    if device == "cuda":
        raise UsageError("openvino computes on the processor here; take --backend torch for cuda")
    data = exported_network(bundle, precision)
    try:
        import openvino
    except ModuleNotFoundError as problem:
        if problem.name != "openvino":
            raise
        raise MissingExtraError(
            "openvino", extra="openvino", purpose="--backend openvino"
        ) from None
    core = openvino.Core()
    hint = "bf16" if precision == "bf16" else "f32"
    compiled = core.compile_model(
        core.read_model(data),
        "CPU",
        {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"},
    )
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    if precision == "bf16" and "bf" not in used:
        raise UsageError("this processor doesn't compute in bf16 with openvino; take fp32")
    return OpenVinoBackend(compiled, precision=precision)
