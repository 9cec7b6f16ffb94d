"""Exported networks in ONNX Runtime, OpenVINO and torch, on the processor; how they are proven.

Nothing is opened that `network_check` hasn't let through, but for the files of torch. An exported
file is one file for a runtime, with card, threshold, reference sample and proof inside:

    NAME.onnx           ONNX; onnxruntime, OpenVINO and others open it by its path
    NAME.openvino.zip   OpenVINO's own form, which is two files, stored in one zip
    NAME.pt2            torch.export; opens with torch alone
"""

import base64
import hashlib
import importlib
import io
import json
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from binseg.errors import BundleError, needing, one_line
from binseg.packaging.bundle import from_bytes, to_bytes
from binseg.packaging.network_check import Port, check_ir, check_onnx
from binseg.storage import parse_json
from binseg.types import AnyImage, Mask, Probability

Compute = Callable[[AnyImage], Probability]
"""From pixels to the probability of foreground, of the image's size."""


def one_by_one(run: Callable[[Num[np.ndarray, "N H W C"]], np.ndarray]) -> Compute:
    """Compute image by image with a runtime that takes them by the batch."""
    return lambda pixels_HWC: np.array(run(np.array(pixels_HWC[None], order="C"))[0])


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest differences of a precision; `agreement_alone` is for unknown truth."""

    difference: float
    agreement: float
    agreement_alone: float
    dice_change: float


LIMITS = {
    "fp32": Limits(difference=0.01, agreement=0.999, agreement_alone=0.999, dice_change=0.0005),
    "bf16": Limits(difference=0.5, agreement=0.999, agreement_alone=0.999, dice_change=0.002),
    "int8": Limits(difference=1.0, agreement=0.9, agreement_alone=0.97, dice_change=0.003),
    "resized": Limits(difference=0.2, agreement=0.998, agreement_alone=0.998, dice_change=0.002),
    "whole": Limits(difference=1.0, agreement=0.9, agreement_alone=0.95, dice_change=0.01),
}
"""By the precision that is really computed in, where the inputs are equal; and two beside binseg's
own prediction, which differs more. `resized`: its resize (Pillow, in whole numbers) differs from
that inside a graph by a level of 255 here and there, which pixels at an outline feel. `whole`: its
tiles see less of the surroundings than a graph that computes the whole image at once."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Differences of a runtime from the one it stands `beside`, over the same images."""

    runtime: str
    precision: str
    beside: str
    limits: Limits
    num_images: int
    largest_difference: float
    mean_difference: float
    agreement: float
    dice_change: float | None

    @property
    def passed(self) -> bool:
        """True where all limits are kept."""
        limits = self.limits
        least = limits.agreement_alone if self.dice_change is None else limits.agreement
        is_near = self.largest_difference <= limits.difference and self.agreement >= least
        return is_near and abs(self.dice_change or 0.0) <= limits.dice_change

    def as_dict(self) -> dict[str, object]:
        """Return the figures as plain data."""
        return {**asdict(self), "passed": self.passed}


def prove(
    reference: Compute,
    candidate: Compute,
    images: Sequence[AnyImage],
    *,
    threshold: float,
    runtime: str,
    precision: str,
    beside: str,
    limits: Limits,
    truths: Sequence[Mask | None] = (),
) -> Proof:
    """Compare two runtimes on images, some with truths; `beside` names the reference."""
    from binseg.metrics import dice_of

    assert images, "nothing is proven by no images"
    known = list(truths) or [None] * len(images)
    largest = total = 0.0
    num_pixels = both = either = 0
    changes: list[float] = []
    for image_HWC, truth_HW in zip(images, known, strict=True):
        ours_HW, theirs_HW = reference(image_HWC), candidate(image_HWC)
        difference_HW = np.abs(ours_HW.astype(np.float64) - theirs_HW)
        largest = max(largest, float(difference_HW.max()))
        total += float(difference_HW.sum())
        num_pixels += difference_HW.size
        one_HW, other_HW = ours_HW > threshold, theirs_HW > threshold
        both += int((one_HW & other_HW).sum())
        either += int((one_HW | other_HW).sum())
        if truth_HW is not None:
            changes.append(dice_of(other_HW, truth_HW) - dice_of(one_HW, truth_HW))
    return Proof(
        runtime=runtime,
        precision=precision,
        beside=beside,
        limits=limits,
        num_images=len(images),
        largest_difference=largest,
        mean_difference=total / num_pixels,
        agreement=both / either if either else 1.0,
        dice_change=float(np.mean(changes)) if changes else None,
    )


SUFFIXES = {"onnx": ".onnx", "openvino": ".openvino.zip", "torch": ".pt2"}
_KEYS = tuple(f"binseg.{key}" for key in ("card", "threshold", "input", "proof", "reference"))
_IR = ("model.xml", "model.bin", "metadata.json")
_DAMAGE = (AssertionError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError,
           zipfile.BadZipFile)  # fmt: skip
"""Errors that numpy, json, zipfile and torch raise on bytes that they didn't write."""
_TELEMETRY = "openvino_telemetry"
_EXTRAS = {
    "onnx": ("export", "exporting a model"),
    "onnxruntime": ("onnx", "computing with ONNX Runtime"),
    "openvino": ("openvino", "computing with OpenVINO"),
    "torch": ("train", "opening a file of torch"),
}
"""Extra of binseg that brings a package, and what the package is for."""


def require(package: str) -> Any:
    """Import an optional package, or raise MissingExtraError; openvino without telemetry."""
    hidden = package == "openvino" and _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what makes an import fail
    # Importing openvino sends an event to Google Analytics, unless the user has declined.
    extra, purpose = _EXTRAS[package]
    try:
        with needing(package, extra=extra, purpose=purpose):
            return importlib.import_module(package)
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]


@cache
def openvino_core() -> Any:
    """Give the one `openvino.Core` of this process, which stays until its end.

    A Core takes back the signal stack of its thread when it goes, also where another's has been put
    on top: the next Ctrl-C is then a segmentation fault (OpenVINO 2026.0, `SigAltStackSetup`).
    """
    return require("openvino").Core()


def onnx_session(data: bytes, *, name: str, num_threads: int = 0) -> Any:
    """Open an ONNX file (0 threads: its own choice); MissingExtraError, BundleError."""
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
    """Open ONNX, or XML with weights, in bf16 or fp32; tell which. BundleError."""
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


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that an exported file says about itself; `input` is what `describe_input` told."""

    card: dict[str, Any]
    threshold: float
    input: dict[str, Any]
    proof: dict[str, Any]
    reference_HWC: AnyImage
    reference_HW: Probability

    def as_text(self) -> dict[str, str]:
        """Turn all of it into strings by name, which is what metadata of all runtimes holds."""
        sample = to_bytes({"image": self.reference_HWC, "probability": self.reference_HW})
        facts = (self.card, self.threshold, self.input, self.proof)
        values = (*map(json.dumps, facts), base64.b64encode(sample).decode("ascii"))
        return dict(zip(_KEYS, values, strict=True))

    @classmethod
    def of_text(cls, text: Mapping[str, str]) -> "Facts":
        """Read what `as_text` gave; BundleError, ValueError, KeyError, TypeError if damaged."""
        card, threshold, told, proof, reference = (text[key] for key in _KEYS)
        data = base64.b64decode(reference, validate=True)
        sample = from_bytes(data, name="its reference sample")
        facts = cls(
            card=parse_json(card),
            threshold=float(threshold),
            input=parse_json(told),
            proof=parse_json(proof),
            reference_HWC=sample["image"],
            reference_HW=sample["probability"],
        )
        if not all(isinstance(one, dict) for one in (facts.card, facts.input, facts.proof)):
            raise ValueError("its facts are of other types")
        shape = facts.reference_HWC.shape
        if len(shape) != 3 or shape[:2] != facts.reference_HW.shape:
            raise ValueError("its reference sample is of odd shapes")
        return facts


def open_file(data: bytes, target: str, *, name: str) -> tuple[Compute, Facts]:
    """Open an exported file in its runtime (torch's runs code); BundleError, MissingExtraError."""
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
    told = parse_json(text)
    if told["binseg.sha256"] != _hash_of(network, weights):  # a number of it may be a size
        raise ValueError("its network isn't the one that was exported")
    facts = Facts.of_text(told)
    _check_ports(*check_ir(network, weights, name="the file"), facts)
    compute, _ = by_openvino(network, weights, facts.proof.get("precision"), name="the file")
    return compute, facts


def _check_ports(given: Port, made: Port, facts: Facts, *, names: tuple[str, ...] = ()) -> None:
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

    text: dict[str, Any] = dict.fromkeys(_KEYS, "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of how it stores its own files
        program = torch.export.load(io.BytesIO(data), extra_files=text)
    text = {key: one.decode() if isinstance(one, bytes) else one for key, one in text.items()}
    return by_torch(program.module()), Facts.of_text(text)


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
    told = json.dumps({**text, "binseg.sha256": _hash_of(*parts)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in zip(_IR, (*parts, told.encode()), strict=True):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def _hash_of(network: bytes, weights: bytes) -> str:
    return hashlib.sha256(network + weights).hexdigest()


def by_onnxruntime(session: Any) -> Compute:
    """Compute with a session of ONNX Runtime."""
    return one_by_one(lambda pixels_NHWC: session.run(None, {"pixels": pixels_NHWC})[0])


def by_openvino(
    data: bytes, weights: bytes | None, precision: object, *, name: str
) -> tuple[Compute, str]:
    """Compute with OpenVINO; also tell the precision that it really computes in."""
    compiled, used = compile_openvino(data, weights, precision=str(precision), name=name)
    return one_by_one(lambda pixels_NHWC: compiled(pixels_NHWC)[0]), used
