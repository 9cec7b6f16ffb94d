"""The proof that an export computes like its model: measured on images, never assumed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float32, Num

Compute = Callable[[Num[np.ndarray, "H W C"]], Float32[np.ndarray, "H W"]]
"""From pixels to the probability of foreground, of the image's size."""


def one_by_one(run: Callable[[Num[np.ndarray, "N H W C"]], np.ndarray]) -> Compute:
    """Compute image by image with a runtime that takes them by the batch."""
    return lambda pixels_HWC: np.array(run(np.array(pixels_HWC[None], order="C"))[0])


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest differences that a precision may bring.

    `difference` is that of any pixel's probability; `agreement` the least IoU of the two masks over
    all images together, and `agreement_alone` where no truth is known; `dice_change` the largest
    mean change of Dice where it is known, either way.
    """

    difference: float
    agreement: float
    agreement_alone: float
    dice_change: float


LIMITS = {
    "fp32": Limits(difference=0.01, agreement=0.999, agreement_alone=0.999, dice_change=0.0005),
    "bf16": Limits(difference=0.5, agreement=0.999, agreement_alone=0.999, dice_change=0.002),
    "int8": Limits(difference=1.0, agreement=0.9, agreement_alone=0.97, dice_change=0.003),
    "resized": Limits(difference=0.2, agreement=0.998, agreement_alone=0.998, dice_change=0.002),
    "whole": Limits(difference=1.0, agreement=0.9, agreement_alone=0.95, dice_change=0.01),
}
"""By the precision that is really computed in, where the inputs are equal; and two beside binseg's
own prediction, which differs more. `resized`: its resize (Pillow, in whole numbers) differs from
that inside a graph by a level of 255 here and there, which pixels at an outline feel. `whole`: its
tiles see less of the surroundings than a graph that computes the whole image at once."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Differences of a runtime from the reference that it stands `beside`, on the same images.

    `agreement` is the IoU of the two masks, pixels of all images together (1 where both are empty);
    `dice_change` the mean over images with truth, None without any.
    """

    runtime: str
    precision: str
    beside: str
    limits: Limits
    num_images: int
    largest_difference: float
    mean_difference: float
    agreement: float
    dice_change: float | None

    @property
    def passed(self) -> bool:
        """True where all limits are kept."""
        limits = self.limits
        least = limits.agreement_alone if self.dice_change is None else limits.agreement
        return (
            self.largest_difference <= limits.difference
            and self.agreement >= least
            and abs(self.dice_change or 0.0) <= limits.dice_change
        )

    def as_dict(self) -> dict[str, object]:
        """Return the figures as plain data."""
        return {**asdict(self), "passed": self.passed}


def prove(
    reference: Compute,
    candidate: Compute,
    images: Sequence[Num[np.ndarray, "H W C"]],
    *,
    threshold: float,
    runtime: str,
    precision: str,
    beside: str,
    limits: Limits,
    truths: Sequence[Bool[np.ndarray, "H W"] | None] = (),
) -> Proof:
    """Compare two runtimes on images of any sizes, some of which may have a truth.

    The candidate is what `runtime`, `precision` and `limits` tell of; `beside` names the reference.
    """
    assert images, "nothing is proven by no images"
    known = list(truths) or [None] * len(images)
    largest = total = 0.0
    num_pixels = both = either = 0
    changes: list[float] = []
    for image_HWC, truth_HW in zip(images, known, strict=True):
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
        beside=beside,
        limits=limits,
        num_images=len(images),
        largest_difference=largest,
        mean_difference=total / num_pixels,
        agreement=both / either if either else 1.0,
        dice_change=float(np.mean(changes)) if changes else None,
    )


def _dice(mask_HW: Bool[np.ndarray, "H W"], truth_HW: Bool[np.ndarray, "H W"]) -> float:
    """Compute Dice as `metrics` does: 1 where both are empty."""
    total = int(mask_HW.sum() + truth_HW.sum())
    return 2 * int((mask_HW & truth_HW).sum()) / total if total else 1.0
