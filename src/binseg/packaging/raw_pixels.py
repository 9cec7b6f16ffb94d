"""Preprocessing and its inverse inside the network: raw pixels of any size in, probability out.

A resize is two matrix products whose matrices are computed from the image's size inside the
graph: the triangle filter of Pillow's antialiased bilinear resize, which no runtime's own operator
equals. Behind it, the files that such a network is exported into.
"""

import io
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor, nn

from binseg.errors import UsageError
from binseg.packaging import networks
from binseg.packaging.networks import Compute, one_by_one
from binseg.progress import hushed
from binseg.transforms.preprocess import LEAST_LEFT, MOST_REDUCED
from binseg.types import Preprocessing

Pixels = Literal["uint8", "float32"]
"""Pixels that a file takes: bytes, or floats (0 to 1 where the model's `intensity` is dtype, any
numbers otherwise)."""

_STRIDE = 32  # whole images are brought to multiples of this, the coarsest grid of our networks
_PERCENTILES = (0.005, 0.995)
Size = Any  # a size, as Python knows it; a symbol or a tensor while it is traced


class RawPixels(nn.Module):
    """A network that takes images as they are.

    `forward` takes pixels (N, H, W, C) and gives the probability (N, H, W) that binseg's own
    prediction gives. A model of tiles runs over the whole image at once: it is mirrored at its
    right and lower edge to a multiple of 32, an image smaller than a tile on all sides to a tile.
    `pixels` are uint8, or float32: 0 to 1 where `intensity` is dtype, any numbers otherwise;
    UsageError for others.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        temperature: float,
        pixels: Pixels = "uint8",
    ) -> None:
        super().__init__()
        if pixels not in get_args(Pixels):
            raise UsageError(f"pixels {pixels!r}: give one of {', '.join(get_args(Pixels))}")
        self.network = network
        self.shape = preprocessing
        self.pixels = pixels
        self.temperature = temperature
        shape = (1, preprocessing.channels, 1, 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape))

    def forward(self, pixels_NHWC: Tensor) -> Tensor:
        """Give the probability of foreground, (N, H, W)."""
        image_NCHW = pixels_NHWC.permute(0, 3, 1, 2).float()
        if self.shape.intensity == "percentile":
            image_NCHW = _stretched(image_NCHW) * float(self.shape.top)
        elif self.pixels == "float32":
            image_NCHW = torch.clamp(image_NCHW, 0.0, 1.0) * float(self.shape.top)
        elif self.shape.depth > 8:
            image_NCHW = image_NCHW * (self.shape.top / 255)
        if self.shape.resize == "tile":
            return self._whole(image_NCHW)
        return self._fitted(image_NCHW)

    def _probability(self, input_NChw: Tensor) -> Tensor:
        normalised = (input_NChw / float(self.shape.top) - self.mean) / self.std
        return torch.sigmoid(self.network(normalised)[:, 0] / self.temperature)

    def _resized(self, image_NCHW: Tensor, across: Tensor, down: Tensor) -> Tensor:
        """Resize to bytes, rounding where Pillow does."""
        if self.pixels == "uint8" and self.shape.intensity == "dtype" and self.shape.depth == 8:
            # 8-bit images: along the longer side first, then the other, halves up after each.
            first = torch.floor(torch.matmul(image_NCHW, across.transpose(0, 1)) + 0.5)
            first = torch.floor(torch.matmul(down, first) + 0.5)
            other = torch.floor(torch.matmul(down, image_NCHW) + 0.5)
            other = torch.floor(torch.matmul(other, across.transpose(0, 1)) + 0.5)
            is_tall = (_number(image_NCHW.shape[2]) > _number(image_NCHW.shape[3])).float()
            return other * is_tall + first * (1 - is_tall)
        out = torch.matmul(down, torch.matmul(image_NCHW, across.transpose(0, 1)))
        return torch.round(out)

    def _fitted(self, image_NCHW: Tensor) -> Tensor:
        tall, wide = image_NCHW.shape[2], image_NCHW.shape[3]
        height, width = self.shape.height, self.shape.width
        rows = columns = None
        if self.shape.resize == "letterbox":
            factor = torch.minimum(height / _number(tall), width / _number(wide))
            rows, columns = _fit(tall, height, factor), _fit(wide, width, factor)
        by: Tensor | None = None
        if self.pixels == "uint8" and self.shape.intensity == "dtype" and self.shape.depth == 8:
            by = _reduction((tall, height, rows), (wide, width, columns))
            image_NCHW = _averaged(image_NCHW, by)
        down, up = _resizing(tall, height, rows, by)
        across, back = _resizing(wide, width, columns, by)
        return _restored(self._probability(self._resized(image_NCHW, across, down)), back, up)

    def _whole(self, image_NCHW: Tensor) -> Tensor:
        high, broad = image_NCHW.shape[2], image_NCHW.shape[3]
        scale, up, back = self.shape.scale, None, None
        if scale == 1.0:
            input_NChw = torch.round(image_NCHW)
        else:
            tall, wide = high, broad
            high = _scaled(tall, self.shape.height, scale)
            broad = _scaled(wide, self.shape.width, scale)
            down, up = _resizing(tall, high)
            across, back = _resizing(wide, broad)
            input_NChw = self._resized(image_NCHW, across, down)
        multiple, largest = multiple_of(self.network), self.shape.largest_tile
        top, from_rows = _mirrored(high, self.shape.height, multiple, largest)
        left, from_columns = _mirrored(broad, self.shape.width, multiple, largest)
        padded = input_NChw.index_select(2, from_rows).index_select(3, from_columns)
        maps_Nhw = self._probability(padded)
        maps_Nhw = maps_Nhw.index_select(1, torch.arange(high) + top)
        maps_Nhw = maps_Nhw.index_select(2, torch.arange(broad) + left)
        return maps_Nhw if up is None or back is None else _restored(maps_Nhw, back, up)


def multiple_of(network: nn.Module) -> int:
    """Give the number whose multiples the sides of a whole image are brought to."""
    strides = getattr(getattr(network, "encoder", None), "strides", (1,))
    return math.lcm(_STRIDE, strides[-1], getattr(network, "multiple", 1))


def example_size(network: nn.Module, preprocessing: Preprocessing) -> tuple[int, int]:
    """Give unequal height and width to trace with, whose maps are all larger than a pixel."""
    if preprocessing.resize != "tile":
        return 37, 53
    multiple = multiple_of(network)
    return (
        math.ceil((max(preprocessing.height, multiple) + 5) / preprocessing.scale),
        math.ceil((max(preprocessing.width, multiple) + multiple + 7) / preprocessing.scale),
    )


def _stretched(image_NCHW: Tensor) -> Tensor:
    """Bring the 0.5th to the 99.5th percentile of each channel of each image to 0 to 1."""
    ordered = torch.sort(image_NCHW.flatten(2), dim=2).values
    tall, wide = image_NCHW.shape[2], image_NCHW.shape[3]
    last = _number(tall) * _number(wide) - 1
    least, largest = ordered[:, :, :1], ordered[:, :, -1:]
    low, high = (_at(ordered, last * share, last) for share in _PERCENTILES)
    differ = low < high
    low = torch.where(differ, low, least)[..., None]
    high = torch.where(differ, high, largest)[..., None]
    span = torch.where(low < high, high - low, torch.ones(()))
    # A channel of one value becomes 0, since it equals its least.
    return torch.clamp((image_NCHW - low) / span, 0.0, 1.0)


def _at(ordered: Tensor, position: Tensor, last: Tensor) -> Tensor:
    """Interpolate the value between two places, as numpy's percentile does."""
    below = torch.floor(position)
    above = torch.minimum(below + 1, last)
    num, channels = ordered.shape[:2]
    places = (place.long().reshape(1, 1, 1).expand(num, channels, 1) for place in (below, above))
    one, other = (ordered.gather(2, place) for place in places)
    return one + (other - one) * (position - below)


def _number(size: Size) -> Tensor:
    return torch.ones(size, dtype=torch.float32).sum()


def _at_least(size: Size, least: int) -> Size:
    """Take the larger of both, whatever tracing knows the size as."""
    if isinstance(size, Tensor):
        return torch.clamp(size, min=least)
    return torch.sym_max(size, least)  # type: ignore[no-untyped-call]


def _scaled(num: Size, into: int, scale: float) -> Size:
    """Count a side's pixels at the scale of the tiles, as `geometry.scaled_size` does."""
    tile = max(1, round(into / scale))
    return _at_least((2 * num * into + tile) // (2 * tile), 1)


def _mirrored(num: Size, tile: int, multiple: int, largest: int) -> tuple[Size, Tensor]:
    """Place a side in its mirrored surroundings, as `geometry.plan` does: start and pixels."""
    tile = -(-tile // multiple) * multiple
    count = _at_least((num + multiple - 1) // multiple * multiple, tile)
    # 1 where the side is one tile, 0 where it is longer; without a branch, which tracing would fix.
    is_one = 1 - _at_least(1 - _at_least(max(tile, largest) + 1 - num, 0), 0)
    start = (count - num) // 2 * is_one
    folded = torch.remainder(torch.arange(count) - start, 2 * num)
    return start, torch.minimum(folded, 2 * num - 1 - folded)


def _fit(num: Size, size: int, factor: Tensor) -> tuple[Tensor, Tensor]:
    taken = torch.clamp(torch.round(_number(num) * factor), 1, size)
    return torch.floor((size - taken) / 2), taken


def _reduction(*sides: tuple[Size, int, tuple[Tensor, Tensor] | None]) -> Tensor:
    """Do as `preprocess.reduction`; a side is its length, the input's, and its part of it."""
    by, doubled = torch.ones(()), 1
    while doubled < MOST_REDUCED:
        fits = torch.ones(())
        for num, size, target in sides:
            taken = target[1] if target else float(size)
            fits = fits * (_number(num) >= LEAST_LEFT * 2 * doubled * taken)
        by, doubled = by + doubled * fits, 2 * doubled
    return by


def _averaged(image_NCHW: Tensor, by: Tensor) -> Tensor:
    """Give every pixel the mean of its square of `by` x `by`, in whole numbers, halves up."""
    for axis in (2, 3):
        first = torch.floor(torch.arange(image_NCHW.shape[axis], dtype=torch.float32) / by) * by
        last = torch.clamp(first + by, max=_number(image_NCHW.shape[axis])) - 1
        sums = torch.cumsum(image_NCHW, axis)
        before = sums.index_select(axis, first.long()) - image_NCHW.index_select(axis, first.long())
        sums = sums.index_select(axis, last.long()) - before
        count = last - first + 1
        image_NCHW = sums / (count[:, None] if axis == 2 else count)
    return torch.floor(image_NCHW + 0.5)


def _resizing(
    num: Size, size: Size, target: tuple[Tensor, Tensor] | None = None, by: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Make matrices (size, num) to the input and back; `by` pixels weigh as one."""
    first, taken = target or (torch.zeros(()), _number(size))
    at, centres = _centres(size) - first, _centres(num)
    inside = ((at > 0) & (at < taken)).float()
    shrunk, grown = _number(num) / taken, taken / _number(num)
    places, filled = centres, torch.ones(())
    if by is not None:
        square = torch.floor(centres / by) * by
        filled = by / (torch.clamp(square + by, max=_number(num)) - square)  # the last is cut off
        places = square + 0.5 * by
    return (
        _triangles(at * shrunk, shrunk, places, filled) * inside[:, None],
        _triangles(centres * grown, grown, at, inside),
    )


def _restored(maps_Nhw: Tensor, across: Tensor, down: Tensor) -> Tensor:
    out = torch.matmul(down, torch.matmul(maps_Nhw, across.transpose(0, 1)))
    return torch.clamp(out, 0.0, 1.0)


def _centres(num: Size) -> Tensor:
    return torch.arange(num, dtype=torch.float32) + 0.5


def _triangles(centres: Tensor, scale: Tensor, at: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Weigh each place by a triangle around each centre, wider where it shrinks; rows sum to 1."""
    support = torch.clamp(scale, min=1)
    found = torch.clamp(1 - torch.abs(at[None] - centres[:, None]) / support, min=0) * weights
    return found / torch.clamp(found.sum(dim=1, keepdim=True), min=1e-12)


def by_torch(module: Any) -> Compute:
    """Compute with a torch module that takes pixels (N, H, W, C)."""

    @torch.inference_mode()
    def run(pixels_NHWC: Num[np.ndarray, "N H W C"]) -> np.ndarray:
        probability_NHW: np.ndarray = module(torch.from_numpy(pixels_NHWC)).numpy()
        return probability_NHW

    return one_by_one(run)


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
    capture = partial(torch.export.export, prefer_deferred_runtime_asserts_over_guards=True)
    try:
        program = capture(raw.eval(), (example,), dynamic_shapes=(sides,))
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
        torch.onnx.export(
            module.eval(),
            (example,),
            cast(Any, buffer),  # its types know of paths alone
            dynamo=False,
            input_names=[names[0]],
            output_names=[names[1]],
            opset_version=OPSET,
            dynamic_axes=dynamic,
        )
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
