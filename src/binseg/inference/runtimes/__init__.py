"""Runtimes behind one protocol: a batch of arrays in, logits out; the one door to torch.

`BACKENDS` says which there are. `auto` takes the fastest runtime that is installed and was proven
to answer like torch when the network was exported into the bundle; torch where there is none.
"""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from binseg.errors import BundleError, MissingExtraError, UsageError, suggest
from binseg.packaging import PROOFS, Bundle

__all__ = [
    "BACKENDS",
    "DEVICES",
    "PRECISIONS",
    "Backend",
    "candidates",
    "computes_bf16",
    "open_backend",
    "proofs_of",
]

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "int8")
_BY_SPEED = (
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
)
"""What auto tries before torch; int8 is the user's to choose, for it keeps less of the answer."""
_AUTO_AGREEMENT = 0.999
"""IoU of its masks with those of fp32 that a lower precision must have shown to be taken."""
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
    """Open a bundle's model in a runtime.

    Args:
        bundle: the model.
        name: a name in `BACKENDS`, or auto (the first of `candidates`).
        device: auto (cuda where there is one), cpu or cuda.
        precision: fp32, bf16, int8 or auto: fp32, in which a bundle's threshold and scores were
            taken, unless `name` is auto as well and bf16 was proven to give the same masks.

    Raises:
        UsageError: an unknown name, or a device that isn't there.
        MissingExtraError: the runtime isn't installed.
        BundleError: the weights don't fit the card's architecture.
    """
    _check_choice(name, ("auto", *BACKENDS), what="backend")
    name, precision = candidates(bundle, name=name, device=device, precision=precision)[0]
    return BACKENDS[name](bundle, device, precision)


def candidates(
    bundle: Bundle, *, name: str = "auto", device: str = "auto", precision: str = "auto"
) -> list[tuple[str, str]]:
    """Runtime and precision, in the order in which they are to be tried; at least one.

    Raises:
        UsageError: an unknown name, device or precision.
        BundleError: the bundle's proofs are damaged.
    """
    _check_choice(name, ("auto", *BACKENDS), what="backend")
    _check_choice(device, DEVICES, what="device")
    _check_choice(precision, PRECISIONS, what="precision")
    if name != "auto":
        return [(name, "fp32" if precision == "auto" else precision)]
    found: list[tuple[str, str]] = []
    if device == "cpu" or (device == "auto" and not _has_gpu()):
        found = [one for one in _proven(bundle, precision) if find_spec(one[0]) is not None]
    if not found or find_spec("torch") is not None:
        found.append(("torch", "fp32" if precision == "auto" else precision))
    return found


def _proven(bundle: Bundle, precision: str) -> list[tuple[str, str]]:
    """The runtimes by speed that were proven on this model, of a precision."""
    proofs = proofs_of(bundle)
    order = [*_BY_SPEED, ("openvino", "int8"), ("onnxruntime", "int8")]
    found = []
    for runtime, kind in order:
        agreement = proofs.get(f"{runtime} {kind}")
        if agreement is None:
            continue
        if precision == "auto":
            if kind == "int8" or (kind == "bf16" and not computes_bf16()):
                continue
            if kind == "bf16" and agreement < _AUTO_AGREEMENT:
                continue
        elif kind != precision:
            continue
        found.append((runtime, kind))
    return found


def proofs_of(bundle: Bundle) -> dict[str, float]:
    """Agreement of masks by runtime and precision ("openvino bf16"), of those that were proven.

    Raises:
        BundleError: the list is damaged.
    """
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
    """Whether the processor multiplies bf16 in hardware; elsewhere it is slower than fp32."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return bool(_BF16_FLAGS & set(flags.split()))
    return False


def _has_gpu() -> bool:
    """Whether an NVIDIA driver is there and torch might use it; importing torch would take long."""
    driver = Path("/proc/driver/nvidia/version").exists() or os.name == "nt"
    return driver and find_spec("torch") is not None


def _open_torch(bundle: Bundle, device: str, precision: str) -> Backend:
    return _torch(bundle, device, precision, compiled=False)


def _open_torch_compile(bundle: Bundle, device: str, precision: str) -> Backend:
    return _torch(bundle, device, precision, compiled=True)


def _torch(bundle: Bundle, device: str, precision: str, *, compiled: bool) -> Backend:
    try:
        from binseg.inference.runtimes.torch_backend import open_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(
            "torch", extra="train", purpose="predicting with this bundle"
        ) from None
    if precision == "int8":
        raise UsageError("torch doesn't compute in int8 here; take --backend openvino")
    return open_torch(bundle, device=device, precision=precision, compiled=compiled)


def _open_onnxruntime(bundle: Bundle, device: str, precision: str) -> Backend:
    from binseg.inference.runtimes.onnx_backend import open_onnxruntime

    return open_onnxruntime(bundle, device=device, precision=precision)


def _open_openvino(bundle: Bundle, device: str, precision: str) -> Backend:
    from binseg.inference.runtimes.openvino_backend import open_openvino

    return open_openvino(bundle, device=device, precision=precision)


BACKENDS: dict[str, Callable[[Bundle, str, str], Backend]] = {
    "torch": _open_torch,
    "torch-compile": _open_torch_compile,
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}


def _check_choice(value: str, choices: tuple[str, ...], *, what: str) -> None:
    if value in choices:
        return
    raise UsageError(f"there is no {what} {value!r}: {suggest(value, choices)}")
