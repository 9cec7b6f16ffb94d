"""Only networks as our exporter writes them are opened; the package `onnx` is the referee."""

import io
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto as Model
from onnx import TensorProto, checker, helper, load_from_string, numpy_helper

from binseg.errors import BundleError
from binseg.inference.runtimes import checked_logits
from binseg.models import DECODERS, ENCODERS, create_model
from binseg.models.create import resolve_options
from binseg.packaging import NETWORK, Card, Reference, read_bundle, write_bundle
from binseg.packaging.network_check import (
    IR_LAYERS,
    ONNX_OPERATORS,
    Port,
    check_ir,
    check_onnx,
)
from binseg.packaging.networks import compile_openvino, ir_with_facts, onnx_session, open_file
from binseg.packaging.raw_pixels import (
    Pixels,
    RawPixels,
    core_onnx,
    example_size,
    quantise,
    to_onnx,
)
from binseg.types import Intensity, Preprocessing, ResizeMode

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

SHAPE = Preprocessing(height=32, width=32)


def small(decoder: str, encoder: str) -> torch.nn.Module:
    options = resolve_options(decoder, encoder)
    narrow = {name: 4 for name in ("width", "decoder_width") if name in options}
    return create_model(decoder, encoder=encoder, **narrow).eval()  # type: ignore[arg-type]


def parts_of_ir(data: bytes) -> tuple[bytes, bytes]:
    with zipfile.ZipFile(io.BytesIO(ir_with_facts(data, {"binseg.card": '{"a": "<ä & b>"}'}))) as z:
        return z.read("model.xml"), z.read("model.bin")


@pytest.fixture(scope="module")
def network() -> bytes:
    """A small network of ours."""
    return core_onnx(small("unet", "resnet_small"), SHAPE)


def exports() -> Iterator[bytes]:
    """Every decoder and every encoder, every kind of preprocessing, in floats and 8-bit."""
    tiles = Preprocessing(height=64, width=64, resize="tile")
    pairs = [(decoder, "unet") for decoder in DECODERS] + [("mlp", "mit_b0"), ("psp", "resnet18")]
    pairs += [("unet", encoder) for encoder in ENCODERS]
    for decoder, encoder in dict.fromkeys(pairs):
        model = small(decoder, encoder)
        yield core_onnx(model, tiles)
    model = small("unet", "resnet_small")
    yield quantise(core_onnx(model, SHAPE), [np.ones((1, 3, 32, 32), np.float32)], name="inputs")
    modes: tuple[tuple[ResizeMode, float], ...] = (
        ("stretch", 1.0), ("letterbox", 1.0), ("tile", 1.0), ("tile", 0.5),
    )  # fmt: skip
    kinds: tuple[tuple[Pixels, Intensity], ...] = (("uint8", "dtype"), ("float32", "percentile"))
    for resize, scale in modes:
        for pixels, intensity in kinds:
            shape = Preprocessing(
                height=32, width=32, resize=resize, scale=scale, intensity=intensity
            )
            raw = RawPixels(model, shape, temperature=1.3, pixels=pixels).eval()
            example = torch.zeros(2, *example_size(model, shape), 3, dtype=getattr(torch, pixels))
            names, axes = ("pixels", "probability"), {0: "num", 1: "height", 2: "width"}
            data = to_onnx(raw, example, names=names, dynamic=dict.fromkeys(names, axes))
            yield data
    image = np.full((1, 40, 40, 3), 7, np.float32)
    yield quantise(data, [image], name="pixels")


@pytest.mark.slow
def test_the_lists_are_what_our_exports_hold() -> None:
    """No operator and no layer more or less than in the exports of all that we can build."""
    operators, layers, files = set[str](), set[str](), list[tuple[bytes, bytes]]()
    made = list(exports())
    for data in made:
        operators |= {node.op_type for node in load_from_string(data).graph.node}
        network, weights = parts_of_ir(data)
        layers |= set(re.findall(r'<layer [^>]*type="(\w+)"', network.decode()))
        files.append((network, weights))
    assert operators == ONNX_OPERATORS
    assert layers == IR_LAYERS
    for data, (network, weights) in zip(made, files, strict=True):
        check_onnx(data, name="x")
        check_ir(network, weights, name="x")


def test_what_passes_is_told_as_onnx_tells_it(network: bytes) -> None:
    """Name, type and sizes of the input and the output."""
    given, made = check_onnx(network, name="x")
    assert given == Port(name="inputs", type="float32", shape=(None, 3, 32, 32))
    assert (made.name, made.type, len(made.shape)) == ("logits", "float32", 4)
    given, made = check_ir(*parts_of_ir(network), name="x")
    assert (given.type, given.shape) == ("float32", (None, 3, 32, 32))
    assert (made.type, made.shape[1:]) == ("float32", (1, 32, 32))


def external(model: Model) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "token.txt"


def external_quietly(model: Model) -> None:
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "token.txt"


def external_constant(model: Model) -> None:
    value = numpy_helper.from_array(np.zeros(4, np.float32), "c")
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    entry = value.external_data.add()
    entry.key, entry.value = "location", "token.txt"
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))


def subgraph(model: Model) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("body", model.graph))


def subgraphs(model: Model) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("bodies", [model.graph]))


def renamed(operator: str, domain: str = "") -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.graph.node[0].op_type, model.graph.node[0].domain = operator, domain

    change.__qualname__ = f"renamed-{operator}-{domain}"
    return change


def function(model: Model) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("d", "Relu", ["x"], ["y"], nodes, opsets))


def training(model: Model) -> None:
    model.training_info.add()


def sparse(model: Model) -> None:
    model.graph.sparse_initializer.add()


def second_input(model: Model) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", 1, [1]))


def second_output(model: Model) -> None:
    model.graph.output.append(model.graph.output[0])


def boastful(model: Model) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def texts(model: Model) -> None:
    text = helper.make_tensor("t", TensorProto.STRING, [1], [b"x"])  # type: ignore[list-item]
    model.graph.initializer.append(text)


@pytest.mark.parametrize(
    "change",
    [
        external, external_quietly, external_constant, subgraph, subgraphs, function, training,
        sparse, second_input, second_output, boastful, texts, renamed("Loop"), renamed("If"),
        renamed("Scan"), renamed("Conv", "com.microsoft"), renamed("EPContext", "com.microsoft"),
        renamed("RandomNormal"), renamed(""),
    ],
    ids=lambda change: change.__qualname__,
)  # fmt: skip
def test_what_we_never_write_is_never_opened(
    network: bytes, change: Callable[[Model], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in one line, before a runtime has seen a byte of it."""
    model = load_from_string(network)
    change(model)
    data = model.SerializeToString()
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    monkeypatch.setattr("openvino.Core.read_model", None)
    doors: tuple[Callable[..., object], ...] = (
        check_onnx, onnx_session, partial(compile_openvino, precision="fp32"),
    )  # fmt: skip
    for opens in doors:
        with pytest.raises(BundleError, match="some: not a network that binseg exp") as caught:
            opens(data, name="some")
        assert str(caught.value).isprintable()


def test_files_that_readers_may_read_in_two_ways_are_refused(network: bytes) -> None:
    """Two models in one (protobuf merges them), cuts, and bytes behind the end."""
    for data in (network + network, network[:-1], network + b"\0", b"", b"PK\x03\x04", b"\x80\x04"):
        with pytest.raises(BundleError, match="not a network"):
            check_onnx(data, name="x")


def test_damaged_networks_pass_only_where_they_are_harmless(network: bytes) -> None:
    """Whatever the wall lets through of 3,000 damaged files, onnx reads as harmless, too."""
    source, passed = random.Random(0), 0
    head = network[:4000]
    for _ in range(3000):
        data = bytearray(head if source.random() < 0.2 else network)
        for _ in range(source.choice((1, 1, 2, 8))):
            at = source.randrange(min(len(data), 6000))
            data[at : at + source.choice((0, 1, 1, 2))] = source.randbytes(source.choice((0, 1, 2)))
        try:
            given, _ = check_onnx(bytes(data), name="x")
        except BundleError:
            continue
        model = load_from_string(bytes(data))
        passed += 1
        assert [one.name for one in model.graph.input] == [given.name]
        assert {node.op_type for node in model.graph.node} <= ONNX_OPERATORS
        assert not any(node.domain for node in model.graph.node)
        tensors = [*model.graph.initializer]
        for node in model.graph.node:
            assert not any(one.HasField("g") or one.graphs for one in node.attribute)
            tensors += [one.t for one in node.attribute if one.HasField("t")]
        assert not any(one.external_data or one.data_location for one in tensors)
    assert passed > 100


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('type="Convolution"', 'type="Loop"'),
        ('type="Convolution"', 'type="TensorIterator"'),
        ('type="Convolution" version="opset1"', 'type="Convolution" version="extension"'),
        ("<output>", "<body /><output>"),
        ('<?xml version="1.0"?>', '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "b">]>'),
        ('<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-7"?>'),
        ('offset="0"', 'offset="99999999999"'),
        ('offset="0"', 'offset="-8"'),
        ('offset="0" size="', 'offset="0" size="9'),
        ('element_type="f32" shape="', 'element_type="f32" shape="1099511627776, '),
        ("<net ", "<nets "),
        ("</net>", ""),
    ],
)
def test_openvinos_form_has_the_same_wall(network: bytes, old: str, new: str) -> None:
    """Loops, extensions, entities, numbers outside of the file: refused in one line."""
    text, weights = parts_of_ir(network)
    changed = text.decode().replace(old, new, 1)
    assert changed != text.decode()
    with pytest.raises(BundleError, match="not a network"):
        check_ir(changed.encode(), weights, name="x")


def bundle_with(folder: Path, card: Card, data: bytes) -> Path:
    """A bundle whose hashes and id fit its network, whoever made that."""
    shape = card.preprocessing
    reference = Reference(
        input_NHWC=np.zeros((1, shape.height, shape.width, 3), np.uint8),
        probability_NHW=np.zeros((1, shape.height, shape.width), np.float32),
    )
    weights = {"a": np.zeros(1, np.float32)}
    extra = {NETWORK: data}
    return write_bundle(folder, card=card, weights=weights, reference=reference, extra=extra).path


def test_a_bundles_network_takes_what_its_card_says(
    network: bytes, tmp_path: Path, bench: object
) -> None:
    """Another size, another input and a file of secrets are refused; the right one is read."""
    card = bench.card(preprocessing=SHAPE)  # type: ignore[attr-defined]
    assert read_bundle(bundle_with(tmp_path / "right", card, network)).network(NETWORK) == network
    other = core_onnx(small("unet", "resnet_small"), Preprocessing(height=64, width=32))
    with pytest.raises(BundleError, match="isn't what the card says"):
        read_bundle(bundle_with(tmp_path / "size", card, other)).network(NETWORK)
    model = load_from_string(network)
    external(model)
    evil = bundle_with(tmp_path / "evil", card, model.SerializeToString())
    with pytest.raises(BundleError, match="which binseg never writes"):
        read_bundle(evil).network(NETWORK)


def test_a_network_of_another_output_is_told() -> None:
    """What is computed must be one map of each input, of its size."""
    inputs = np.zeros((2, 3, 8, 6), np.float32)
    assert checked_logits(np.ones((2, 1, 8, 6), np.float32), inputs).shape == (2, 8, 6)
    for shape in ((2, 1, 4, 3), (2, 2, 8, 6), (1, 1, 8, 6), (2, 8, 6)):
        with pytest.raises(BundleError, match="export it again"):
            checked_logits(np.zeros(shape, np.float32), inputs)


def test_our_networks_are_sound_onnx(network: bytes) -> None:
    """The referee's own checker finds nothing either."""
    checker.check_model(load_from_string(network), full_check=True)


def test_a_changed_number_of_openvinos_form_is_noticed(network: bytes) -> None:
    """Numbers are sizes too: one that was changed made an answer 256 times as large."""
    parts = {}
    with zipfile.ZipFile(io.BytesIO(ir_with_facts(network, {}))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    weights = bytearray(parts["model.bin"])
    weights[100] ^= 1
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (parts | {"model.bin": bytes(weights)}).items():
            archive.writestr(name, content)
    with pytest.raises(BundleError, match="its network isn't the one that was exported"):
        open_file(buffer.getvalue(), "openvino", name="n.openvino.zip")
