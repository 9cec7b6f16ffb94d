"""From bundles to a predictor, of one model or several, and the proof that it answers rightly."""

import hashlib
import logging
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self, TypedDict, TypeVar, Unpack, overload

import numpy as np
from jaxtyping import Float32

from binseg.errors import BundleError, OutputError, UsageError
from binseg.inference.predict_options import Inputs, Maps, Pixels, PredictOptions, Probability
from binseg.inference.predictor import ModelPredictor, Predictor, Tell, untold
from binseg.inference.pretrained import model_of
from binseg.inference.runtimes import candidates, open_backend
from binseg.packaging import NETWORK, NETWORK_INT8, Bundle, read_bundle
from binseg.parallel import processor_facts
from binseg.postprocess import NOTHING, above
from binseg.storage import cache_dir, write_bytes
from binseg.types import TTA

_LOG = logging.getLogger("binseg")
_TOLERANCES = {"fp32": 1e-3, "bf16": 0.25, "int8": 0.5}
"""Largest difference of a reference probability. fp32 differs between processors by their order of
summing alone; bf16 keeps 8 bits of each number and int8 256 steps, which undecided pixels feel."""
M = TypeVar("M", bound=ModelPredictor)


class LoadSettings(TypedDict, total=False):
    """Settings by which a model is loaded; each may be left out."""

    backend: str
    """auto, torch, onnxruntime or openvino; auto takes the fastest that is installed and proven
    (`binseg export --to bundle`) and gives the reference sample's answer on this machine.
    `backend.name` of what is returned says which."""
    device: str
    """auto, cpu or cuda."""
    precision: str
    """fp32 (as the scores were taken), bf16 (faster on processors that compute in it; undecided
    pixels may change sides), int8, or auto: fp32, and bf16 where backend is auto and masks were
    proven to agree to 0.999 IoU."""
    batch_size: int
    """Most inputs of the model's own size that are computed at once; 8 if left out."""
    tta: TTA | None
    """Mirror images that are predicted too and averaged: none, horizontal or all; those that
    validation chose for the model (`card.tta`) if left out."""


@dataclass(frozen=True, kw_only=True)
class ReferenceCheck:
    """A runtime's probability of the reference sample beside the stored one."""

    runtime: str
    precision: str
    largest_difference: float  # largest difference of any pixel's probability
    agreement: float  # IoU of the masks at the predictor's threshold; 1 where both are empty
    tolerance: float

    @property
    def passed(self) -> bool:
        """True where the difference lies within the tolerance."""
        return self.largest_difference <= self.tolerance

    def as_dict(self) -> dict[str, object]:
        """Return the figures as plain data."""
        return {**asdict(self), "passed": self.passed}


@overload
def load(path: str | Path, **settings: Unpack[LoadSettings]) -> ModelPredictor: ...
@overload
def load(path: Sequence[str | Path], **settings: Unpack[LoadSettings]) -> Predictor: ...
def load(path: str | Path | Sequence[str | Path], **settings: Unpack[LoadSettings]) -> Predictor:
    """Open a model to predict with, or several that answer together, as `binseg.load` does.

    >>> load("runs/none")
    Traceback (most recent call last):
    binseg.errors.BundleError: runs/none: there is no such bundle; ...
    """
    if isinstance(path, str | Path):
        return open_model(path, ModelPredictor, **settings)
    members = [open_model(one, ModelPredictor, **settings) for one in path]
    return members[0] if len(members) == 1 else EnsemblePredictor(members)


def open_model(path: str | Path, kind: type[M], **settings: Unpack[LoadSettings]) -> M:
    """Do as `load` does for one model, as a predictor of the given class."""
    bundle = read_bundle(model_of(path) or path)
    backend = settings.get("backend", "auto")
    device = settings.get("device", "auto")
    tried = candidates(
        bundle, name=backend, device=device, precision=settings.get("precision", "auto")
    )
    for name, precision in tried:
        is_last = (name, precision) == tried[-1]
        try:
            runtime = open_backend(bundle, name=name, device=device, precision=precision)
        except (UsageError, BundleError) as problem:
            if backend != "auto" or is_last:
                raise
            _LOG.warning("%s: %s %s: %s; trying the next", bundle.path, name, precision, problem)
            continue
        opened = kind.of_bundle(
            bundle,
            runtime,
            batch_size=settings.get("batch_size", 8),
            tta=settings.get("tta") or bundle.card.tta,
            postprocessing=bundle.card.postprocess,
        )
        if backend != "auto" or name == "torch" or _holds_here(opened, bundle, name, precision):
            return opened
        told = (
            "was proven elsewhere but answers the reference sample otherwise on this machine; "
            + ("nothing else is installed" if is_last else "trying the next")
        )
        _LOG.warning("%s: %s %s %s", bundle.path, name, precision, told)
    raise BundleError(
        f"{bundle.path}: no installed runtime reproduces its reference sample on this machine; "
        'install torch (pip install "binseg[train]") or export the model here'
    )


def verify_reference(predictor: ModelPredictor, bundle: Bundle) -> ReferenceCheck:
    """Compute a bundle's reference sample again and compare; BundleError if it is damaged."""
    reference = bundle.reference()
    plain = predictor.with_options(PredictOptions(tta="none"))
    probability_NHW = plain.probability_of_inputs(reference.input_NHWC)
    one, other = (
        above(maps, predictor.threshold) for maps in (probability_NHW, reference.probability_NHW)
    )
    either = int((one | other).sum())
    return ReferenceCheck(
        runtime=predictor.backend.name,
        precision=predictor.backend.precision,
        largest_difference=float(np.abs(probability_NHW - reference.probability_NHW).max()),
        agreement=int((one & other).sum()) / either if either else 1.0,
        tolerance=_TOLERANCES[predictor.backend.precision],
    )


def _holds_here(opened: ModelPredictor, bundle: Bundle, name: str, precision: str) -> bool:
    """Verify a network that was proven on another machine, once on this one."""
    if is_verified(bundle, name, precision):
        return True
    if passed := verify_reference(opened, bundle).passed:
        remember_verified(bundle, name, precision)
    return passed


def is_verified(bundle: Bundle, runtime: str, precision: str) -> bool:
    """Tell whether this very network passed in this runtime's version on this processor."""
    return _mark(bundle, runtime, precision).is_file()


def remember_verified(bundle: Bundle, runtime: str, precision: str) -> None:
    """Note that it passed; where the cache can't be written, it is verified again next time."""
    with suppress(OutputError):
        write_bytes(_mark(bundle, runtime, precision), b"")


def _mark(bundle: Bundle, runtime: str, precision: str) -> Path:
    network = bundle.sha256[NETWORK_INT8 if precision == "int8" else NETWORK]
    try:
        release = version(runtime)
    except PackageNotFoundError:  # built from source, or of another distribution's name
        release = "unknown"
    known = processor_facts()  # its flags decide how a runtime computes
    told = [
        known[name] for name in ("model name", "flags", "features", "cpu part") if name in known
    ]
    processor = "\n".join(told) or f"{platform.machine()} {platform.processor()}"
    facts = (network, bundle.card.id, runtime, release, precision, processor)
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    return cache_dir() / "verified" / name


class EnsemblePredictor(Predictor):
    """The mean of two or more models of one border rule; without a threshold that of theirs."""

    def __init__(
        self, members: Sequence[ModelPredictor], *, threshold: float | None = None
    ) -> None:
        if len(members) < 2:
            raise UsageError(f"an ensemble of {len(members)}: give at least two models")
        ids = [one.bundle_id for one in members]
        if len(set(ids)) < len(ids):
            raise UsageError(f"an ensemble with a model twice ({', '.join(ids)}): give each once")
        borders = {one.card.border for one in members if one.card}
        if len(borders) > 1:
            raise UsageError(
                f"an ensemble of models that learnt other borders ({', '.join(sorted(borders))}): "
                "give models trained with one --border"
            )
        self.bundle_id = "+".join(ids)
        self.threshold = (
            sum(one.threshold for one in members) / len(members) if threshold is None else threshold
        )
        # Post-processing that only some of them bring wasn't chosen for their mean.
        each = {one.postprocessing for one in members}
        self.postprocessing = each.pop() if len(each) == 1 else NOTHING
        self._set_members(tuple(members))

    def _set_members(self, members: tuple[ModelPredictor, ...]) -> None:
        self._members = members
        self.batch_size = min(one.batch_size for one in members)
        shapes = {one.preprocessing for one in members}
        self.preprocessing = shapes.pop() if len(shapes) == 1 else None

    @property
    def name(self) -> str:
        """The names of all members."""
        return " + ".join(one.name for one in self._members)

    @property
    def members(self) -> tuple[ModelPredictor, ...]:
        """The single models that answer."""
        return self._members

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that must be read with its scores."""
        return (
            f"An ensemble of {len(self._members)} models: the mean of their probabilities. Each "
            "threshold was chosen alone; theirs is the mean, unless another one was asked for.",
            *dict.fromkeys(remark for one in self._members for remark in one.remarks),
        )

    def with_options(self, options: PredictOptions) -> Self:
        """Return the same members with other settings."""
        other = super().with_options(options)
        other._set_members(tuple(one.with_options(options) for one in self._members))
        return other

    def probability_of_image(
        self, image_HWC: Pixels, name: str = "the image", *, tell: Tell = untold
    ) -> Probability:
        """Compute the members' mean probability at the image's own size."""
        if self.preprocessing is not None:  # prepared, and brought back to its size, once for all
            return super().probability_of_image(image_HWC, name, tell=tell)
        return mean_of(
            [one.probability_of_image(image_HWC, name, tell=tell) for one in self._members]
        )

    def probability_of_inputs(self, inputs_NHWC: Inputs) -> Maps:
        """Compute the members' mean probability for inputs of the preprocessing they share."""
        assert self.preprocessing is not None, "members with inputs of their own share none"
        return mean_of([one.probability_of_inputs(inputs_NHWC) for one in self._members])

    def __repr__(self) -> str:
        members = ", ".join(map(repr, self._members))
        return f"{type(self).__name__}({members}, threshold {self.threshold:g})"


def mean_of(maps: Sequence[Float32[np.ndarray, "*shape"]]) -> Float32[np.ndarray, "*shape"]:
    """Average probabilities."""
    total = sum(maps[1:], maps[0])
    # The sum of float32 may pass 1 by a rounding error.
    return np.asarray(np.clip(total / np.float32(len(maps)), 0.0, 1.0))
