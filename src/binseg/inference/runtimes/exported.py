"""Networks that were exported into a bundle, in ONNX Runtime and OpenVINO, on the processor."""

import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from binseg.errors import BundleError, UsageError
from binseg.packaging import NETWORK, NETWORK_INT8, Bundle
from binseg.packaging.networks import compile_openvino, onnx_session


class ExportedBackend:
    """A network that another runtime than torch computes: logits (N, 1, H, W) of (N, C, H, W)."""

    def __init__(
        self, name: str, precision: str, compute: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.name, self.precision = name, precision
        self._compute = compute

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """Compute the logits of a batch of normalised inputs."""
        return checked_logits(self._compute(inputs_NCHW), inputs_NCHW)


def onnx_backend(data: bytes, *, precision: str, name: str) -> ExportedBackend:
    """Open an ONNX file in ONNX Runtime; MissingExtraError, or BundleError if it can't be read."""
    session = onnx_session(data, name=name, num_threads=num_threads())
    return ExportedBackend(
        "onnxruntime cpu", precision, lambda inputs: session.run(None, {"inputs": inputs})[0]
    )


def openvino_backend(data: bytes, *, precision: str, name: str) -> ExportedBackend:
    """Open a network in OpenVINO; raises as `onnx_backend`, and UsageError for bf16 without it."""
    compiled, used = compile_openvino(
        data,
        precision=precision,
        name=name,
        PERFORMANCE_HINT="LATENCY",
        INFERENCE_NUM_THREADS=num_threads(),
    )
    if precision == "bf16" and used != "bf16":
        raise UsageError("this processor doesn't compute in bf16 with openvino; take fp32")
    request = compiled.create_infer_request()
    return ExportedBackend(
        "openvino cpu", precision, lambda inputs: request.infer([inputs], share_inputs=True)[0]
    )


def exported_network(bundle: Bundle, precision: str) -> bytes:
    """Read the ONNX file of a bundle; a BundleError says how to export one."""
    name = NETWORK_INT8 if precision == "int8" else NETWORK
    if name not in bundle.sha256:
        more = " --int8" if precision == "int8" else ""
        raise BundleError(
            f"{bundle.path}: holds no {name}; add it with binseg export {bundle.path} --to bundle"
            f"{more}, or take --backend torch"
        )
    return bundle.network(name)


def checked_logits(
    logits: np.ndarray, inputs_NCHW: Float32[np.ndarray, "N C H W"]
) -> Float32[np.ndarray, "N H W"]:
    """Take the one map of each input out of a network's output, which must be of its size."""
    num, _, height, width = inputs_NCHW.shape
    if logits.shape != (num, 1, height, width):
        raise BundleError(
            f"the exported network gives {logits.shape} for inputs of {inputs_NCHW.shape}; it is "
            "not the model's, export it again"
        )
    return np.array(logits[:, 0], np.float32)


def num_threads() -> int:
    """Count the cores that this process may use; OMP_NUM_THREADS decides where it is set."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    # Runtimes count the machine's cores, which under taskset or in a container aren't all ours.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
