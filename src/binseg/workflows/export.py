"""A model for other runtimes: made, proven beside torch on pictures, and only then written."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from binseg.backends.onnx_backend import OnnxBackend
from binseg.backends.openvino_backend import OpenVinoBackend
from binseg.backends.torch_backend import TorchBackend, load_network
from binseg.bundle import (
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    Bundle,
    read_bundle,
    write_bundle,
)
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.errors import BinsegError, ExportError, UsageError
from binseg.export import Proof, RawPixels, core_onnx, make_file, prove, quantise
from binseg.export.core import require
from binseg.export.files import SUFFIXES, TARGETS, Facts
from binseg.predictor import Predictor
from binseg.preprocess import normalise, prepare
from binseg.progress import SILENT, Progress
from binseg.storage import write_bytes
from binseg.training.precision import computes_bf16
from binseg.workflows.run_folder import RunFolder

__all__ = ["DESTINATIONS", "ExportResult", "export_model"]

DESTINATIONS = (*TARGETS, "bundle")
MAX_PICTURES = 24
CALIBRATION = 16
ODD_SIZES = ((1, 1), (7, 300), (97, 33), (256, 256), (401, 223))


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written, and how it was proven."""

    path: Path
    target: str
    num_bytes: int
    proofs: tuple[Proof, ...]

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "path": str(self.path),
            "target": self.target,
            "bytes": self.num_bytes,
            "proofs": [proof.as_dict() for proof in self.proofs],
        }


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """What a proof looks at."""

    images: list[np.ndarray]
    truths: list[np.ndarray | None]


def export_model(
    run: str | Path,
    *,
    target: str,
    out: str | Path | None = None,
    int8: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export a model, prove it, and write it; nothing is written where the proof fails.

    Args:
        run: a run's folder, or a bundle.
        target: onnx, openvino or torch: one file that takes raw pixels of any size; bundle: the
            network inside the bundle, for binseg's own prediction without torch.
        out: the file (or, for a bundle, a folder); beside the run if left out, and for a bundle the
            bundle itself.
        int8: 8-bit whole numbers, calibrated on validation pictures.
        progress: told of each step.

    Raises:
        UsageError: another target, or settings that can't be exported so.
        ExportError: the proof failed.
        MissingExtraError: what the target needs isn't installed.
    """
    if target not in DESTINATIONS:
        raise UsageError(f"there is no export {target!r}; choose one of {', '.join(DESTINATIONS)}")
    if int8 and target == "torch":
        raise UsageError("int8 is for onnx, openvino and bundle; torch files stay in float32")
    bundle = read_bundle(run)
    network = load_network(bundle).eval()
    reference = _predictor(bundle, TorchBackend(network))
    pictures = _pictures(Path(run), bundle, progress)
    if target == "bundle":
        return _into_bundle(bundle, network, reference, pictures, out, int8=int8, progress=progress)
    path = Path(out) if out is not None else _beside(bundle, SUFFIXES[target])
    raw = RawPixels(network, bundle.card.preprocessing, temperature=bundle.card.temperature)
    progress.say(f"making {path.name}")
    made = make_file(
        target,
        raw,
        bundle,
        precision="int8" if int8 else "fp32",
        changed=_quantiser(pictures.images, raw=True) if int8 else None,
    )
    progress.say(f"proving it on {len(pictures.images)} pictures beside torch in float32")
    proof = prove(
        lambda image: reference.predict(image).probability_HW,
        made.answer,
        pictures.images,
        threshold=reference.threshold,
        runtime=target,
        precision=made.precision,
        truths=pictures.truths,
    )
    _refuse_failed(proof, path)
    golden = pictures.images[0]
    facts = Facts(
        card=json.loads(bundle.card.to_json()),
        threshold=bundle.card.threshold.value,
        proof=proof.as_dict(),
        golden_HWC=golden,
        golden_HW=reference.predict(golden).probability_HW,
    )
    data = made.finish(facts.as_text())
    write_bytes(path, data)
    return ExportResult(path=path, target=target, num_bytes=len(data), proofs=(proof,))


def _beside(bundle: Bundle, suffix: str) -> Path:
    """NAME.onnx in the run's folder, or beside a bundle that stands alone."""
    home = bundle.path.parent
    name = home.name if bundle.path.name == "bundle" else bundle.path.stem
    return home / f"{name}{suffix}"


def _predictor(bundle: Bundle, backend: Any) -> Predictor:
    card = bundle.card
    return Predictor(
        backend=backend,
        preprocessing=card.preprocessing,
        threshold=card.threshold.value,
        bundle_id=card.id,
        temperature=card.temperature,
        bundle=bundle,
    )


def _refuse_failed(proof: Proof, path: Path) -> None:
    if not proof.passed:
        change = "" if proof.dice_change is None else f", Dice {proof.dice_change:+.4f}"
        raise ExportError(
            f"{path}: not written, since the proof failed: {proof.runtime} {proof.precision} "
            f"differs from torch by up to {proof.largest_difference:.2g}, masks agree to "
            f"{proof.agreement:.4f}{change}"
        )


def _pictures(run: Path, bundle: Bundle, progress: Progress) -> _Pictures:
    """Validation pictures with truth where the run's data is at hand, and odd sizes always."""
    images, truths = _validation(run, progress)
    golden = bundle.golden().input_NHWC
    if not images:
        images, truths = list(golden), [None] * len(golden)
    random = np.random.default_rng(0)
    channels = bundle.card.preprocessing.channels
    for height, width in ODD_SIZES:
        # Parts of a real picture rather than noise, which no network was made for.
        source = golden[int(random.integers(len(golden)))]
        rows = np.linspace(0, len(source) - 1, height).astype(int)
        columns = np.linspace(0, source.shape[1] - 1, width).astype(int)
        images.append(np.ascontiguousarray(source[rows][:, columns, :channels]))
        truths.append(None)
    return _Pictures(images=images, truths=truths)


def _validation(run: Path, progress: Progress) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Up to 24 validation pictures of a run, as 8-bit colour, with their masks."""
    if not (run / "recipe.yaml").is_file():
        progress.say("no run folder: proven on the bundle's golden sample, without truth")
        return [], []
    folder = RunFolder.open(run)
    recipe = folder.recipe()
    try:
        dataset = open_dataset(recipe.data, progress=SILENT)
        splits = folder.splits()
        records = [one for one in dataset.records if splits.get(one.id) == "val"]
        samples = [
            read_sample(one, dataset.rule)
            for one in records[:: max(1, len(records) // MAX_PICTURES)][:MAX_PICTURES]
        ]
    except BinsegError as problem:
        progress.say(f"the run's data is not at hand ({problem}): proven without truth")
        return [], []
    fitting = [
        one
        for one in samples
        if one.image_HWC.dtype == np.uint8
        and one.image_HWC.shape[2] == recipe.input.channels
        and min(one.image_HWC.shape[:2]) > 1
    ]
    return [one.image_HWC for one in fitting], [one.mask_HW for one in fitting]


def _quantiser(images: Sequence[np.ndarray], *, raw: bool) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        return quantise(
            data,
            images[:CALIBRATION],
            name="pixels" if raw else "inputs",
            kept=_ends(data),
        )

    return changed


def _ends(data: bytes) -> list[str]:
    """Names of the first and the last convolution, which stay in floats."""
    model = require("onnx").load_from_string(data)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return [names[0], names[-1]] if names else []


def _into_bundle(
    bundle: Bundle,
    network: Any,
    reference: Predictor,
    pictures: _Pictures,
    out: str | Path | None,
    *,
    int8: bool,
    progress: Progress,
) -> ExportResult:
    """Add the network to the bundle, with a proof for each runtime that is installed."""
    if out is None and bundle.path.is_file():
        raise UsageError(f"{bundle.path} is a zip: name a folder for the new bundle with --out")
    path = Path(out) if out is not None else bundle.path
    shape = bundle.card.preprocessing
    extra = {NETWORK: core_onnx(network, shape)}
    if int8:
        inputs = [
            normalise(prepare(image, shape)[0][:1], shape)
            for image in pictures.images[:CALIBRATION]
        ]
        extra[NETWORK_INT8] = quantise(
            extra[NETWORK], inputs, name="inputs", kept=_ends(extra[NETWORK])
        )
    proofs: list[Proof] = []
    for runtime, precision in _runtimes(int8=int8):
        progress.say(f"proving {runtime} {precision} on {len(pictures.images)} pictures")
        data = extra[NETWORK_INT8 if precision == "int8" else NETWORK]
        other = _predictor(bundle, _open(runtime, precision, data))
        proof = prove(
            lambda image: reference.predict(image).probability_HW,
            lambda image, other=other: other.predict(image).probability_HW,  # type: ignore[misc]
            pictures.images,
            threshold=reference.threshold,
            runtime=runtime,
            precision=precision,
            truths=pictures.truths,
        )
        if precision == "fp32":
            _refuse_failed(proof, path)
        elif not proof.passed:
            progress.say(f"{runtime} {precision} is not proven, and won't be chosen")
        proofs.append(proof)
    named = {f"{one.runtime} {one.precision}": one.as_dict() for one in proofs}
    extra[PROOFS] = (json.dumps(named, indent=2) + "\n").encode()
    written = write_bundle(
        path, card=bundle.card, weights=bundle.weights(), golden=bundle.golden(), extra=extra
    )
    return ExportResult(
        path=written.path,
        target="bundle",
        num_bytes=sum(map(len, extra.values())),
        proofs=tuple(proofs),
    )


def _runtimes(*, int8: bool) -> list[tuple[str, str]]:
    """Runtime and precision of each proof, as far as they are installed."""
    import torch

    found = []
    if find_spec("onnxruntime") is not None:
        found += [("onnxruntime", "fp32"), *([("onnxruntime", "int8")] if int8 else [])]
    if find_spec("openvino") is not None:
        found.append(("openvino", "fp32"))
        if computes_bf16(torch.device("cpu")):
            found.append(("openvino", "bf16"))
        if int8:
            found.append(("openvino", "int8"))
    if not found:
        raise UsageError(
            "neither onnxruntime nor openvino is installed, so that nothing can be proven; "
            "install one: pip install 'binseg[export]'"
        )
    return found


def _open(runtime: str, precision: str, data: bytes) -> Any:
    if runtime == "onnxruntime":
        session = require("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
        return OnnxBackend(session, precision=precision)
    core = require("openvino").Core()
    hint = "bf16" if precision == "bf16" else "f32"
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return OpenVinoBackend(compiled, precision=precision)
