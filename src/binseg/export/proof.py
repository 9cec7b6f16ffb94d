"""Does a file answer like the model that it was made of? Measured on pictures, never assumed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

__all__ = ["LIMITS", "Limits", "Proof", "prove"]

Answer = Callable[[UInt8[np.ndarray, "H W C"]], Float32[np.ndarray, "H W"]]
"""Pixels to the probability of foreground, of the picture's size."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed of a precision."""

    difference: float
    """Of any pixel's probability."""
    agreement: float
    """Least IoU of the two masks, over all pictures together."""
    dice_change: float
    """Mean change of Dice where truth is known, either way."""


LIMITS = {
    "fp32": Limits(difference=0.05, agreement=0.998, dice_change=0.002),
    "bf16": Limits(difference=0.5, agreement=0.995, dice_change=0.002),
    "int8": Limits(difference=1.0, agreement=0.97, dice_change=0.003),
}
"""By the precision that is really computed in. Single pixels at an outline may differ more than
the mask shows: resizing inside a graph rounds a level of 255 otherwise here and there."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How two runtimes' answers to the same pictures differ."""

    runtime: str
    precision: str
    """The one that was really computed in."""
    num_pictures: int
    largest_difference: float
    mean_difference: float
    agreement: float
    """IoU of the two masks, pixels of all pictures together; 1 where both are empty."""
    dice_change: float | None
    """Of the mean over pictures with truth; None without truth."""

    @property
    def passed(self) -> bool:
        """Whether it keeps the limits of its precision."""
        limits = LIMITS[self.precision]
        return (
            self.largest_difference <= limits.difference
            and self.agreement >= limits.agreement
            and abs(self.dice_change or 0.0) <= limits.dice_change
        )

    def as_dict(self) -> dict[str, object]:
        """The figures as plain data."""
        return {**asdict(self), "passed": self.passed}


def prove(
    reference: Answer,
    candidate: Answer,
    pictures: Sequence[UInt8[np.ndarray, "H W C"]],
    *,
    threshold: float,
    runtime: str,
    precision: str,
    truths: Sequence[Bool[np.ndarray, "H W"] | None] = (),
) -> Proof:
    """Compare two runtimes on pictures.

    Args:
        reference: torch in float32, through binseg's own preprocessing.
        candidate: the file.
        pictures: of any sizes.
        threshold: of the masks that are compared.
        runtime: name of the candidate.
        precision: that it computes in.
        truths: a mask for each picture, or None; none at all if left out.
    """
    assert pictures, "nothing is proven by no pictures"
    known = list(truths) or [None] * len(pictures)
    largest, total, num_pixels, both, either = 0.0, 0.0, 0, 0, 0
    changes: list[float] = []
    for image_HWC, truth_HW in zip(pictures, known, strict=True):
        ours_HW, theirs_HW = reference(image_HWC), candidate(image_HWC)
        difference_HW = np.abs(ours_HW.astype(np.float64) - theirs_HW)
        largest = max(largest, float(difference_HW.max()))
        total += float(difference_HW.sum())
        num_pixels += difference_HW.size
        one_HW, other_HW = ours_HW > threshold, theirs_HW > threshold
        both += int((one_HW & other_HW).sum())
        either += int((one_HW | other_HW).sum())
        if truth_HW is not None:
            changes.append(_dice(other_HW, truth_HW) - _dice(one_HW, truth_HW))
    return Proof(
        runtime=runtime,
        precision=precision,
        num_pictures=len(pictures),
        largest_difference=largest,
        mean_difference=total / num_pixels,
        agreement=both / either if either else 1.0,
        dice_change=float(np.mean(changes)) if changes else None,
    )


def _dice(mask_HW: Bool[np.ndarray, "H W"], truth_HW: Bool[np.ndarray, "H W"]) -> float:
    """As `metrics.dice`: 1 where both are empty."""
    total = int(mask_HW.sum() + truth_HW.sum())
    return 2 * int((mask_HW & truth_HW).sum()) / total if total else 1.0
