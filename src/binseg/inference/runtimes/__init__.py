"""Runtimes behind one protocol: a batch of arrays in, logits out; the one door to torch.

`BACKENDS` lists them. `auto` takes the fastest runtime that is installed and was proven
to answer like torch when the network was exported into the bundle; torch where there is none.
"""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from binseg.errors import BundleError, UsageError, needing, suggest
from binseg.packaging import NETWORK, NETWORK_INT8, PROOFS, Bundle
from binseg.packaging.networks import compile_openvino, onnx_session
from binseg.parallel import processor_facts

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "int8")
_BY_SPEED = (
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "int8"),
    ("onnxruntime", "int8"),
)
"""Runtimes that are tried before torch; int8 answers less exactly, and is the user's to choose."""
_AUTO_AGREEMENT = 0.999  # IoU with masks of fp32 that a lower precision must have shown to be taken
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@runtime_checkable
class Backend(Protocol):
    """Something that computes a model's logits and knows nothing of images."""

    @property
    def name(self) -> str:
        """The runtime and where it runs ("torch cpu")."""

    @property
    def precision(self) -> str:
        """The number format that it really computes in ("fp32", "bf16")."""

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """The logits of a batch of normalised inputs."""


def open_backend(
    bundle: Bundle, *, name: str = "auto", device: str = "auto", precision: str = "auto"
) -> Backend:
    """Open a bundle's model in a runtime of `BACKENDS`, or the first of `candidates`."""
    name, precision = candidates(bundle, name=name, device=device, precision=precision)[0]
    return BACKENDS[name](bundle, device, precision)


def candidates(
    bundle: Bundle, *, name: str = "auto", device: str = "auto", precision: str = "auto"
) -> list[tuple[str, str]]:
    """Runtimes and precisions in the order to be tried; raises UsageError and BundleError."""
    for what, value, known in (
        ("backend", name, ("auto", *BACKENDS)),
        ("device", device, DEVICES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise UsageError(f"there is no {what} {value!r}: {suggest(value, known)}")
    if name != "auto":
        return [(name, "fp32" if precision == "auto" else precision)]
    found: list[tuple[str, str]] = []
    if device == "cpu" or (device == "auto" and not _has_gpu()):
        found = [one for one in _proven(bundle, precision) if find_spec(one[0]) is not None]
    if not found or find_spec("torch") is not None:
        found.append(("torch", "fp32" if precision == "auto" else precision))
    return found


def _proven(bundle: Bundle, precision: str) -> list[tuple[str, str]]:
    def is_wanted(kind: str, agreement: float) -> bool:
        if precision != "auto" or kind != "bf16":
            return kind == ("fp32" if precision == "auto" else precision)
        return agreement >= _AUTO_AGREEMENT and computes_bf16()

    proofs = proofs_of(bundle)
    shown = [(one, proofs.get(" ".join(one))) for one in _BY_SPEED]
    return [one for one, iou in shown if iou is not None and is_wanted(one[1], iou)]


def proofs_of(bundle: Bundle) -> dict[str, float]:
    """Agreement of masks by runtime and precision ("openvino bf16"), as proven; or BundleError."""
    if PROOFS not in bundle.sha256:
        return {}
    try:
        found = json.loads(bundle.read_bytes(PROOFS))
        return {
            str(name): float(proof["agreement"])
            for name, proof in found.items()
            if proof["passed"] is True
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BundleError(f"{bundle.path}: {PROOFS} is damaged; export the model again") from None


def computes_bf16() -> bool:
    """Tell whether the processor multiplies bf16 in hardware; elsewhere it is slower than fp32."""
    known = processor_facts()
    flags = known.get("flags") or known.get("features", "")
    return not _BF16_FLAGS.isdisjoint(flags.split())


def _has_gpu() -> bool:
    """Tell whether torch might use an NVIDIA driver; importing torch would take long."""
    driver = Path("/proc/driver/nvidia/version").exists() or os.name == "nt"
    return driver and find_spec("torch") is not None


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


def _torch(bundle: Bundle, device: str, precision: str) -> Backend:
    with needing("torch", extra="train", purpose="predicting with this bundle"):
        from binseg.inference.runtimes.torch import open_torch
    if precision == "int8":
        raise UsageError("torch doesn't compute in int8 here; take --backend openvino")
    return open_torch(bundle, device=device, precision=precision)


def _onnxruntime(bundle: Bundle, device: str, precision: str) -> Backend:
    if device in {"cuda", "mps"} or precision == "bf16":
        raise UsageError(
            f"onnxruntime computes on the processor in fp32 or int8 here, not {precision} on "
            f"{device}; take --backend torch or openvino"
        )
    network = exported_network(bundle, precision)
    return onnx_backend(network, precision=precision, name=str(bundle.path))


def _openvino(bundle: Bundle, device: str, precision: str) -> Backend:
    if device in {"cuda", "mps"}:
        told = "openvino computes on the processor here; take --backend torch for"
        raise UsageError(f"{told} {device}")
    network = exported_network(bundle, precision)
    return openvino_backend(network, precision=precision, name=str(bundle.path))


BACKENDS: dict[str, Callable[[Bundle, str, str], Backend]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
