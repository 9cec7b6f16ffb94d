"""Packing a model as one file to hand on, as it is or in half the size."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from binseg.errors import BundleError
from binseg.inference import load
from binseg.packaging import (
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    Bundle,
    Card,
    Reference,
    pack_zip,
    read_bundle,
    write_bundle,
)


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """The zip that was written."""

    path: Path
    id: str
    name: str
    num_bytes: int
    largest_difference: float | None
    """Change of a reference probability by rounding the weights; None where nothing was rounded."""
    left_out: tuple[str, ...] = ()
    """Networks of other runtimes, which hold the weights before they were rounded."""

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
    """Write a bundle as one zip file.

    Args:
        run: a run's folder or a bundle.
        out: the zip to write.
        half: store the weights in 16 bits (they compute in 32 again), which halves the file; one
            reference sample is kept, with the probability that the rounded weights give.
        name: on the card, instead of the model's.
        licence: on the card.
        note: about the data, for the card.

    Raises:
        BundleError: weights too large for 16 bits.
        OutputError: the zip can't be written.
    """
    bundle = read_bundle(run)
    left_out = tuple(file for file in bundle.sha256 if half and file.endswith(".onnx"))
    difference = None
    with tempfile.TemporaryDirectory() as scratch:
        if half or name or licence or note:
            card = bundle.card
            data = card.data if note is None else card.data.model_copy(update={"note": note})
            facts = {
                "name": name or card.name,
                "licence": licence or card.licence,
                "data": data,
                "recipe": _without_folders(card.recipe),
            }
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
    weights, reference = bundle.weights(), bundle.reference()
    if not half:
        added = {NETWORK, NETWORK_INT8, PROOFS} & set(bundle.sha256)
        extra = {file: bundle.read_bytes(file) for file in added}
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
    probability_NHW = plain.probability_of_inputs(first.input_NHWC)
    difference = float(np.abs(probability_NHW - first.probability_NHW).max())
    reference = replace(first, probability_NHW=probability_NHW)
    return write_bundle(folder, card=card, weights=rounded, reference=reference), difference


def _without_folders(recipe: dict[str, Any]) -> dict[str, Any]:
    """Leave only the name of its data in a recipe: others needn't know where that lay."""
    data = recipe.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("path"), str):
        return recipe
    return {**recipe, "data": {**data, "path": Path(data["path"]).name}}


def _rounded(weights: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return weights.astype(np.float16) if weights.dtype == np.float32 else weights
