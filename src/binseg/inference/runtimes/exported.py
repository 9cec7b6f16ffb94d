"""What the runtimes other than torch share: the network in a bundle, and how many threads."""

import os

from binseg.errors import BundleError
from binseg.packaging import NETWORK, NETWORK_INT8, Bundle

__all__ = ["exported_network", "num_threads"]


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
    return bundle.read_bytes(name)


def num_threads() -> int:
    """Cores that this process may use, or as many as OMP_NUM_THREADS says, as torch counts."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    # Runtimes count the machine's cores, which under taskset or in a container aren't all ours.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
