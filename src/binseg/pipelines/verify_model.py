"""Verifying that a bundle or an exported file computes here as it did where it was made."""

from dataclasses import asdict, dataclass
from pathlib import Path

from binseg.errors import BundleError, MissingExtraError, UsageError
from binseg.inference import load, verify_reference
from binseg.inference.runtimes import proofs_of
from binseg.packaging import read_bundle
from binseg.packaging.exported_file import SUFFIXES, open_file
from binseg.packaging.proof import LIMITS, prove

FILE_TOLERANCES = {"fp32": 0.01, "bf16": 0.5, "int8": 0.25}
"""Largest difference of a reference probability by an exported file."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One runtime's probability of the reference sample beside the stored one."""

    runtime: str
    precision: str
    largest_difference: float
    agreement: float
    """IoU of the masks at the model's threshold; 1 where both are empty."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """True where the difference lies within the tolerance."""
        return self.largest_difference <= self.tolerance

    def as_dict(self) -> dict[str, object]:
        """Return the figures as plain data."""
        return {**asdict(self), "passed": self.passed}


def verify(path: str | Path, *, trust_code: bool = False) -> tuple[list[Verification], list[str]]:
    """Compute the reference sample again, by each runtime that is installed.

    Args:
        path: a run's folder, a bundle (folder or zip), or a file of `binseg export`, which is known
            by its suffix.
        trust_code: open files for torch (.pt2) too, which may run code.

    Returns:
        One verification for each runtime, and what was left out and why.

    Raises:
        BundleError: damaged, or not from binseg; or no runtime for it is installed.
        UsageError: a file for torch without `trust_code`.
        MissingExtraError: the runtime of an exported file isn't installed.
    """
    given = Path(path)
    endings = {target: given.name.lower().endswith(end) for target, end in SUFFIXES.items()}
    target = next((target for target, fits in endings.items() if fits), None)
    if given.is_file() and target is not None:
        if target == "torch" and not trust_code:
            raise UsageError(
                f"{given}: torch unpickles such a file, which may run code; if you made it "
                "yourself, add --trust-code"
            )
        return [_file(given, target)], []
    if given.is_file() and given.suffix.lower() != ".zip":
        raise BundleError(
            f"{given}: not a model by its name; verify takes a run, a bundle's folder or .zip, or "
            f"a file that ends in {', '.join(SUFFIXES.values())}"
        )
    bundle = read_bundle(given)
    asked = [("torch", "fp32"), *(name.split(" ") for name in proofs_of(bundle))]
    found: list[Verification] = []
    left_out: list[str] = []
    for runtime, precision in asked:
        try:
            predictor = load(given, backend=runtime, precision=precision, device="cpu")
        except (MissingExtraError, UsageError) as problem:
            left_out.append(f"{runtime} {precision}: {problem}")
            continue
        check = verify_reference(predictor, bundle)
        found.append(
            Verification(
                runtime=predictor.backend.name,
                precision=predictor.backend.precision,
                largest_difference=check.largest_difference,
                agreement=check.agreement,
                tolerance=check.tolerance,
            )
        )
    if not found:
        raise BundleError(f"{given}: no runtime for it is installed: {'; '.join(left_out)}")
    return found, left_out


def _file(path: Path, target: str) -> Verification:
    try:
        data = path.read_bytes()
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
    return Verification(
        runtime=target,
        precision=precision,
        largest_difference=proof.largest_difference,
        agreement=proof.agreement,
        tolerance=FILE_TOLERANCES[precision],
    )
