"""The network alone as ONNX: normalised inputs to logits, for binseg's own runtimes."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from binseg.errors import MissingExtraError
from binseg.inference.runtimes.openvino import import_openvino
from binseg.types import Preprocessing

__all__ = ["OPSET", "core_onnx", "require", "to_onnx"]

OPSET = 18


def core_onnx(network: nn.Module, preprocessing: Preprocessing) -> bytes:
    """Export a network for batches of any number: of inputs of its own size, tiles of any size.

    Args:
        network: in float32, on the CPU.
        preprocessing: says size and channels.

    Returns:
        One ONNX file: `inputs` (N, C, H, W) to `logits` (N, 1, H, W).

    Raises:
        MissingExtraError: onnx isn't installed.
    """
    height, width = preprocessing.height, preprocessing.width
    axes = {0: "num"}
    if preprocessing.resize == "tile":
        width += 32  # unequal, so that tracing takes neither for the other
        axes |= {2: "height", 3: "width"}
    return to_onnx(
        network,
        torch.zeros(2, preprocessing.channels, height, width),
        names=("inputs", "logits"),
        dynamic={"inputs": axes, "logits": axes},
    )


def to_onnx(
    module: nn.Module,
    example: torch.Tensor,
    *,
    names: tuple[str, str],
    dynamic: dict[str, dict[int, str]],
) -> bytes:
    """Trace a module into one ONNX file, weights included.

    torch's tracing exporter is used: its newer one takes some twenty times as long, and puts
    weights into a file beside the model. What tracing loses (branches that depend on sizes) is
    looked for afterwards, by proofs at other sizes.
    """
    require("onnx")
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")  # it warns of its own inner workings, and of its age
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
    return buffer.getvalue()


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
    if package == "openvino":
        return import_openvino("exporting a model", extra="export")
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as problem:
        if problem.name != package:
            raise
        raise MissingExtraError(package, extra="export", purpose="exporting a model") from None
