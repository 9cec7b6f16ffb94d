"""A model for other runtimes: made, proven beside torch on images, and only then written."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from binseg.errors import ExportError, UsageError
from binseg.export import (
    LIMITS,
    TARGETS,
    Facts,
    Limits,
    Made,
    Pixels,
    Proof,
    RawPixels,
    core_onnx,
    make_file,
    prove,
    quantise,
    tell_input,
)
from binseg.export.core import require
from binseg.export.files import SUFFIXES
from binseg.inference import ModelPredictor
from binseg.inference.runtimes import Backend, computes_bf16
from binseg.inference.runtimes.onnx import onnx_backend
from binseg.inference.runtimes.openvino import openvino_backend
from binseg.inference.runtimes.torch import TorchBackend, load_network
from binseg.packaging import (
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    Bundle,
    Card,
    Corrections,
    read_bundle,
    write_bundle,
)
from binseg.pipelines.proof_images import ProofImages, as_pixels, find_images, small
from binseg.progress import SILENT, Progress
from binseg.storage import write_bytes
from binseg.transforms.preprocess import normalise, prepare

__all__ = ["DESTINATIONS", "ExportResult", "export_model"]

DESTINATIONS = (*TARGETS, "bundle")
CALIBRATION = 16
"""Images that int8 takes its ranges from."""


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


def export_model(
    run: str | Path,
    *,
    target: str,
    out: str | Path | None = None,
    int8: bool = False,
    pixels: str = "uint8",
    max_dice_change: float | None = None,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export a model, prove it, and write it; nothing is written where the proof fails.

    Args:
        run: a run's folder, or a bundle.
        target: onnx, openvino or torch: one file that takes raw pixels of any size; bundle: the
            network inside the bundle, for binseg's own prediction without torch.
        out: the file (or, for a bundle, a folder); beside the run if left out, and for a bundle the
            bundle itself.
        int8: 8-bit whole numbers, calibrated on validation images.
        pixels: what the file takes: uint8 or float32.
        max_dice_change: how much Dice may change by int8, instead of 0.003.
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
    if target == "bundle" and pixels != "uint8":
        raise UsageError("pixels is for files; a bundle's network takes what binseg prepares")
    if max_dice_change is not None and not int8:
        raise UsageError("max_dice_change is of int8, which isn't asked for; add --int8")
    bundle = read_bundle(run)
    network = load_network(bundle).eval()
    reference = _predictor(bundle, TorchBackend(network))
    images = find_images(Path(run), bundle, progress)
    of_int8 = LIMITS["int8"]
    if max_dice_change is not None:
        of_int8 = replace(of_int8, dice_change=max_dice_change)
    if target == "bundle":
        adding = _Adding(
            bundle=bundle,
            network=network,
            reference=reference,
            images=images,
            of_int8=of_int8 if int8 else None,
            progress=progress,
        )
        return _into_bundle(adding, out)
    raw = RawPixels(
        network,
        bundle.card.preprocessing,
        temperature=bundle.card.temperature,
        pixels=cast("Pixels", pixels),
    ).eval()
    images = as_pixels(images, raw.pixels, raw.shape)
    path = Path(out) if out is not None else _beside(bundle, SUFFIXES[target])
    for what in _left_out(bundle.card):
        progress.say(f"{path.name} answers without {what}, which the scores of the card are with")
    progress.say(f"making {path.name}")
    changed = _quantiser([one[None] for one in images.images], "pixels") if int8 else None
    made = make_file(target, raw, precision="int8" if int8 else "fp32", changed=changed)
    progress.say(f"proving it on {len(images.images)} images beside torch in float32")
    proofs = _prove_file(made, raw, reference, images, of_int8=of_int8)
    for proof in proofs:
        _refuse_failed(proof, path)
    if target == "openvino" and not int8 and computes_bf16():
        # What a program gets here that doesn't ask for a precision: told, and not required.
        other = make_file(target, raw, precision="bf16")
        proofs += _prove_file(other, raw, reference, images, of_int8=of_int8)[:1]
    data = made.finish(_facts(bundle, raw, made, proofs, images).as_text())
    write_bytes(path, data)
    return ExportResult(path=path, target=target, num_bytes=len(data), proofs=tuple(proofs))


def _left_out(card: Card) -> list[str]:
    """What a model does around its network, and a single file doesn't."""
    parts = [f"the mirror images of the model (tta {card.tta})"] if card.tta != "none" else []
    if card.postprocess != Corrections():
        parts.append("the model's post-processing of masks")
    return parts


def _prove_file(
    made: Made,
    raw: RawPixels,
    reference: ModelPredictor,
    images: ProofImages,
    *,
    of_int8: Limits,
) -> list[Proof]:
    """Beside the same graph in torch, and beside binseg's own prediction."""
    exact = of_int8 if made.precision == "int8" else LIMITS[made.precision]
    own = LIMITS["whole" if raw.shape.resize == "tile" else "resized"]
    if made.precision == "int8":
        own = Limits(
            difference=1.0,
            agreement=own.agreement * exact.agreement,
            agreement_alone=own.agreement_alone * exact.agreement_alone,
            dice_change=own.dice_change + exact.dice_change,
        )
    known = {
        "threshold": reference.threshold,
        "runtime": made.target,
        "precision": made.precision,
        "truths": images.truths,
    }
    return [
        prove(
            _answer_of(raw),
            made.answer,
            images.images,
            beside="the same graph in torch",
            limits=exact,
            **known,  # type: ignore[arg-type]
        ),
        prove(
            lambda image: reference.predict(image).probability_HW,
            made.answer,
            images.images,
            beside="binseg predict",
            limits=own,
            **known,  # type: ignore[arg-type]
        ),
    ]


def _answer_of(raw: RawPixels) -> Callable[[np.ndarray], np.ndarray]:
    def answer(pixels_HWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = raw(torch.from_numpy(np.array(pixels_HWC[None], order="C")))
        probability: np.ndarray = result[0].numpy()
        return probability

    return answer


def _facts(
    bundle: Bundle,
    raw: RawPixels,
    made: Made,
    proofs: Sequence[Proof],
    images: ProofImages,
) -> Facts:
    """What goes into the file; its reference answer is torch's, or for int8 its own."""
    reference = small(images.images[0])
    answer = made.answer if made.precision == "int8" else _answer_of(raw)
    return Facts(
        card=json.loads(bundle.card.to_json()),
        threshold=bundle.card.threshold.value,
        input=tell_input(raw),
        proof={"precision": made.precision, "rows": [proof.as_dict() for proof in proofs]},
        reference_HWC=reference,
        reference_HW=answer(reference).astype(np.float32),
    )


def _beside(bundle: Bundle, suffix: str) -> Path:
    """NAME.onnx in the run's folder, or beside a bundle that stands alone."""
    home = bundle.path.parent
    name = home.name if bundle.path.name == "bundle" else bundle.path.stem
    return home / f"{name}{suffix}"


def _predictor(bundle: Bundle, backend: Backend) -> ModelPredictor:
    card = bundle.card
    return ModelPredictor(
        backend=backend,
        preprocessing=card.preprocessing,
        threshold=card.threshold.value,
        bundle_id=card.id,
        temperature=card.temperature,
        bundle=bundle,
    )


def _refuse_failed(proof: Proof, path: Path) -> None:
    if proof.passed:
        return
    change = "" if proof.dice_change is None else f", Dice {proof.dice_change:+.4f}"
    advice = "; leave out --int8, or allow more with --max-dice-change"
    raise ExportError(
        f"{path}: not written, since the proof failed: {proof.runtime} {proof.precision} "
        f"differs from {proof.beside} by up to {proof.largest_difference:.2g}, masks agree to "
        f"{proof.agreement:.4f}{change}{advice if proof.precision == 'int8' else ''}"
    )


def _quantiser(samples: Sequence[np.ndarray], name: str) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        return quantise(data, samples[:CALIBRATION], name=name, kept=_ends(data))

    return changed


def _ends(data: bytes) -> list[str]:
    """Names of the first and the last convolution, which stay in floats."""
    model = require("onnx").load_from_string(data)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return [names[0], names[-1]] if names else []


@dataclass(frozen=True, kw_only=True)
class _Adding:
    """What adding a network to a bundle needs."""

    bundle: Bundle
    network: Any
    reference: ModelPredictor
    images: ProofImages
    of_int8: Limits | None
    """None without int8."""
    progress: Progress


def _into_bundle(adding: _Adding, out: str | Path | None) -> ExportResult:
    """Add the network to the bundle, with a proof for each runtime that is installed."""
    bundle, shape = adding.bundle, adding.bundle.card.preprocessing
    if out is None and bundle.path.is_file():
        raise UsageError(f"{bundle.path} is a zip: name a folder for the new bundle with --out")
    path = Path(out) if out is not None else bundle.path
    extra = {NETWORK: core_onnx(adding.network, shape)}
    if adding.of_int8 is not None:
        images = adding.images.images[:CALIBRATION]
        inputs = [normalise(prepare(image, shape)[0][:1], shape) for image in images]
        extra[NETWORK_INT8] = _quantiser(inputs, "inputs")(extra[NETWORK])
    proofs = [
        _prove_network(adding, runtime, precision, extra)
        for runtime, precision in _runtimes(int8=adding.of_int8 is not None)
    ]
    for proof in proofs:
        if proof.precision == "fp32":
            _refuse_failed(proof, path)
        elif not proof.passed:
            told = f"masks agree to {proof.agreement:.4f}"
            adding.progress.say(f"{proof.runtime} {proof.precision} isn't proven ({told})")
    of_int8 = [one for one in proofs if one.precision == "int8"]
    if of_int8 and not any(one.passed for one in of_int8):
        _refuse_failed(of_int8[0], path)
    named = {f"{one.runtime} {one.precision}": one.as_dict() for one in proofs}
    extra[PROOFS] = (json.dumps(named, indent=2) + "\n").encode()
    written = write_bundle(
        path, card=bundle.card, weights=bundle.weights(), reference=bundle.reference(), extra=extra
    )
    return ExportResult(
        path=written.path,
        target="bundle",
        num_bytes=sum(map(len, extra.values())),
        proofs=tuple(proofs),
    )


def _prove_network(adding: _Adding, runtime: str, precision: str, extra: dict[str, bytes]) -> Proof:
    """Predict with a runtime as binseg will, beside torch in float32."""
    images = adding.images
    adding.progress.say(f"proving {runtime} {precision} on {len(images.images)} images")
    data = extra[NETWORK_INT8 if precision == "int8" else NETWORK]
    backend: Backend
    if runtime == "torch":
        backend = TorchBackend(adding.network, precision=precision)
    elif runtime == "onnxruntime":
        backend = onnx_backend(data, precision=precision, name=NETWORK)
    else:
        backend = openvino_backend(data, precision=precision, name=NETWORK)
    other = _predictor(adding.bundle, backend)
    limits = adding.of_int8 if precision == "int8" else None
    return prove(
        lambda image: adding.reference.predict(image).probability_HW,
        lambda image: other.predict(image).probability_HW,
        images.images,
        threshold=adding.reference.threshold,
        runtime=runtime,
        precision=backend.precision,
        beside="torch fp32",
        limits=limits or LIMITS[precision],
        truths=images.truths,
    )


def _runtimes(*, int8: bool) -> list[tuple[str, str]]:
    """Runtime and precision of each proof, as far as they are installed."""
    found = []
    if find_spec("onnxruntime") is not None:
        found += [("onnxruntime", "fp32"), *([("onnxruntime", "int8")] if int8 else [])]
    if find_spec("openvino") is not None:
        found.append(("openvino", "fp32"))
        if computes_bf16():
            found.append(("openvino", "bf16"))
        if int8:
            found.append(("openvino", "int8"))
    if not found:
        raise UsageError(
            "neither onnxruntime nor openvino is installed, so that nothing can be proven; "
            "install one: pip install 'binseg[export]'"
        )
    if computes_bf16():
        found.append(("torch", "bf16"))
    return found
