"""Runtimes behind one protocol: a batch of arrays in, logits out; the one door to torch.

`BACKENDS` says which there are. `auto` takes torch, the only one so far; runtimes of exported
models join here.
"""

import difflib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from binseg.bundle import Bundle
from binseg.errors import MissingExtraError, UsageError

__all__ = ["BACKENDS", "DEVICES", "PRECISIONS", "Backend", "open_backend"]

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")


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
        precision: fp32 or bf16; auto is fp32, because a bundle's threshold and scores were
            taken so and faster numbers are for the user to choose, not for us to slip in.

    Raises:
        UsageError: an unknown name, or a device that isn't there.
        MissingExtraError: the runtime isn't installed.
        BundleError: the weights don't fit the card's architecture.
    """
    _check_choice(name, ("auto", *BACKENDS), what="backend")
    _check_choice(device, DEVICES, what="device")
    _check_choice(precision, PRECISIONS, what="precision")
    opener = BACKENDS["torch" if name == "auto" else name]
    return opener(bundle, device, "fp32" if precision == "auto" else precision)


def _open_torch(bundle: Bundle, device: str, precision: str) -> Backend:
    try:
        from binseg.backends.torch_backend import open_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(
            "torch", extra="train", purpose="predicting with this bundle"
        ) from None
    return open_torch(bundle, device=device, precision=precision)


BACKENDS: dict[str, Callable[[Bundle, str, str], Backend]] = {"torch": _open_torch}


def _check_choice(value: str, choices: tuple[str, ...], *, what: str) -> None:
    if value in choices:
        return
    nearest = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise UsageError(f"there is no {what} {value!r}{hint} (choices: {', '.join(choices)})")
