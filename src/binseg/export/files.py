"""One file for each runtime, with card, threshold, reference sample and proof inside.

    NAME.onnx           ONNX; onnxruntime, OpenVINO and others open it by its path
    NAME.openvino.zip   OpenVINO's own form, which is two files, stored in one zip
    NAME.pt2            torch.export; opens with torch alone

ONNX has one type for each input, so a file is for bytes or for floats. OpenVINO opens the ONNX file
too; its own form spares the conversion at each start.
"""

import base64
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Num

from binseg.errors import BundleError, UsageError
from binseg.export.core import require, to_onnx
from binseg.export.proof import Answer
from binseg.export.raw import RawPixels, example_size
from binseg.inference.runtimes.openvino import openvino_core

__all__ = ["SUFFIXES", "TARGETS", "Facts", "Made", "make_file", "open_file", "tell_input"]

TARGETS = ("onnx", "openvino", "torch")
SUFFIXES = {"onnx": ".onnx", "openvino": ".openvino.zip", "torch": ".pt2"}
PREFIX = "binseg."
_KEYS = ("card", "threshold", "input", "proof", "reference")
_DYNAMIC = {0: "num", 1: "height", 2: "width"}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file in memory, ready to be proven and then written."""

    target: str
    precision: str
    answer: Answer
    """Computes as the file will."""
    finish: Callable[[Mapping[str, str]], bytes]
    """Takes what goes into the file's metadata, and gives the file."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an exported file says about itself."""

    card: dict[str, Any]
    threshold: float
    input: dict[str, Any]
    """What it takes and gives, in words (`tell_input`)."""
    proof: dict[str, Any]
    reference_HWC: Num[np.ndarray, "H W C"]
    reference_HW: Float32[np.ndarray, "H W"]

    def as_text(self) -> dict[str, str]:
        """All of it as strings by name, which is what metadata of all runtimes holds."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, image=self.reference_HWC, probability=self.reference_HW)
        return {
            f"{PREFIX}card": json.dumps(self.card),
            f"{PREFIX}threshold": repr(self.threshold),
            f"{PREFIX}input": json.dumps(self.input),
            f"{PREFIX}proof": json.dumps(self.proof),
            f"{PREFIX}reference": base64.b64encode(buffer.getvalue()).decode("ascii"),
        }

    @classmethod
    def of_text(cls, text: Mapping[str, str], *, name: str) -> "Facts":
        """Read back what `as_text` gave.

        Raises:
            BundleError: something is missing or damaged.
        """
        try:
            data = base64.b64decode(text[f"{PREFIX}reference"])
            with np.load(io.BytesIO(data), allow_pickle=False) as reference:
                image, probability = reference["image"], reference["probability"]
            card, told, proof = (
                json.loads(text[f"{PREFIX}{key}"]) for key in ("card", "input", "proof")
            )
            threshold = float(text[f"{PREFIX}threshold"])
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as problem:
            raise _damaged(name, problem) from None
        if not all(isinstance(one, dict) for one in (card, told, proof)):
            raise _damaged(name, "its facts are of other types")
        if image.ndim != 3 or image.shape[:2] != probability.shape:
            raise _damaged(name, "its reference sample is of odd shapes")
        return cls(
            card=card,
            threshold=threshold,
            input=told,
            proof=proof,
            reference_HWC=image,
            reference_HW=probability,
        )


def tell_input(raw: RawPixels) -> dict[str, Any]:
    """What the file takes and gives, for whoever opens it without binseg."""
    shape = raw.shape
    ranges = {"uint8": [0, 255], "float32": [0, 1] if shape.intensity == "dtype" else "any"}
    how = {
        "stretch": f"resized to {shape.width}x{shape.height} inside, and back",
        "pad": f"fitted into {shape.width}x{shape.height} with its aspect kept, and back",
        "tile": "computed as a whole, not in tiles; mirrored at the edges to a multiple of 32",
    }
    return {
        "pixels": {
            "type": raw.pixels,
            "axes": "num, height, width, channels",
            "channels": shape.channels,
            "range": ranges[raw.pixels],
            "sizes": "any",
        },
        "probability": {"type": "float32", "axes": "num, height, width"},
        "how": how[shape.resize],
    }


def make_file(
    target: str,
    raw: RawPixels,
    *,
    precision: str = "fp32",
    changed: Callable[[bytes], bytes] | None = None,
) -> Made:
    """Make a file for a runtime, in memory.

    Args:
        target: onnx, openvino or torch.
        raw: the network with its preprocessing.
        precision: fp32, bf16 (openvino: how it is proven; the user's program asks for it) or int8,
            where `changed` quantises.
        changed: turns the ONNX file into another one (quantised).

    Raises:
        UsageError: another target, or a network that torch can't capture at any size.
        MissingExtraError: what the target needs isn't installed.
    """
    if target not in TARGETS:
        raise UsageError(f"there is no export {target!r}; choose one of {', '.join(TARGETS)}")
    height, width = example_size(raw.network, raw.shape)
    example = torch.zeros(2, height, width, raw.shape.channels, dtype=getattr(torch, raw.pixels))
    if target == "torch":
        return _torch(raw, example)
    data = to_onnx(
        raw,
        example,
        names=("pixels", "probability"),
        dynamic={"pixels": _DYNAMIC, "probability": _DYNAMIC},
    )
    if changed is not None:
        data = changed(data)
    if target == "onnx":
        return Made(
            target=target,
            precision=precision,
            answer=_run_onnx(data),
            finish=lambda text: _with_metadata(data, text),
        )
    answer, used = _run_openvino(_core().read_model(data), precision)
    return Made(
        target=target,
        precision="int8" if precision == "int8" else used,
        answer=answer,
        finish=lambda text: _zip_of_ir(data, text),
    )


def _with_metadata(data: bytes, text: Mapping[str, str]) -> bytes:
    onnx = require("onnx")
    model = onnx.load_from_string(data)
    for key, value in text.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.producer_name = "binseg"
    written: bytes = model.SerializeToString()
    return written


def _run_onnx(data: bytes) -> Answer:
    session = require("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])

    def answer(pixels_HWC: Num[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        pixels_1HWC = np.ascontiguousarray(pixels_HWC[None])
        probability: np.ndarray = session.run(None, {"pixels": pixels_1HWC})[0][0]
        return probability

    return answer


def _core() -> Any:
    return openvino_core("exporting a model", extra="export")


def _run_openvino(model: Any, precision: str) -> tuple[Answer, str]:
    """What computes, and the precision that it really computes in."""
    # OpenVINO takes bf16 by default where the processor has it: the precision is always stated.
    hint = "bf16" if precision == "bf16" else "f32"
    compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()

    def answer(pixels_HWC: Num[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        return np.array(compiled(np.ascontiguousarray(pixels_HWC[None]))[0][0])

    return answer, {"f32": "fp32"}.get(used, used)


def _zip_of_ir(data: bytes, text: Mapping[str, str]) -> bytes:
    openvino = require("openvino")
    model = _core().read_model(data)
    for key, value in text.items():
        model.set_rt_info(value, key.split("."))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        parts = {
            "model.xml": path.read_bytes(),
            "model.bin": path.with_suffix(".bin").read_bytes(),
            "metadata.json": json.dumps(dict(text)).encode(),
        }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def _torch(raw: RawPixels, example: torch.Tensor) -> Made:
    # Below this the scaled image would be one pixel, which torch.export takes for a constant.
    least = 2 if raw.shape.scale >= 1 else int(2 / raw.shape.scale) + 1
    sides = {
        axis: torch.export.Dim(name, min=1 if axis == 0 else least, max=65536)
        for axis, name in _DYNAMIC.items()
    }
    try:
        program = torch.export.export(
            raw.eval(),
            (example,),
            dynamic_shapes=(sides,),
            # Sizes of maps are compared by rules (halves of multiples of 32) that are always true
            # and that torch can't prove: it checks them when the program runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except torch._dynamo.exc.UserError as problem:
        reason = " ".join(str(problem).split())[:120]
        raise UsageError(
            f"torch.export can't capture this network for any size ({reason}...); take --to onnx"
        ) from None

    def finish(text: Mapping[str, str]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(text))
        return buffer.getvalue()

    return Made(target="torch", precision="fp32", answer=_run_program(program), finish=finish)


def _run_program(program: Any) -> Answer:
    module = program.module()

    def answer(pixels_HWC: Num[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        with torch.inference_mode():
            result = module(torch.from_numpy(np.array(pixels_HWC[None], order="C")))
        probability: np.ndarray = result[0].numpy()
        return probability

    return answer


def open_file(data: bytes, *, name: str) -> tuple[Answer, Facts, str]:
    """Open an exported file as its runtime does.

    A `.pt2` file is opened by torch, which may unpickle what is in it: open only your own.

    Args:
        data: the file.
        name: what errors call it.

    Returns:
        What computes, what the file says about itself, and its target.

    Raises:
        BundleError: no file that binseg exported.
        MissingExtraError: its runtime isn't installed.
    """
    if data[:2] != b"PK":
        return (*_open_onnx(data, name), "onnx")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise _damaged(name, "it holds packed files")
            if "model.xml" not in archive.namelist():
                return (*_open_program(data, name), "torch")
            parts = {one: archive.read(one) for one in ("model.xml", "model.bin", "metadata.json")}
        text = json.loads(parts["metadata.json"])
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as problem:
        raise _damaged(name, problem) from None
    facts = Facts.of_text(text, name=name)
    openvino = require("openvino")
    try:
        weights = openvino.Tensor(np.frombuffer(parts["model.bin"], np.uint8))
        model = _core().read_model(parts["model.xml"], weights)
        answer, _ = _run_openvino(model, str(facts.proof.get("precision")))
    except RuntimeError as problem:
        raise _damaged(name, problem) from None
    return answer, facts, "openvino"


def _open_onnx(data: bytes, name: str) -> tuple[Answer, Facts]:
    onnxruntime = require("onnxruntime")
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as problem:  # noqa: BLE001  # onnxruntime raises what it likes on bad bytes
        raise _damaged(name, problem) from None
    facts = Facts.of_text(session.get_modelmeta().custom_metadata_map, name=name)
    return _run_onnx(data), facts


def _open_program(data: bytes, name: str) -> tuple[Answer, Facts]:
    require("torch")
    text: dict[str, Any] = {f"{PREFIX}{key}": "" for key in _KEYS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of how it stores its own files
            program = torch.export.load(io.BytesIO(data), extra_files=text)
    except (RuntimeError, ValueError, KeyError, AssertionError) as problem:
        raise _damaged(name, problem) from None
    decoded = {
        key: value.decode() if isinstance(value, bytes) else value for key, value in text.items()
    }
    return _run_program(program), Facts.of_text(decoded, name=name)


def _damaged(name: str, problem: object) -> BundleError:
    reason = " ".join(str(problem).split())[:200]
    return BundleError(f"{name}: not exported by binseg, or damaged ({reason})")
