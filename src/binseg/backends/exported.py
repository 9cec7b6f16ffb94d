"""The network in a bundle that runtimes other than torch read."""

from binseg.bundle import NETWORK, NETWORK_INT8, Bundle
from binseg.errors import BundleError

__all__ = ["exported_network"]


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
