"""The wall before a network is opened: only such networks pass as our exporter writes.

Runtimes do what a network file says: they read weights from other files that it names, and run
loops and whole graphs inside a node. So a file is read here first, by an allow-list of messages,
fields and operators, with the standard library alone.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from binseg.errors import BundleError, one_line

_OPERATORS = (
    "Abs Add And AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv "
    "ConvTranspose CumSum DequantizeLinear Div Equal Erf Expand Flatten Floor Gather "
    "GatherElements Greater GreaterOrEqual Identity InstanceNormalization LayerNormalization Less "
    "MatMul MaxPool Min Mod Mul Neg Pad QuantizeLinear Range ReduceSum Relu Reshape Resize Round "
    "Shape Sigmoid Slice Softmax Sqrt Sub TopK Transpose Unsqueeze Where"
)
_LAYERS = (
    "Abs Add AvgPool BatchNormInference Broadcast Concat Const Convert Convolution "
    "ConvolutionBackpropData CumSum Divide Equal Erf FakeQuantize Floor FloorMod Gather "
    "GatherElements Greater GreaterEqual GroupConvolution Interpolate Less LogicalAnd MVN MatMul "
    "MaxPool Maximum Minimum Multiply Negative Pad Parameter Range ReLU ReduceSum Reshape Result "
    "Round Select ShapeOf Sigmoid Slice SoftMax Split Sqrt Squeeze Subtract TopK Transpose "
    "Unsqueeze VariadicSplit"
)
ONNX_OPERATORS = frozenset(_OPERATORS.split())
"""Operators of the networks that `exporting` makes; `tests/packaging/test_network_check.py` derives
the list from exports of all our networks."""
IR_LAYERS = frozenset(_LAYERS.split())  # layers of the same networks in OpenVINO's own form

_TYPES = {
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 6: ("int32", 4), 7: ("int64", 8),
    9: ("bool", 1), 11: ("float64", 8),
}  # fmt: skip
"""Element types of ONNX by number: name, and bytes of an element."""
_IR_TYPES = {
    "f32": ("float32", 4), "f64": ("float64", 8), "u8": ("uint8", 1), "i8": ("int8", 1),
    "i32": ("int32", 4), "i64": ("int64", 8), "boolean": ("bool", 1), "string": ("", 0),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a network."""

    name: str
    type: str
    shape: tuple[int | None, ...]  # sizes by axis; None where any is taken


_MESSAGES: dict[str, tuple[set[int], set[int], dict[int, str]]] = {
    # No functions, and nothing of training.
    "model": ({1, 2, 3, 7}, {8, 14}, {7: "graph", 8: "opset", 14: "metadata"}),
    "opset": ({1, 2}, set(), {}),
    "metadata": ({1, 2}, set(), {}),
    # No sparse tensors and no quantisation notes.
    "graph": (
        {2, 10}, {1, 5, 11, 12, 13},
        {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
    ),
    "node": ({3, 4, 6, 7}, {1, 2, 5}, {5: "attribute"}),
    # No graphs, no types and no references to attributes of a function.
    "attribute": ({1, 2, 3, 4, 5, 20}, {7, 8, 9}, {5: "tensor"}),
    # No segments, no strings, no external_data and no data_location.
    "tensor": ({2, 8, 9}, {1, 4, 5, 7, 10}, {}),
    "value": ({1, 2}, set(), {2: "type"}),
    "type": ({1}, set(), {1: "tensor type"}),
    "tensor type": ({1, 2}, set(), {2: "shape"}),
    "shape": (set(), {1}, {1: "size"}),
    "size": ({1, 2}, set(), {}),
}  # fmt: skip
"""The messages of ONNX's protobuf: numbers of the fields that we write, those that come once and
those that may come often, and the messages inside them."""
_Message = dict[int, list[Any]]
"""A message that was read: numbers, bytes and messages by the number of their field."""


def check_onnx(data: bytes, *, name: str) -> tuple[Port, Port]:
    """Tell an ONNX file's input and output; BundleError for what our exporter never writes."""
    try:
        return _read_onnx(data)
    except (ValueError, KeyError, TypeError, IndexError) as problem:
        raise _refusal(name, problem) from None


def _read_onnx(data: bytes) -> tuple[Port, Port]:
    (graph,) = _parse(memoryview(data), "model")[7]
    tensors = [*graph[5]]
    for node in graph[1]:
        operator, domain = (_text(node, number) for number in (4, 7))
        if domain or operator not in ONNX_OPERATORS:
            told = f"{domain}.{operator}" if domain else operator
            raise ValueError(f"the operator {told or '(none)'} isn't one that binseg exports")
        tensors += [tensor for attribute in node[5] for tensor in attribute[5]]
    for tensor in tensors:
        _check_tensor(tensor)
    (given,), (made,) = graph[11], graph[12]
    return _port(given), _port(made)


def check_ir(network: bytes, weights: bytes, *, name: str) -> tuple[Port, Port]:
    """Check OpenVINO's own form (XML and the numbers that it names by place) as `check_onnx`."""
    try:
        return _read_ir(network.decode("utf-8"), len(weights))
    except (ValueError, KeyError, TypeError, IndexError, ET.ParseError) as problem:
        raise _refusal(name, problem) from None


def _read_ir(text: str, num_bytes: int) -> tuple[Port, Port]:
    # Neither entities nor other encodings, which two parsers could read in two ways.
    if not text.startswith('<?xml version="1.0"?>') or "<!" in text or "<?" in text[1:]:
        raise ValueError("its XML isn't as OpenVINO writes it")
    root = ET.fromstring(text)
    _expect(root, "net", {"layers", "edges", "rt_info"})
    ports: dict[str, list[Port]] = {"Parameter": [], "Result": []}
    for layer in root.iterfind("layers/*"):
        _expect(layer, "layer", {"data", "input", "output", "rt_info"})
        kind = layer.get("type", "")
        if kind not in IR_LAYERS or not layer.get("version", "").startswith("opset"):
            raise ValueError(f"the layer {kind or '(none)'} isn't one that binseg exports")
        if kind == "Const":
            _check_const(layer, num_bytes)
        if kind in ports:
            ports[kind].append(_ir_port(layer))
    (given,), (made,) = ports["Parameter"], ports["Result"]
    return given, made


def _refusal(name: str, problem: Exception) -> BundleError:
    return BundleError(
        f"{name}: not a network that binseg exported, or damaged: "
        f"{one_line(str(problem), limit=200)}; it is not opened"
    )


def _parse(data: memoryview, kind: str) -> _Message:
    """Read a message; fields that we don't write are an error."""
    single, repeated, children = _MESSAGES[kind]
    found: _Message = defaultdict(list)
    for number, value in _fields(data):
        if number in single and found[number]:
            # Readers take the last, or merge both: no two need agree.
            raise ValueError(f"a {kind} holds field {number} twice")
        if number not in single | repeated:
            raise ValueError(f"a {kind} holds field {number}, which binseg never writes")
        if number in children and not isinstance(value, int):
            found[number].append(_parse(value, children[number]))
        else:
            found[number].append(value)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Cut a message of protobuf into numbers of fields and their values, without their meaning."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire, length = tag & 7, 0
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("no protobuf that anybody writes")
        if tag >> 32 or length > len(data) - at:
            raise ValueError("it is cut off")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("no protobuf: a number without end")


def _check_tensor(tensor: _Message) -> None:
    _, size = _TYPES[tensor[2][0]]
    claimed = math.prod(_integers(tensor[1]))
    there: float = sum(map(len, tensor[9])) / size
    there += sum(map(len, tensor[4])) / 4 + sum(map(len, tensor[10])) / 8  # floats and doubles
    there += len(_integers(tensor[5])) + len(_integers(tensor[7]))
    if claimed != there:
        raise ValueError(f"a tensor claims {claimed} numbers and holds {there:g}")


def _integers(values: list[Any]) -> list[int]:
    found = [value for value in values if isinstance(value, int)]
    for value in values:
        at = 0
        while not isinstance(value, int) and at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return found


def _text(message: _Message, number: int) -> str:
    return str(message[number][0], "utf-8") if message[number] else ""


def _port(value: _Message) -> Port:
    tensor = value[2][0][1][0]
    return Port(
        name=_text(value, 1),
        type=_TYPES[tensor[1][0]][0],
        shape=tuple(one[1][0] if one[1] else None for one in tensor[2][0][1]),
    )


def _expect(element: ET.Element, tag: str, children: set[str]) -> None:
    """Refuse another element, or one with other children (bodies of loops are such)."""
    found = {child.tag for child in element}
    if element.tag != tag or not found <= children:
        raise ValueError(f"its XML holds {', '.join(sorted(found - children)) or element.tag}")


def _check_const(layer: ET.Element, num_bytes: int) -> None:
    """Refuse a constant that lies outside the weights, or whose size isn't its shape's."""
    told = dict(layer[0].items())
    offset, size = int(told["offset"]), int(told["size"])
    _, itemsize = _IR_TYPES[told["element_type"]]
    claimed = math.prod(one or 0 for one in _ir_shape(told["shape"])) * itemsize
    if offset < 0 or size < 0 or offset + size > num_bytes or claimed != size:
        raise ValueError(f"a constant claims {claimed} bytes at {offset} of {num_bytes}")


def _ir_port(layer: ET.Element) -> Port:
    name = layer.get("name", "")
    data = layer.find("data")
    if data is not None and data.get("element_type"):
        type_, shape = data.attrib["element_type"], _ir_shape(data.attrib["shape"])
    else:
        (port,) = layer.iterfind("input/port")
        type_ = port.attrib["precision"].lower().replace("fp", "f")
        shape = tuple(None if one.text == "-1" else int(one.text or "") for one in port)
    return Port(name=name, type=_IR_TYPES[type_][0], shape=shape)


def _ir_shape(text: str) -> tuple[int | None, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(int(part) if part.isdigit() else None for part in parts)
