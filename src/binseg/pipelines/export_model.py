"""Exporting a model: made, proven beside torch on images, and only then written."""

import json
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from binseg.errors import ExportError, UsageError
from binseg.inference import ModelPredictor
from binseg.inference.runtimes import Backend, computes_bf16
from binseg.inference.runtimes.exported import onnx_backend, openvino_backend
from binseg.inference.runtimes.torch import TorchBackend, load_network
from binseg.packaging import (
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    Bundle,
    read_bundle,
    write_bundle,
)
from binseg.packaging.exporting import (
    TARGETS,
    Made,
    core_onnx,
    describe_input,
    make_file,
    quantise,
)
from binseg.packaging.networks import SUFFIXES, Facts
from binseg.packaging.proof import LIMITS, Compute, Limits, Proof, prove
from binseg.packaging.raw_pixels import Pixels, RawPixels, by_torch
from binseg.pipelines.proof_images import ProofImages, as_pixels, find_images, small
from binseg.progress import SILENT, Progress
from binseg.storage import write_bytes
from binseg.transforms.preprocess import normalise, prepare

DESTINATIONS = (*TARGETS, "bundle")
CALIBRATION = 16
"""Images that int8 takes its ranges from."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The file that was written, and its proofs."""

    path: Path
    target: str
    num_bytes: int
    proofs: tuple[Proof, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the facts as plain data."""
        return {
            "path": str(self.path),
            "target": self.target,
            "bytes": self.num_bytes,
            "proofs": [proof.as_dict() for proof in self.proofs],
        }


@dataclass(frozen=True, kw_only=True)
class _Model:
    """The model to export, with all that its proof needs.

    `reference` is binseg's own prediction by torch in float32; `int8` are the limits of 8-bit
    numbers, None where they aren't asked for.
    """

    bundle: Bundle
    network: nn.Module
    reference: ModelPredictor
    images: ProofImages
    int8: Limits | None
    progress: Progress

    def prove(
        self,
        compute: Compute,
        images: ProofImages,
        *,
        runtime: str,
        precision: str,
        beside: str,
        reference: Compute | None = None,
        limits: Limits | None = None,
    ) -> Proof:
        """Compare with a reference, which is binseg's own prediction if left out."""
        of_precision = self.int8 if precision == "int8" and self.int8 else LIMITS[precision]
        return prove(
            reference or (lambda image_HWC: self.reference.predict(image_HWC).probability),
            compute,
            images.images,
            threshold=self.reference.threshold,
            runtime=runtime,
            precision=precision,
            beside=beside,
            limits=limits or of_precision,
            truths=images.truths,
        )


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
        pixels: kind of pixels that the file takes: uint8 or float32.
        max_dice_change: largest change of Dice by int8, instead of 0.003.
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
    limits = LIMITS["int8"]
    if max_dice_change is not None:
        limits = replace(limits, dice_change=max_dice_change)
    model = _Model(
        bundle=bundle,
        network=network,
        reference=_predictor(bundle, TorchBackend(network)),
        images=find_images(Path(run), bundle, progress),
        int8=limits if int8 else None,
        progress=progress,
    )
    if target == "bundle":
        return _into_bundle(model, out)
    path = Path(out) if out is not None else _beside(bundle, SUFFIXES[target])
    return _into_file(model, target, path, cast("Pixels", pixels))


def _into_file(model: _Model, target: str, path: Path, pixels: Pixels) -> ExportResult:
    """Write one file for a runtime, which takes raw pixels."""
    card, progress = model.bundle.card, model.progress
    raw = RawPixels(
        model.network, card.preprocessing, temperature=card.temperature, pixels=pixels
    ).eval()
    images = as_pixels(model.images, raw.pixels, raw.shape)
    for what, is_there in (
        (f"the model's test-time augmentation (tta {card.tta})", card.tta != "none"),
        ("the model's post-processing of masks", not card.postprocess.is_empty),
    ):
        if is_there:
            progress.say(f"{path.name} predicts without {what}, which the card's scores are with")
    progress.say(f"making {path.name}")
    if model.int8 is None:
        made = make_file(target, raw)
    else:
        samples = [one[None] for one in images.images[:CALIBRATION]]
        changed = partial(quantise, samples=samples, name="pixels")
        made = make_file(target, raw, precision="int8", changed=changed)
    progress.say(f"proving it on {len(images.images)} images beside torch in float32")
    proofs = _prove_file(model, made, raw, images)
    for proof in proofs:
        _refuse_failed(proof, path)
    if target == "openvino" and model.int8 is None and computes_bf16():
        # The precision of programs here that don't ask for one: told, and not required.
        proofs += _prove_file(model, make_file(target, raw, precision="bf16"), raw, images)[:1]
    sample_HWC = small(images.images[0])
    # The sample's probability is torch's, or for int8 the file's own.
    compute = made.compute if made.precision == "int8" else by_torch(raw)
    facts = Facts(
        card=json.loads(card.to_json()),
        threshold=card.threshold.value,
        input=describe_input(raw),
        proof={"precision": made.precision, "rows": [proof.as_dict() for proof in proofs]},
        reference_HWC=sample_HWC,
        reference_HW=compute(sample_HWC).astype(np.float32),
    )
    data = made.finish(facts.as_text())
    write_bytes(path, data)
    return ExportResult(path=path, target=target, num_bytes=len(data), proofs=tuple(proofs))


def _prove_file(model: _Model, made: Made, raw: RawPixels, images: ProofImages) -> list[Proof]:
    """Prove a file beside the same graph in torch, and beside binseg's own prediction."""
    own = LIMITS["whole" if raw.shape.resize == "tile" else "resized"]
    if made.precision == "int8":
        exact = model.int8 or LIMITS["int8"]
        own = Limits(
            difference=1.0,
            agreement=own.agreement * exact.agreement,
            agreement_alone=own.agreement_alone * exact.agreement_alone,
            dice_change=own.dice_change + exact.dice_change,
        )
    proven = partial(
        model.prove, made.compute, images, runtime=made.target, precision=made.precision
    )
    return [
        proven(beside="the same graph in torch", reference=by_torch(raw)),
        proven(beside="binseg predict", limits=own),
    ]


def _beside(bundle: Bundle, suffix: str) -> Path:
    """Name NAME.onnx in the run's folder, or beside a bundle that stands alone."""
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


def _into_bundle(model: _Model, out: str | Path | None) -> ExportResult:
    """Add the network to the bundle, with a proof for each runtime that is installed."""
    bundle, shape = model.bundle, model.bundle.card.preprocessing
    if out is None and bundle.path.is_file():
        raise UsageError(f"{bundle.path} is a zip: name a folder for the new bundle with --out")
    path = Path(out) if out is not None else bundle.path
    extra = {NETWORK: core_onnx(model.network, shape)}
    if model.int8 is not None:
        images = model.images.images[:CALIBRATION]
        inputs = [normalise(prepare(image, shape)[0][:1], shape) for image in images]
        extra[NETWORK_INT8] = quantise(extra[NETWORK], inputs, name="inputs")
    proofs = [
        _prove_network(model, runtime, precision, extra)
        for runtime, precision in _runtimes(int8=model.int8 is not None)
    ]
    for proof in proofs:
        if proof.precision == "fp32":
            _refuse_failed(proof, path)
        elif not proof.passed:
            told = f"masks agree to {proof.agreement:.4f}"
            model.progress.say(f"{proof.runtime} {proof.precision} isn't proven ({told})")
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


def _prove_network(model: _Model, runtime: str, precision: str, extra: dict[str, bytes]) -> Proof:
    """Predict with a runtime as binseg will, beside torch in float32."""
    images = model.images
    model.progress.say(f"proving {runtime} {precision} on {len(images.images)} images")
    data = extra[NETWORK_INT8 if precision == "int8" else NETWORK]
    backend: Backend
    if runtime == "torch":
        backend = TorchBackend(model.network, precision=precision)
    elif runtime == "onnxruntime":
        backend = onnx_backend(data, precision=precision, name=NETWORK)
    else:
        backend = openvino_backend(data, precision=precision, name=NETWORK)
    other = _predictor(model.bundle, backend)
    return model.prove(
        lambda image_HWC: other.predict(image_HWC).probability,
        images,
        runtime=runtime,
        precision=backend.precision,
        beside="torch fp32",
    )


def _runtimes(*, int8: bool) -> list[tuple[str, str]]:
    """List runtime and precision of each proof, as far as they are installed."""
    has_bf16 = computes_bf16()
    asked = (
        ("onnxruntime", "fp32", True),
        ("onnxruntime", "int8", int8),
        ("openvino", "fp32", True),
        ("openvino", "bf16", has_bf16),
        ("openvino", "int8", int8),
    )
    found = [
        (runtime, precision)
        for runtime, precision, is_asked in asked
        if is_asked and find_spec(runtime) is not None
    ]
    if not found:
        raise UsageError(
            "neither onnxruntime nor openvino is installed, so that nothing can be proven; "
            'install one: pip install "binseg[export]"'
        )
    return [*found, ("torch", "bf16")] if has_bf16 else found
