"""The network alone as ONNX: normalised inputs to logits, for binseg's own runtimes."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from binseg.errors import MissingExtraError
from binseg.structures import Preprocessing

__all__ = ["OPSET", "core_onnx", "require", "to_onnx"]

OPSET = 18


def core_onnx(network: nn.Module, preprocessing: Preprocessing) -> bytes:
    """Export a network for inputs of its own size, in batches of any number.

    Args:
        network: in float32, on the CPU.
        preprocessing: says size and channels.

    Returns:
        One ONNX file: `inputs` (N, C, H, W) to `logits` (N, 1, H, W).

    Raises:
        MissingExtraError: onnx isn't installed.
    """
    example = torch.zeros(2, preprocessing.channels, preprocessing.height, preprocessing.width)
    return to_onnx(
        network,
        example,
        names=("inputs", "logits"),
        dynamic={"inputs": {0: "num"}, "logits": {0: "num"}},
    )


def to_onnx(
    module: nn.Module,
    example: torch.Tensor,
    *,
    names: tuple[str, str],
    dynamic: dict[str, dict[int, str]],
) -> bytes:
    """Trace a module into one ONNX file, weights included.

    torch's tracing exporter is used where it can: its newer one takes some twenty times as long.
    What tracing loses (branches that depend on sizes) is looked for afterwards, by proofs at other
    sizes.
    """
    require("onnx")
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")  # both exporters warn of their own inner workings
        try:
            torch.onnx.export(
                module.eval(),
                (example,),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_axes=dynamic,
                opset_version=OPSET,
                do_constant_folding=True,
            )
        except torch.onnx.errors.OnnxExporterError:
            return _by_capture(module, example, names=names, dynamic=dynamic[names[0]])
    return buffer.getvalue()


def _by_capture(
    module: nn.Module, example: torch.Tensor, *, names: tuple[str, str], dynamic: dict[int, str]
) -> bytes:
    """Use torch's newer exporter, for operators that the tracing one lacks (adaptive pooling)."""
    require("onnxscript")
    program = torch.onnx.export(
        module.eval(),
        (example,),
        dynamo=True,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_shapes=(
            {axis: torch.export.Dim(name, min=1, max=65536) for axis, name in dynamic.items()},
        ),
        verbose=False,
    )
    assert program is not None
    written: bytes = program.model_proto.SerializeToString()
    return written


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's log to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def require(package: str) -> Any:
    """Import a package of the extra `export`, or say how to install it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as problem:
        if problem.name != package:
            raise
        raise MissingExtraError(package, extra="export", purpose="exporting a model") from None
