"""Making exports: the network alone for binseg's own runtimes, or one file that takes pixels."""

import io
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from binseg.errors import UsageError
from binseg.packaging import networks
from binseg.packaging.raw_pixels import RawPixels, by_torch, example_size
from binseg.progress import hushed
from binseg.types import Preprocessing

OPSET = 18
TARGETS = ("onnx", "openvino", "torch")
_DYNAMIC = {0: "num", 1: "height", 2: "width"}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file that `compute`s in memory, to be proven, and that `finish` gives with its facts."""

    target: str
    precision: str
    compute: networks.Compute
    finish: Callable[[Mapping[str, str]], bytes]


def make_file(
    target: str,
    raw: RawPixels,
    *,
    precision: str = "fp32",
    changed: Callable[[bytes], bytes] | None = None,
) -> Made:
    """Make a runtime's file in memory; `changed` quantises it. UsageError, MissingExtraError."""
    assert target in TARGETS, target
    height, width = example_size(raw.network, raw.shape)
    example = torch.zeros(2, height, width, raw.shape.channels, dtype=getattr(torch, raw.pixels))
    if target == "torch":
        return _program(raw, example)
    names = ("pixels", "probability")
    data = to_onnx(raw, example, names=names, dynamic=dict.fromkeys(names, _DYNAMIC))
    if changed is not None:
        data = changed(data)
    if target == "onnx":
        compute = networks.by_onnxruntime(networks.onnx_session(data, name="the export"))
        with_facts = networks.onnx_with_facts
    else:
        compute, used = networks.by_openvino(data, None, precision, name="the export")
        precision = "int8" if precision == "int8" else used
        with_facts = networks.ir_with_facts
    finish = partial(with_facts, data)
    return Made(target=target, precision=precision, compute=compute, finish=finish)


def _program(raw: RawPixels, example: torch.Tensor) -> Made:
    # Below this the scaled image would be one pixel, which torch.export takes for a constant.
    least = 2 if raw.shape.scale >= 1 else int(2 / raw.shape.scale) + 1
    dims = {axis: (name, least if axis else 1) for axis, name in _DYNAMIC.items()}
    sides = {axis: torch.export.Dim(x, min=low, max=65536) for axis, (x, low) in dims.items()}
    # Sizes of maps are compared by rules (halves of multiples of 32) that are always true and that
    # torch can't prove: it checks them when the program runs.
    how: dict[str, Any] = {"prefer_deferred_runtime_asserts_over_guards": True}
    try:
        program = torch.export.export(raw.eval(), (example,), dynamic_shapes=(sides,), **how)
    except torch._dynamo.exc.UserError as problem:
        reason = " ".join(str(problem).split())[:120]
        raise UsageError(
            f"torch.export can't capture this network for any size ({reason}...); take --to onnx"
        ) from None

    def finish(text: Mapping[str, str]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(text))
        return buffer.getvalue()

    compute = by_torch(program.module())
    return Made(target="torch", precision="fp32", compute=compute, finish=finish)


def describe_input(raw: RawPixels) -> dict[str, Any]:
    """Describe what the file takes and gives, for whoever opens it without binseg."""
    shape = raw.shape
    ranges = {"uint8": [0, 255], "float32": [0, 1] if shape.intensity == "dtype" else "any"}
    how = {
        "stretch": f"resized to {shape.width}x{shape.height} inside, and back",
        "letterbox": f"fitted into {shape.width}x{shape.height} with its aspect kept, and back",
        "tile": "computed as a whole, not in tiles; mirrored at the edges to a multiple of 32",
    }
    pixels = {"type": raw.pixels, "axes": "num, height, width, channels"}
    kinds = {"channels": shape.channels, "range": ranges[raw.pixels], "sizes": "any"}
    probability = {"type": "float32", "axes": "num, height, width"}
    return {"pixels": pixels | kinds, "probability": probability, "how": how[shape.resize]}


def core_onnx(network: nn.Module, preprocessing: Preprocessing) -> bytes:
    """Export `inputs` (N, C, H, W) to `logits`, tiles of any size; MissingExtraError."""
    height, width = preprocessing.height, preprocessing.width
    axes = {0: "num"}
    if preprocessing.resize == "tile":
        width += 32  # unequal, so that tracing takes neither for the other
        axes |= {2: "height", 3: "width"}
    example = torch.zeros(2, preprocessing.channels, height, width)
    names = ("inputs", "logits")
    return to_onnx(network, example, names=names, dynamic=dict.fromkeys(names, axes))


def to_onnx(
    module: nn.Module,
    example: torch.Tensor,
    *,
    names: tuple[str, str],
    dynamic: dict[str, dict[int, str]],
) -> bytes:
    """Trace a module into one ONNX file; torch's newer exporter takes twenty times as long."""
    networks.require("onnx")
    buffer = io.BytesIO()
    # It warns of its own inner workings, and of its age.
    with hushed("torch.onnx", ("", Warning), level=logging.CRITICAL):
        called: dict[str, Any] = {"input_names": [names[0]], "output_names": [names[1]]}
        how: dict[str, Any] = {"opset_version": OPSET, "do_constant_folding": True}
        target: Any = buffer  # its types know of paths alone
        how["dynamic_axes"] = dynamic
        torch.onnx.export(module.eval(), (example,), target, dynamo=False, **called, **how)
    return buffer.getvalue()


def quantise(model: bytes, samples: Sequence[np.ndarray], *, name: str) -> bytes:
    """Quantise an ONNX model's convolutions by samples of its input; MissingExtraError."""
    graph = networks.require("onnx").load_from_string(model).graph
    networks.require("onnxruntime")
    from onnxruntime import quantization

    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    left = iter([{name: sample} for sample in samples])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(left, None)

    # It advises a step that its own function does.
    with hushed("", level=logging.CRITICAL), tempfile.TemporaryDirectory() as scratch:
        before, prepared, after = (Path(scratch) / one for one in ("float", "prepared", "int8"))
        before.write_bytes(model)
        quantization.quant_pre_process(str(before), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(after),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "ConvTranspose"],
            nodes_to_exclude=[*convolutions[:1], *convolutions[-1:]],
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return after.read_bytes()
