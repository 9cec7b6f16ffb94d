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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Num

from binseg.errors import BundleError, one_line
from binseg.packaging.network_check import Port, check_ir, check_onnx
from binseg.packaging.networks import compile_openvino, onnx_session, openvino_core, require
from binseg.packaging.proof import Compute
from binseg.packaging.tensors import from_bytes, to_bytes
from binseg.storage import parse_json

SUFFIXES = {"onnx": ".onnx", "openvino": ".openvino.zip", "torch": ".pt2"}
_PREFIX = "binseg."
_KEYS = ("card", "threshold", "input", "proof", "reference")
_IR = ("model.xml", "model.bin", "metadata.json")
_DAMAGE = (
    AssertionError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError,
    zipfile.BadZipFile,
)  # fmt: skip
"""Errors that numpy, json, zipfile and torch raise on bytes that they didn't write."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that an exported file says about itself."""

    card: dict[str, Any]
    threshold: float
    input: dict[str, Any]
    """The file's inputs and outputs in words (`exporting.describe_input`)."""
    proof: dict[str, Any]
    reference_HWC: Num[np.ndarray, "H W C"]
    reference_HW: Float32[np.ndarray, "H W"]

    def as_text(self) -> dict[str, str]:
        """Turn all of it into strings by name, which is what metadata of all runtimes holds."""
        sample = to_bytes({"image": self.reference_HWC, "probability": self.reference_HW})
        return {
            f"{_PREFIX}card": json.dumps(self.card),
            f"{_PREFIX}threshold": repr(self.threshold),
            f"{_PREFIX}input": json.dumps(self.input),
            f"{_PREFIX}proof": json.dumps(self.proof),
            f"{_PREFIX}reference": base64.b64encode(sample).decode("ascii"),
        }

    @classmethod
    def of_text(cls, text: Mapping[str, str]) -> "Facts":
        """Read back what `as_text` gave.

        Raises:
            BundleError, ValueError, KeyError, TypeError: something is missing or damaged.
        """
        data = base64.b64decode(text[f"{_PREFIX}reference"], validate=True)
        sample = from_bytes(data, name="its reference sample")
        image, probability = sample["image"], sample["probability"]
        card, told, proof = (
            parse_json(text[f"{_PREFIX}{key}"]) for key in ("card", "input", "proof")
        )
        if not all(isinstance(one, dict) for one in (card, told, proof)):
            raise ValueError("its facts are of other types")
        if image.ndim != 3 or image.shape[:2] != probability.shape:
            raise ValueError("its reference sample is of odd shapes")
        return cls(
            card=card,
            threshold=float(text[f"{_PREFIX}threshold"]),
            input=told,
            proof=proof,
            reference_HWC=image,
            reference_HW=probability,
        )


def open_file(data: bytes, target: str, *, name: str) -> tuple[Compute, Facts]:
    """Open an exported file in its runtime.

    A file for torch is unpickled and may run code: open only those that you made yourself.

    Args:
        data: the file.
        target: its runtime, a key of `SUFFIXES`; what the file holds decides nothing.
        name: its name in errors.

    Returns:
        The function that computes, and all that the file says about itself.

    Raises:
        BundleError: no file that binseg exported for this target.
        MissingExtraError: its runtime isn't installed.
    """
    opener = {"onnx": _open_onnx, "openvino": _open_ir, "torch": _open_program}[target]
    try:
        return opener(data)
    except (BundleError, *_DAMAGE) as problem:
        reason = one_line(str(problem), limit=200)
        raise BundleError(f"{name}: not exported by binseg, or damaged ({reason})") from None


def _open_onnx(data: bytes) -> tuple[Compute, Facts]:
    ports = check_onnx(data, name="the file")
    session = onnx_session(data, name="the file")
    facts = Facts.of_text(session.get_modelmeta().custom_metadata_map)
    _check_ports(*ports, facts, names=("pixels", "probability"))
    return by_onnxruntime(session), facts


def _open_ir(data: bytes) -> tuple[Compute, Facts]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if tuple(archive.namelist()) != _IR:
            raise ValueError("it holds other files than a network of OpenVINO")
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ValueError("it holds packed files")
        network, weights, text = (archive.read(one) for one in _IR)
    facts = Facts.of_text(parse_json(text))
    _check_ports(*check_ir(network, weights, name="the file"), facts)
    compute, _ = by_openvino(network, weights, facts.proof.get("precision"), name="the file")
    return compute, facts


def _check_ports(given: Port, made: Port, facts: Facts, *, names: tuple[str, ...] = ()) -> None:
    """Refuse a network that takes or gives something else than the file says."""
    pixels = facts.input["pixels"]
    wanted = (None, None, None, pixels["channels"])
    fits = (
        pixels["type"] in ("uint8", "float32")
        and (given.type, given.shape) == (pixels["type"], wanted)
        and (made.type, len(made.shape)) == ("float32", 3)
        and names in ((), (given.name, made.name))
        and facts.reference_HWC.dtype == pixels["type"]
        and facts.reference_HWC.shape[2] == pixels["channels"]
    )
    if not fits:
        raise ValueError(f"its network takes {given.shape} {given.type}, not what it says")


def _open_program(data: bytes) -> tuple[Compute, Facts]:
    torch = require("torch")
    from binseg.packaging.raw_pixels import by_torch

    text: dict[str, Any] = {f"{_PREFIX}{key}": "" for key in _KEYS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of how it stores its own files
        program = torch.export.load(io.BytesIO(data), extra_files=text)
    decoded = {
        key: value.decode() if isinstance(value, bytes) else value for key, value in text.items()
    }
    return by_torch(program.module()), Facts.of_text(decoded)


def onnx_with_facts(data: bytes, text: Mapping[str, str]) -> bytes:
    """Put facts into the metadata of an ONNX file."""
    model = require("onnx").load_from_string(data)
    for key, value in text.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.producer_name = "binseg"
    written: bytes = model.SerializeToString()
    return written


def ir_with_facts(data: bytes, text: Mapping[str, str]) -> bytes:
    """Convert an ONNX file into OpenVINO's own form, with facts, as one zip."""
    openvino = require("openvino")
    model = openvino_core().read_model(data)
    for key, value in text.items():
        model.set_rt_info(value, key.split("."))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        parts = (path.read_bytes(), path.with_suffix(".bin").read_bytes())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in zip(_IR, (*parts, json.dumps(dict(text)).encode()), strict=True):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def by_onnxruntime(session: Any) -> Compute:
    """Compute with a session of ONNX Runtime."""

    def compute(pixels_HWC: Num[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        pixels_1HWC = np.ascontiguousarray(pixels_HWC[None])
        probability: np.ndarray = session.run(None, {"pixels": pixels_1HWC})[0][0]
        return probability

    return compute


def by_openvino(
    data: bytes, weights: bytes | None, precision: object, *, name: str
) -> tuple[Compute, str]:
    """Compute with OpenVINO; also tell the precision that it really computes in."""
    compiled, used = compile_openvino(data, weights, precision=str(precision), name=name)

    def compute(pixels_HWC: Num[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
        return np.array(compiled(np.ascontiguousarray(pixels_HWC[None]))[0][0])

    return compute, used
