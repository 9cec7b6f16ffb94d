"""What the runtimes other than torch share: the network in a bundle, and how many threads."""

import os

import numpy as np
from jaxtyping import Float32

from binseg.errors import BundleError
from binseg.packaging import NETWORK, NETWORK_INT8, Bundle

__all__ = ["checked_logits", "exported_network", "num_threads"]


def exported_network(bundle: Bundle, precision: str) -> bytes:
    """The ONNX file of a bundle for a precision.

    Raises:
        BundleError: nobody exported it into the bundle.
    """
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
    """Take the one map of each input out of a network's output, which must be of its size.

    Raises:
        BundleError: the network gave another shape.
    """
    num, _, height, width = inputs_NCHW.shape
    if logits.shape != (num, 1, height, width):
        raise BundleError(
            f"the exported network gives {logits.shape} for inputs of {inputs_NCHW.shape}; it is "
            "not the model's, export it again"
        )
    return np.array(logits[:, 0], np.float32)


def num_threads() -> int:
    """Cores that this process may use, or as many as OMP_NUM_THREADS says, as torch counts."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    # Runtimes count the machine's cores, which under taskset or in a container aren't all ours.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
