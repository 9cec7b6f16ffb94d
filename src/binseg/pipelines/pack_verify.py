"""Handing a model on: packed as one file, and verified where it arrives."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from binseg.errors import BundleError, MissingExtraError, UsageError
from binseg.inference import ReferenceCheck, load, verify_reference
from binseg.inference.runtimes import proofs_of
from binseg.packaging import Bundle, Card, Reference, pack_zip, read_bundle, rewritten, write_bundle
from binseg.packaging.networks import LIMITS, SUFFIXES, open_file, prove
from binseg.storage import read_bytes

FILE_TOLERANCES = {"fp32": 0.01, "bf16": 0.5, "int8": 0.25}  # Largest change of a probability


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """The zip that was written, the change by its rounded weights, and networks left out of it."""

    path: Path
    id: str
    name: str
    num_bytes: int
    largest_difference: float | None
    left_out: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the facts as plain data."""
        facts = asdict(self) | {"path": str(self.path), "left_out": list(self.left_out)}
        return {"bytes" if name == "num_bytes" else name: fact for name, fact in facts.items()}


def pack(
    run: str | Path,
    out: Path,
    *,
    half: bool = False,
    name: str | None = None,
    licence: str | None = None,
    note: str | None = None,
) -> PackResult:
    """Write a run or bundle as one zip file, its card with another `name`, `licence` and `note`.

    `half` stores weights in 16 bits (they compute in 32 again). Raises BundleError for weights too
    large for that, and OutputError.
    """
    bundle = read_bundle(run)
    card, difference = bundle.card, None
    left_out = tuple(file for file in bundle.sha256 if half and file.endswith(".onnx"))
    with tempfile.TemporaryDirectory() as scratch:
        if half or name or licence or note:
            facts: dict[str, object] = {"name": name or card.name}
            facts["licence"] = licence or card.licence
            if note is not None:
                facts["data"] = card.data.model_copy(update={"note": note})
            data = card.recipe.get("data")
            if isinstance(data, dict) and isinstance(path := data.get("path"), str):
                # Others needn't know in which folders the data lay.
                facts["recipe"] = {**card.recipe, "data": {**data, "path": Path(path).name}}
            card = card.model_copy(update=facts)
            bundle, difference = _changed(bundle, card, Path(scratch) / "bundle", half=half)
        pack_zip(bundle, out)
    return PackResult(
        path=out,
        id=bundle.card.id,
        name=bundle.card.name,
        num_bytes=out.stat().st_size,
        largest_difference=difference,
        left_out=left_out,
    )


def _changed(
    bundle: Bundle, card: Card, folder: Path, *, half: bool
) -> tuple[Bundle, float | None]:
    """Write the bundle with another card, and perhaps with rounded weights, into a folder."""
    if not half:
        return rewritten(bundle, folder, card), None
    weights, reference = bundle.weights(), bundle.reference()
    with np.errstate(over="ignore"):
        rounded = {
            key: one.astype(np.float16) if one.dtype == np.float32 else one
            for key, one in weights.items()
        }
    wrong = [key for key, one in rounded.items() if not np.isfinite(one).all()]
    if wrong:
        told = f"{wrong[0]} is too large for 16 bits; pack without --half"
        raise BundleError(f"{bundle.path}: {told}")
    inputs_NHWC, before_NHW = reference.input_NHWC[:1], reference.probability_NHW[:1]
    first = Reference(input_NHWC=inputs_NHWC, probability_NHW=before_NHW)
    write_bundle(folder, card=card, weights=rounded, reference=first)
    plain = load(folder, backend="torch", device="cpu", tta="none")  # as it is verified
    probability_NHW = plain.probability_of_inputs(inputs_NHWC)
    difference = float(np.abs(probability_NHW - before_NHW).max())
    reference = replace(first, probability_NHW=probability_NHW)
    return write_bundle(folder, card=card, weights=rounded, reference=reference), difference


def verify(path: str | Path, *, trust_code: bool = False) -> tuple[list[ReferenceCheck], list[str]]:
    """Compute the reference sample by each installed runtime; say what was left out and why."""
    given = Path(path)
    name = given.name.lower()
    target = next((target for target, end in SUFFIXES.items() if name.endswith(end)), None)
    if given.is_file() and target is not None:
        if target == "torch" and not trust_code:
            raise UsageError(
                f"{given}: torch unpickles such a file, which may run code; if you made it "
                "yourself, add --trust-code"
            )
        return [_verify_file(given, target)], []
    if given.is_file() and given.suffix.lower() != ".zip":
        raise BundleError(
            f"{given}: not a model by its name; verify takes a run, a bundle's folder or .zip, or "
            f"a file that ends in {', '.join(SUFFIXES.values())}"
        )
    bundle = read_bundle(given)
    asked = [("torch", "fp32"), *(name.split(" ") for name in proofs_of(bundle))]
    found: list[ReferenceCheck] = []
    left_out: list[str] = []
    for runtime, precision in asked:
        try:
            predictor = load(given, backend=runtime, precision=precision, device="cpu")
        except (MissingExtraError, UsageError) as problem:
            left_out.append(f"{runtime} {precision}: {problem}")
            continue
        found.append(verify_reference(predictor, bundle))
    if not found:
        raise BundleError(f"{given}: no runtime for it is installed: {'; '.join(left_out)}")
    return found, left_out


def _verify_file(path: Path, target: str) -> ReferenceCheck:
    try:
        data = read_bytes(path)
    except OSError as problem:
        raise BundleError(f"{path}: can't be read ({problem.strerror})") from None
    compute, facts = open_file(data, target, name=str(path))
    precision = str(facts.proof.get("precision"))
    if precision not in FILE_TOLERANCES:
        raise BundleError(f"{path}: not exported by binseg, or damaged (precision {precision})")
    probability_HW = compute(facts.reference_HWC)
    if probability_HW.shape != facts.reference_HW.shape:
        raise BundleError(f"{path}: damaged: its reference sample has another size than its output")
    proof = prove(
        lambda _: facts.reference_HW,
        lambda _: probability_HW,
        [facts.reference_HWC],
        threshold=facts.threshold,
        runtime=target,
        precision=precision,
        beside="the reference sample",
        limits=LIMITS[precision],
    )
    names = ("runtime", "precision", "largest_difference", "agreement")
    figures = {name: getattr(proof, name) for name in names}
    return ReferenceCheck(tolerance=FILE_TOLERANCES[precision], **figures)
