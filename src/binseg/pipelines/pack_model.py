"""A model as one file to hand on, as it is or in half the size."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from binseg.errors import BundleError
from binseg.inference import load
from binseg.packaging import Bundle, Reference, pack_zip, read_bundle, write_bundle

__all__ = ["PackResult", "pack"]


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """What was written."""

    path: Path
    id: str
    name: str
    num_bytes: int
    largest_difference: float | None
    """Of a reference probability, by rounding the weights; None where nothing was rounded."""
    left_out: tuple[str, ...] = ()
    """Networks of other runtimes, which hold the weights before they were rounded."""

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "path": str(self.path),
            "id": self.id,
            "name": self.name,
            "bytes": self.num_bytes,
            "largest_difference": self.largest_difference,
            "left_out": list(self.left_out),
        }


def pack(
    run: str | Path,
    out: Path,
    *,
    half: bool = False,
    name: str | None = None,
    licence: str | None = None,
    note: str | None = None,
) -> PackResult:
    """Write a bundle as one zip file.

    Args:
        run: a run's folder or a bundle.
        out: the zip to write.
        half: store the weights in 16 bits (they compute in 32 again), which halves the file; one
            reference sample is kept, with the answer of the rounded weights.
        name: on the card, instead of the model's.
        licence: on the card.
        note: on the data, for the card.

    Raises:
        BundleError: weights too large for 16 bits.
        OutputError: the zip can't be written.
    """
    bundle = read_bundle(run)
    left_out = tuple(file for file in bundle.sha256 if half and file.endswith(".onnx"))
    difference = None
    if half or name or licence or note:
        with tempfile.TemporaryDirectory() as scratch:
            bundle, difference = _changed(
                bundle, Path(scratch) / "bundle", half=half, name=name, licence=licence, note=note
            )
            pack_zip(bundle, out)
    else:
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
    bundle: Bundle,
    folder: Path,
    *,
    half: bool,
    name: str | None,
    licence: str | None,
    note: str | None,
) -> tuple[Bundle, float | None]:
    """Write the bundle with another card, and perhaps with rounded weights, into a folder."""
    data = bundle.card.data if note is None else bundle.card.data.model_copy(update={"note": note})
    card = bundle.card.model_copy(
        update={
            "name": name or bundle.card.name,
            "licence": licence or bundle.card.licence,
            "data": data,
            "recipe": _without_folders(bundle.card.recipe),
        }
    )
    weights, reference = bundle.weights(), bundle.reference()
    if not half:
        extra = {
            file: bundle.read_bytes(file)
            for file in bundle.sha256
            if file.endswith(".onnx") or file == "proofs.json"
        }
        return write_bundle(
            folder, card=card, weights=weights, reference=reference, extra=extra
        ), None
    rounded = {key: _rounded(one) for key, one in weights.items()}
    wrong = [key for key, one in rounded.items() if not np.isfinite(one).all()]
    if wrong:
        raise BundleError(
            f"{bundle.path}: {wrong[0]} is too large for 16 bits; pack without --half"
        )
    first = Reference(
        input_NHWC=reference.input_NHWC[:1], probability_NHW=reference.probability_NHW[:1]
    )
    write_bundle(folder, card=card, weights=rounded, reference=first)
    plain = load(folder, backend="torch", device="cpu", tta="none")  # as it is verified
    answer = plain.probability_of_inputs(first.input_NHWC)
    difference = float(np.abs(answer - first.probability_NHW).max())
    reference = Reference(input_NHWC=first.input_NHWC, probability_NHW=answer)
    return write_bundle(folder, card=card, weights=rounded, reference=reference), difference


def _without_folders(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the name of its data alone: others needn't know where that lay."""
    data = recipe.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("path"), str):
        return recipe
    return {**recipe, "data": {**data, "path": Path(data["path"]).name}}


def _rounded(weights: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return weights.astype(np.float16) if weights.dtype == np.float32 else weights
