"""From a bundle's files to a predictor, and the proof that it answers as it should."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from binseg.errors import BundleError, UsageError
from binseg.inference.ensemble import Ensemble
from binseg.inference.machine import is_verified, remember_verified
from binseg.inference.runtimes import candidates, open_backend
from binseg.inference.single import Predictor
from binseg.packaging import Bundle, read_bundle
from binseg.types import TTA

__all__ = ["ReferenceCheck", "load", "verify_reference"]

_LOG = logging.getLogger("binseg")
_TOLERANCES = {"fp32": 1e-3, "bf16": 0.25, "int8": 0.5}
"""Largest difference of a reference probability. fp32 differs between processors by their order of
summing alone; bf16 keeps 8 bits of each number and int8 256 steps, which undecided pixels feel."""


@dataclass(frozen=True, kw_only=True)
class ReferenceCheck:
    """How near a runtime comes to the reference sample of a bundle."""

    largest_difference: float
    """Of any pixel's probability."""
    agreement: float
    """IoU of the masks at the predictor's threshold; 1 where both are empty."""
    tolerance: float
    passed: bool


def load(
    path: str | Path | Sequence[str | Path],
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 8,
    tta: TTA | None = None,
) -> Predictor:
    """Open a model to predict with, or several that answer together.

    Args:
        path: a bundle's folder, its zip, or a run's folder; several make an ensemble.
        backend: auto, torch, torch-compile, onnxruntime or openvino; auto takes the fastest that
            is installed and proven (`binseg export --to bundle`) and gives the reference sample's
            answer on this machine. `backend.name` of what is returned says which.
        device: auto, cpu or cuda.
        precision: fp32 (as the scores were taken), bf16 (faster on processors that compute in it;
            undecided pixels may change sides), int8, or auto: fp32, and bf16 where backend is auto
            and masks were proven to agree to 0.999 IoU.
        batch_size: largest number of inputs computed at once.
        tta: none, horizontal or all: mirror images that are predicted too and averaged; those
            that validation chose for the model (`card.tta`) if left out.

    Raises:
        BundleError: missing, damaged, edited, foreign, or of a newer format; or no installed
            runtime gives the reference sample's answer.
        UsageError: an unknown backend, device or precision.
        MissingExtraError: the runtime isn't installed.

    >>> load("runs/none")
    Traceback (most recent call last):
    binseg.errors.BundleError: runs/none: there is no such bundle; ...
    """
    if not isinstance(path, str | Path):
        members = [
            load(
                one,
                backend=backend,
                device=device,
                precision=precision,
                batch_size=batch_size,
                tta=tta,
            )
            for one in path
        ]
        return members[0] if len(members) == 1 else Ensemble(members)
    bundle = read_bundle(path)
    tried = candidates(bundle, name=backend, device=device, precision=precision)
    for index, (name, kind) in enumerate(tried):
        try:
            runtime = open_backend(bundle, name=name, device=device, precision=kind)
        except (UsageError, BundleError) as problem:
            if backend != "auto" or index + 1 == len(tried):
                raise
            _LOG.warning("%s: %s %s: %s; trying the next", bundle.path, name, kind, problem)
            continue
        opened = Predictor(
            backend=runtime,
            preprocessing=bundle.card.preprocessing,
            threshold=bundle.card.threshold.value,
            bundle_id=bundle.card.id,
            batch_size=batch_size,
            bundle=bundle,
            tta=bundle.card.tta if tta is None else tta,
            temperature=bundle.card.temperature,
            postprocessing=bundle.card.postprocess,
        )
        if backend != "auto" or name == "torch" or _holds_here(opened, bundle, name, kind):
            return opened
        _LOG.warning(
            "%s: %s %s was proven elsewhere but answers the reference sample otherwise on this "
            "machine; %s",
            bundle.path,
            name,
            kind,
            "trying the next" if index + 1 < len(tried) else "nothing else is installed",
        )
    raise BundleError(
        f"{bundle.path}: no installed runtime reproduces its reference sample on this machine; "
        "install torch (pip install 'binseg[train]') or export the model here"
    )


def _holds_here(opened: Predictor, bundle: Bundle, name: str, kind: str) -> bool:
    """Verify a network that was proven on another machine, once on this one."""
    if is_verified(bundle, name, kind):
        return True
    if not verify_reference(opened, bundle).passed:
        return False
    remember_verified(bundle, name, kind)
    return True


def verify_reference(predictor: Predictor, bundle: Bundle) -> ReferenceCheck:
    """Compute a bundle's reference sample again and compare: does it work on this machine?

    It isn't run at each load, because it takes as long as a prediction.

    Args:
        predictor: any runtime of the bundle's model.
        bundle: holds the sample.

    Raises:
        BundleError: the reference sample is damaged.
    """
    reference = bundle.reference()
    plain = predictor.with_tta("none")
    probability_NHW = plain.probability_of_inputs(reference.input_NHWC)
    difference = float(np.abs(probability_NHW - reference.probability_NHW).max())
    tolerance = _TOLERANCES[predictor.backend.precision]
    one, other = (
        maps > predictor.threshold for maps in (probability_NHW, reference.probability_NHW)
    )
    either = int((one | other).sum())
    return ReferenceCheck(
        largest_difference=difference,
        agreement=int((one & other).sum()) / either if either else 1.0,
        tolerance=tolerance,
        passed=difference <= tolerance,
    )
