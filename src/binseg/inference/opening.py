"""From a bundle's files to a predictor, and the proof that it answers as it should."""

import hashlib
import logging
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack, overload

import numpy as np

from binseg.errors import BundleError, OutputError, UsageError
from binseg.inference.ensemble import EnsemblePredictor
from binseg.inference.predict_options import PredictOptions
from binseg.inference.predictor import ModelPredictor, Predictor
from binseg.inference.pretrained import model_of
from binseg.inference.runtimes import candidates, open_backend
from binseg.packaging import NETWORK, NETWORK_INT8, Bundle, read_bundle
from binseg.parallel import processor_facts
from binseg.postprocess import above
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
