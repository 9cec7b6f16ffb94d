"""Runtimes behind one protocol: a batch of arrays in, logits out; the one door to torch.

`BACKENDS` says which there are. `auto` takes the fastest runtime that is installed and was proven
to answer like torch when the network was exported into the bundle; torch where there is none.
"""

import difflib
import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from binseg.bundle import PROOFS, Bundle
from binseg.errors import BundleError, MissingExtraError, UsageError

__all__ = ["BACKENDS", "DEVICES", "PRECISIONS", "Backend", "open_backend", "proofs_of"]

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "int8")


@runtime_checkable
class Backend(Protocol):
    """Something that computes a model's logits and knows nothing of pictures."""

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
        name: a name in `BACKENDS`, or auto.
        device: auto (cuda where there is one), cpu or cuda.
        precision: fp32, bf16 or int8; auto is fp32, because a bundle's threshold and scores were
            taken so and faster numbers are for the user to choose, not for us to slip in.

    Raises:
        UsageError: an unknown name, or a device that isn't there.
        MissingExtraError: the runtime isn't installed.
        BundleError: the weights don't fit the card's architecture.
    """
    _check_choice(name, ("auto", *BACKENDS), what="backend")
    _check_choice(device, DEVICES, what="device")
    _check_choice(precision, PRECISIONS, what="precision")
    wanted = "fp32" if precision == "auto" else precision
    if name == "auto":
        name = _fastest(bundle, device, wanted)
    return BACKENDS[name](bundle, device, wanted)


def _fastest(bundle: Bundle, device: str, precision: str) -> str:
    """The first of the runtimes, in order of their usual speed, that is there and proven."""
    if device == "cuda":
        return "torch"
    proven = proofs_of(bundle)
    for name in ("openvino", "onnxruntime"):
        if proven.get(f"{name} {precision}", False) and find_spec(name) is not None:
            return name
    return "torch"


def proofs_of(bundle: Bundle) -> dict[str, bool]:
    """Whether each runtime and precision ("openvino bf16") passed its proof at the export.

    Raises:
        BundleError: the list is damaged.
    """
    if PROOFS not in bundle.sha256:
        return {}
    try:
        found = json.loads(bundle.read_bytes(PROOFS))
        return {str(name): proof["passed"] is True for name, proof in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BundleError(f"{bundle.path}: {PROOFS} is damaged; export the model again") from None


def _open_torch(bundle: Bundle, device: str, precision: str) -> Backend:
    try:
        from binseg.backends.torch_backend import open_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(
            "torch", extra="train", purpose="predicting with this bundle"
        ) from None
    if precision == "int8":
        raise UsageError("torch doesn't compute in int8 here; take --backend openvino")
    return open_torch(bundle, device=device, precision=precision)


def _open_onnxruntime(bundle: Bundle, device: str, precision: str) -> Backend:
    from binseg.backends.onnx_backend import open_onnxruntime

    return open_onnxruntime(bundle, device=device, precision=precision)


def _open_openvino(bundle: Bundle, device: str, precision: str) -> Backend:
    from binseg.backends.openvino_backend import open_openvino

    return open_openvino(bundle, device=device, precision=precision)


BACKENDS: dict[str, Callable[[Bundle, str, str], Backend]] = {
    "torch": _open_torch,
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}


def _check_choice(value: str, choices: tuple[str, ...], *, what: str) -> None:
    if value in choices:
        return
    nearest = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise UsageError(f"there is no {what} {value!r}{hint} (choices: {', '.join(choices)})")
