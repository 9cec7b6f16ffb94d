"""One file for each runtime, with card, threshold, golden sample and proof inside."""

import base64
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from binseg.bundle import Bundle
from binseg.errors import BundleError, UsageError
from binseg.export.core import require, to_onnx
from binseg.export.proof import Answer
from binseg.export.raw import RawPixels

__all__ = ["SUFFIXES", "TARGETS", "Facts", "Made", "make_file", "open_file"]

TARGETS = ("onnx", "openvino", "torch")
SUFFIXES = {"onnx": ".onnx", "openvino": ".openvino.zip", "torch": ".pt2"}
PREFIX = "binseg."
_EXAMPLE = (37, 53)
"""Height and width that a graph is traced with: odd and unequal, so that no size hides another."""


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
    proof: dict[str, Any]
    golden_HWC: UInt8[np.ndarray, "H W C"]
    golden_HW: Float32[np.ndarray, "H W"]

    def as_text(self) -> dict[str, str]:
        """All of it as strings by name, which is what metadata of all runtimes holds."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, picture=self.golden_HWC, probability=self.golden_HW)
        return {
            f"{PREFIX}card": json.dumps(self.card),
            f"{PREFIX}threshold": repr(self.threshold),
            f"{PREFIX}proof": json.dumps(self.proof),
            f"{PREFIX}golden": base64.b64encode(buffer.getvalue()).decode("ascii"),
        }

    @classmethod
    def of_text(cls, text: Mapping[str, str], *, name: str) -> "Facts":
        """Read back what `as_text` gave.

        Raises:
            BundleError: something is missing or damaged.
        """
        try:
            data = base64.b64decode(text[f"{PREFIX}golden"])
            with np.load(io.BytesIO(data), allow_pickle=False) as golden:
                picture, probability = golden["picture"], golden["probability"]
            return cls(
                card=json.loads(text[f"{PREFIX}card"]),
                threshold=float(text[f"{PREFIX}threshold"]),
                proof=json.loads(text[f"{PREFIX}proof"]),
                golden_HWC=picture,
                golden_HW=probability,
            )
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as problem:
            raise BundleError(f"{name}: not exported by binseg, or damaged ({problem})") from None


def make_file(
    target: str,
    raw: RawPixels,
    bundle: Bundle,
    *,
    precision: str = "fp32",
    changed: Callable[[bytes], bytes] | None = None,
) -> Made:
    """Make a file for a runtime, in memory.

    Args:
        target: onnx, openvino or torch.
        raw: the network with its preprocessing.
        bundle: where it comes from.
        precision: fp32; int8 where `changed` quantises; bf16 for openvino, which computes in it
            if the user's machine can.
        changed: turns the ONNX file into another one (quantised).

    Raises:
        UsageError: another target.
        MissingExtraError: what the target needs isn't installed.
    """
    if target not in TARGETS:
        raise UsageError(f"there is no export {target!r}; choose one of {', '.join(TARGETS)}")
    if target == "torch":
        return _torch(raw, bundle)
    example = torch.zeros(*_EXAMPLE, bundle.card.preprocessing.channels, dtype=torch.uint8)
    data = to_onnx(
        raw,
        example,
        names=("pixels", "probability"),
        dynamic={name: {0: "height", 1: "width"} for name in ("pixels", "probability")},
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
    return Made(
        target=target,
        precision=precision,
        answer=_run_openvino_model(_read_openvino(data), precision),
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

    def answer(pixels_HWC: UInt8[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        probability: np.ndarray = session.run(None, {"pixels": np.ascontiguousarray(pixels_HWC)})[0]
        return probability

    return answer


def _read_openvino(data: bytes) -> Any:
    return require("openvino").Core().read_model(data)


def _run_openvino_model(model: Any, precision: str) -> Answer:
    # OpenVINO takes bf16 by default where the processor has it: the precision is always stated.
    hint = "bf16" if precision == "bf16" else "f32"
    compiled = (
        require("openvino").Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    )

    def answer(pixels_HWC: UInt8[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        probability: np.ndarray = compiled(np.ascontiguousarray(pixels_HWC))[0]
        return np.array(probability)

    return answer


def _zip_of_ir(data: bytes, text: Mapping[str, str]) -> bytes:
    """OpenVINO's own form is two files, so they are stored in one zip."""
    import tempfile
    from pathlib import Path

    openvino = require("openvino")
    model = _read_openvino(data)
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
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, content)
    return buffer.getvalue()


def _torch(raw: RawPixels, bundle: Bundle) -> Made:
    example = torch.zeros(*_EXAMPLE, bundle.card.preprocessing.channels, dtype=torch.uint8)
    sizes = {0: torch.export.Dim("height", min=2, max=65536),
             1: torch.export.Dim("width", min=2, max=65536)}  # fmt: skip
    program = torch.export.export(raw.eval(), (example,), dynamic_shapes=(sizes,))

    def finish(text: Mapping[str, str]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(text))
        return buffer.getvalue()

    return Made(target="torch", precision="fp32", answer=_run_program(program), finish=finish)


def _run_program(program: Any) -> Answer:
    module = program.module()

    def answer(pixels_HWC: UInt8[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        with torch.inference_mode():
            result = module(torch.from_numpy(np.ascontiguousarray(pixels_HWC)))
        probability: np.ndarray = result.numpy()
        return probability

    return answer


def open_file(data: bytes, *, name: str) -> tuple[Answer, Facts, str]:
    """Open an exported file as its runtime does.

    Args:
        data: the file.
        name: what errors call it.

    Returns:
        What computes, what the file says about itself, and its target.

    Raises:
        BundleError: no file that binseg exported.
    """
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if "metadata.json" in names and "model.xml" in names:
                text = json.loads(archive.read("metadata.json"))
                facts = Facts.of_text(text, name=name)
                openvino = require("openvino")
                weights = np.frombuffer(archive.read("model.bin"), np.uint8)
                model = openvino.Core().read_model(
                    archive.read("model.xml"), openvino.Tensor(weights)
                )
                return (
                    _run_openvino_model(model, facts.proof["precision"]), facts, "openvino"
                )  # fmt: skip
        text = {f"{PREFIX}{key}": "" for key in ("card", "threshold", "proof", "golden")}
        try:
            program = torch.export.load(io.BytesIO(data), extra_files=text)
        except (RuntimeError, ValueError, KeyError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise BundleError(f"{name}: not exported by binseg, or damaged ({reason})") from None
        facts = Facts.of_text({key: _decoded(value) for key, value in text.items()}, name=name)
        return _run_program(program), facts, "torch"
    try:
        session = require("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as problem:  # noqa: BLE001  # onnxruntime raises what it likes on bad bytes
        reason = " ".join(str(problem).split())[:200]
        raise BundleError(f"{name}: not exported by binseg, or damaged ({reason})") from None
    facts = Facts.of_text(session.get_modelmeta().custom_metadata_map, name=name)
    return _run_onnx(data), facts, "onnx"


def _decoded(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
