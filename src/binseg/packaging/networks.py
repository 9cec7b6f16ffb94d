"""Opening exported networks in ONNX Runtime and OpenVINO, on the processor.

Nothing is opened that `network_check` hasn't let through.
"""

import importlib
import sys
from typing import Any

from binseg.errors import BundleError, MissingExtraError, one_line
from binseg.packaging.network_check import check_ir, check_onnx

_CORES: list[Any] = []
"""None or one."""
_TELEMETRY = "openvino_telemetry"
_EXTRAS = {
    "onnx": ("export", "exporting a model"),
    "onnxruntime": ("onnx", "computing with ONNX Runtime"),
    "openvino": ("openvino", "computing with OpenVINO"),
    "torch": ("train", "opening a file of torch"),
}
"""Extra of binseg that brings a package, and what the package is for."""


def require(package: str) -> Any:
    """Import an optional package, openvino without its telemetry.

    Importing openvino sends an event to Google Analytics, from a process forked for that, unless
    the user has declined. Predicting images is nobody else's business: openvino falls back to a
    stub where its telemetry package is missing, and so it is kept from finding it.

    Args:
        package: onnx, onnxruntime, openvino or torch.

    Raises:
        MissingExtraError: it isn't installed.
    """
    hidden = package == "openvino" and _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as problem:
        if problem.name != package:
            raise
        extra, purpose = _EXTRAS[package]
        raise MissingExtraError(package, extra=extra, purpose=purpose) from None
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]


def openvino_core() -> Any:
    """Give the one `openvino.Core` of this process, which stays until its end.

    A Core gives the thread that makes it a stack for signals, and takes its memory back when it
    goes, also where another Core's stack has been put on top since: the next signal (Ctrl-C) is
    then a segmentation fault (OpenVINO 2026.0, `SigAltStackSetup` of its CPU plugin).

    Raises:
        MissingExtraError: openvino isn't installed.
    """
    openvino = require("openvino")
    if not _CORES:
        _CORES.append(openvino.Core())
    return _CORES[0]


def onnx_session(data: bytes, *, name: str, num_threads: int = 0) -> Any:
    """Open an ONNX file in ONNX Runtime.

    Args:
        data: the file.
        name: its name in errors.
        num_threads: of the session; 0 leaves it to the runtime.

    Raises:
        MissingExtraError: onnxruntime isn't installed.
        BundleError: no network that binseg exports, or onnxruntime can't read it.
    """
    onnxruntime = require("onnxruntime")
    check_onnx(data, name=name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors alone; the rest is about its own machinery
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # noqa: BLE001  # its errors have no common parent but this
        raise _unreadable(name, "onnxruntime", problem) from None


def compile_openvino(
    data: bytes, weights: bytes | None = None, *, precision: str, name: str, **settings: object
) -> tuple[Any, str]:
    """Open a network in OpenVINO, in a stated precision: its default is bf16 where that exists.

    Args:
        data: an ONNX file, or the XML of OpenVINO's own form.
        weights: the other half of OpenVINO's own form.
        precision: bf16; anything else computes in fp32 (an int8 network as it was quantised).
        name: the network's name in errors.
        settings: further properties of the compiled model.

    Returns:
        The compiled model, and the precision that it really computes in: fp32 or bf16.

    Raises:
        MissingExtraError: openvino isn't installed.
        BundleError: no network that binseg exports, or openvino can't read it.
    """
    core = openvino_core()
    if weights is None:
        check_onnx(data, name=name)
    else:
        check_ir(data, weights, name=name)
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
    try:
        model = core.read_model(data) if weights is None else core.read_model(data, weights)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as problem:
        raise _unreadable(name, "openvino", problem) from None
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return compiled, {"f32": "fp32"}.get(used, used)


def _unreadable(name: str, runtime: str, problem: Exception) -> BundleError:
    return BundleError(
        f"{name}: {runtime} can't read the exported network ({one_line(str(problem))}); "
        "export it again"
    )
