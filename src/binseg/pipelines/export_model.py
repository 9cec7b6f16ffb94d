"""Exporting a model: made, proven beside torch on images, and only then written."""

import json
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Num
from torch import nn

from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.errors import BinsegError, ExportError, UsageError
from binseg.inference import ModelPredictor
from binseg.inference.runtimes import Backend, computes_bf16, onnx_backend, openvino_backend
from binseg.inference.runtimes.torch import TorchBackend, load_network
from binseg.packaging import (
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    Bundle,
    read_bundle,
    write_bundle,
)
from binseg.packaging.networks import LIMITS, SUFFIXES, Compute, Facts, Limits, Proof, prove
from binseg.packaging.raw_pixels import (
    TARGETS,
    Made,
    Pixels,
    RawPixels,
    by_torch,
    core_onnx,
    describe_input,
    make_file,
    quantise,
)
from binseg.progress import SILENT, Progress
from binseg.storage import write_bytes
from binseg.training.run_folder import RunFolder
from binseg.transforms.preprocess import normalise, prepare
from binseg.types import Preprocessing, Sample

MAX_IMAGES = 24
MAX_SIDE = 1024  # larger images are proven on their middle: whole ones would take gigabytes
ODD_SIZES = ((2, 3), (7, 300), (97, 33), (256, 256), (401, 223))
REFERENCE_SIDE = 192


@dataclass(frozen=True, kw_only=True)
class ProofImages:
    """Images as they are read (uint8, uint16 or float32), each with its truth where it is known."""

    images: list[Num[np.ndarray, "H W C"]]
    truths: list[Bool[np.ndarray, "H W"] | None]


def find_images(run: Path, bundle: Bundle, progress: Progress) -> ProofImages:
    """Find up to 24 validation images of a run, or its bundle's reference sample; and odd sizes."""
    images, truths = _validation(run, bundle.card.preprocessing.channels, progress)
    reference = bundle.reference().input_NHWC
    if not images:
        images, truths = list(reference), [None] * len(reference)
    random = np.random.default_rng(0)
    for height, width in ODD_SIZES:
        # Real pixels rather than noise, which no network was made for.
        source = reference[int(random.integers(len(reference)))]
        rows = np.linspace(0, len(source) - 1, height).astype(int)
        columns = np.linspace(0, source.shape[1] - 1, width).astype(int)
        images.append(np.ascontiguousarray(source[rows][:, columns]))
        truths.append(None)
    return ProofImages(images=images, truths=truths)


def as_pixels(images: ProofImages, pixels: Pixels, preprocessing: Preprocessing) -> ProofImages:
    """Convert images into an exported file's pixels; with `intensity: percentile` floats stay."""

    def as_floats(image_HWC: np.ndarray) -> np.ndarray:
        is_whole = image_HWC.dtype.kind != "f" and preprocessing.intensity != "percentile"
        full = np.iinfo(image_HWC.dtype).max if is_whole else 1
        return (image_HWC / np.float32(full)).astype(np.float32)

    convert = _as_bytes if pixels == "uint8" else as_floats
    return replace(images, images=[convert(one) for one in images.images])


def small(image_HWC: Num[np.ndarray, "H W C"]) -> Num[np.ndarray, "h w C"]:
    """Thin an image out to 192 pixels a side, so that it can travel inside a file."""
    every = -(-max(image_HWC.shape[:2]) // REFERENCE_SIDE)
    return np.ascontiguousarray(image_HWC[::every, ::every])


def _as_bytes(image_HWC: Num[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W C"]:
    if image_HWC.dtype == np.uint8:
        return image_HWC
    if image_HWC.dtype == np.uint16:
        return (image_HWC >> 8).astype(np.uint8)
    low, high = float(image_HWC.min()), float(image_HWC.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((image_HWC - low) / (high - low or 1.0) * 255).astype(np.uint8)


def _validation(
    run: Path, channels: int, progress: Progress
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Read validation images of a run with their masks; none where its data isn't at hand."""
    if not (run / "recipe.yaml").is_file():
        progress.say("no run folder: proven on the bundle's reference sample, without truth")
        return [], []
    folder = RunFolder.open(run)
    recipe = folder.recipe()
    try:
        dataset = open_dataset(recipe.data, progress=SILENT)
        splits = folder.splits()
        records = [one for one in dataset.records if splits.get(one.id) == "val"]
        chosen = records[:: max(1, len(records) // MAX_IMAGES)][:MAX_IMAGES]
        # One whole image in memory at a time: they may be large.
        pairs = [_middle_of(read_sample(one, dataset.rule)) for one in chosen]
    except BinsegError as problem:
        progress.say(f"the run's data can't be read ({problem}): proven without masks")
        return [], []
    images, truths = [], []
    for image_HWC, truth_HW in pairs:
        # Grey is repeated for a model of several channels; other numbers are left out.
        if image_HWC.shape[2] in (channels, 1):
            images.append(image_HWC.repeat(channels // image_HWC.shape[2], axis=2))
            truths.append(truth_HW)
    return images, truths


def _middle_of(sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    height, width = sample.image_HWC.shape[:2]
    top, left = max(0, height - MAX_SIDE) // 2, max(0, width - MAX_SIDE) // 2
    middle = np.s_[top : top + MAX_SIDE, left : left + MAX_SIDE]
    mask_HW = None if sample.mask_HW is None else np.ascontiguousarray(sample.mask_HW[middle])
    return np.ascontiguousarray(sample.image_HWC[middle]), mask_HW


DESTINATIONS = (*TARGETS, "bundle")
CALIBRATION = 16  # images that int8 takes its ranges from


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
    """The model to export, its prediction by torch in float32, and the limits of 8-bit numbers."""

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
        precision: str,
        reference: Compute | None = None,
        limits: Limits | None = None,
        **names: str,
    ) -> Proof:
        of_precision = self.int8 if precision == "int8" and self.int8 else LIMITS[precision]
        return prove(
            reference or (lambda image_HWC: self.reference.predict(image_HWC).probability),
            compute,
            images.images,
            threshold=self.reference.threshold,
            precision=precision,
            limits=limits or of_precision,
            truths=images.truths,
            **names,
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
    """Export a run or bundle, prove it, and write it; nothing is written where the proof fails.

    `target` is onnx, openvino or torch (one file that takes raw `pixels`, uint8 or float32, of any
    size) or bundle (for prediction without torch); `int8` is calibrated on validation images, and
    may change Dice by `max_dice_change` instead of 0.003. Raises UsageError, ExportError (the proof
    failed) and MissingExtraError.
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
        reference=ModelPredictor.of_bundle(bundle, TorchBackend(network)),
        images=find_images(Path(run), bundle, progress),
        int8=limits if int8 else None,
        progress=progress,
    )
    if target == "bundle":
        return _into_bundle(model, out)
    path = Path(out) if out is not None else _beside(bundle, SUFFIXES[target])
    return _into_file(model, target, path, cast("Pixels", pixels))


def _into_file(model: _Model, target: str, path: Path, pixels: Pixels) -> ExportResult:
    card, progress = model.bundle.card, model.progress
    raw = RawPixels(
        model.network, card.preprocessing, temperature=card.temperature, pixels=pixels
    ).eval()
    images = as_pixels(model.images, raw.pixels, raw.shape)
    for what, is_there in (
        (f"the model's test-time augmentation (tta {card.tta})", card.tta != "none"),
        ("the model's post-processing of masks", not card.postprocess.is_empty),
        ("the model's value of no data", card.preprocessing.nodata is not None),
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
        mixed = make_file(target, raw, precision="bf16")
        proofs += _prove_file(model, mixed, raw, images)[:1]
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
    prove_it = partial(model.prove, made.compute, images)
    proven = partial(prove_it, runtime=made.target, precision=made.precision)
    return [
        proven(beside="the same graph in torch", reference=by_torch(raw)),
        proven(beside="binseg predict", limits=own),
    ]


def _beside(bundle: Bundle, suffix: str) -> Path:
    """Name NAME.onnx in the run's folder, or beside a bundle that stands alone."""
    home = bundle.path.parent
    name = home.name if bundle.path.name == "bundle" else bundle.path.stem
    return home / f"{name}{suffix}"


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
    size = sum(map(len, extra.values()))
    return ExportResult(path=written.path, target="bundle", num_bytes=size, proofs=tuple(proofs))


def _prove_network(model: _Model, runtime: str, precision: str, extra: dict[str, bytes]) -> Proof:
    images = model.images
    model.progress.say(f"proving {runtime} {precision} on {len(images.images)} images")
    data = extra[NETWORK_INT8 if precision == "int8" else NETWORK]
    backend: Backend
    if runtime == "torch":
        backend = TorchBackend(model.network, precision=precision)
    else:
        opened = onnx_backend if runtime == "onnxruntime" else openvino_backend
        backend = opened(data, precision=precision, name=NETWORK)
    other = ModelPredictor.of_bundle(model.bundle, backend)
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
    asked = {"onnxruntime": {"fp32": True, "int8": int8}}
    asked["openvino"] = {"fp32": True, "bf16": has_bf16, "int8": int8}
    installed = [runtime for runtime in asked if find_spec(runtime) is not None]
    found = [(one, kind) for one in installed for kind, is_asked in asked[one].items() if is_asked]
    if not found:
        raise UsageError(
            "neither onnxruntime nor openvino is installed, so that nothing can be proven; "
            'install one: pip install "binseg[export]"'
        )
    return [*found, ("torch", "bf16")] if has_bf16 else found
