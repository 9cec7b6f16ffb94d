"""OpenVINO: the network that was exported into a bundle, on the processor."""

import sys
from typing import Any

import numpy as np
from jaxtyping import Float32

from binseg.errors import BundleError, MissingExtraError, UsageError
from binseg.inference.runtimes import num_threads
from binseg.packaging.lines import one_line

__all__ = [
    "OpenVinoBackend",
    "import_openvino",
    "openvino_backend",
    "openvino_core",
]

_CORES: list[Any] = []
"""None or one."""


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
        return np.array(found[:, 0], np.float32)


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
    core = openvino_core("--backend openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads(),
    }
    try:
        compiled = core.compile_model(core.read_model(data), "CPU", settings)
    except RuntimeError as problem:
        raise BundleError(
            f"{name}: openvino can't read the exported network ({one_line(str(problem))}); "
            "export it again"
        ) from None
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision == "bf16" and used != "bf16":
        raise UsageError("this processor doesn't compute in bf16 with openvino; take fp32")
    return OpenVinoBackend(compiled, precision=precision)


def openvino_core(purpose: str, *, extra: str = "openvino") -> Any:
    """Give the one `openvino.Core` of this process, which stays until its end.

    A Core gives the thread that makes it a stack for signals, and takes its memory back when it
    goes, also where another Core's stack has been put on top since: the next signal (Ctrl-C) is
    then a segmentation fault (OpenVINO 2026.0, `SigAltStackSetup` of its CPU plugin).

    Args:
        purpose: for the error.
        extra: of binseg that brings openvino.

    Raises:
        MissingExtraError: openvino isn't installed.
    """
    openvino = import_openvino(purpose, extra=extra)
    if not _CORES:
        _CORES.append(openvino.Core())
    return _CORES[0]


def import_openvino(purpose: str, *, extra: str = "openvino") -> Any:
    """Import openvino without its telemetry.

    Importing it sends an event to Google Analytics, from a process forked for that, unless the user
    has declined. Predicting images is nobody else's business: openvino falls back to a stub where
    its telemetry package is missing, and so it is kept from finding it.

    Args:
        purpose: for the error.
        extra: of binseg that brings it.

    Raises:
        MissingExtraError: openvino isn't installed.
    """
    name = "openvino_telemetry"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        import openvino
    except ModuleNotFoundError as problem:
        if problem.name != "openvino":
            raise
        raise MissingExtraError("openvino", extra=extra, purpose=purpose) from None
    finally:
        if hidden:
            del sys.modules[name]
    return openvino
