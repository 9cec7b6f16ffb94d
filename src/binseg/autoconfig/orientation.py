"""Do these images have an up? Judged from the images, not from their subject."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["Symmetry", "measure_symmetry"]

NUM_DRAWS = 999
"""Random mirrorings that the real images are compared with."""
CERTAIN = 0.01
"""Chance of a mistake that is taken."""


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """How the images differ from their mirror images, on average over all."""

    share: float
    """Of the difference between an image and its mirror image, how much all images share (a
    sky above): 0 none, 1 all."""
    p: float
    """How often images that are mirrored at random share as much."""
    num: int
    """Independent images."""

    @property
    def is_broken(self) -> bool:
        """Whether mirror images are told from images, beyond chance."""
        return self.p < CERTAIN


def measure_symmetry(
    thumbs_NHW: Float[np.ndarray, "N H W"], *, axis: int, seed: int = 0
) -> Symmetry:
    """Compare images with their mirror images.

    If nothing tells up from down, each image could as well have been taken upside down, and the
    part that changes sign under the mirror cancels out over many images. How far it may be from
    cancelling out by chance is found by mirroring them at random (a sign-flip test, exact under
    that hypothesis).

    Args:
        thumbs_NHW: small images (or masks) of one size, each independent of the others.
        axis: 1 mirrors up and down, 2 left and right.
        seed: of the random mirrorings.
    """
    num = len(thumbs_NHW)
    if num < 2:
        return Symmetry(share=0.0, p=1.0, num=num)
    odd_ND = ((thumbs_NHW - np.flip(thumbs_NHW, axis)) / 2).reshape(num, -1)
    # Each image counts alike, or one of high contrast would decide for all.
    odd_ND /= np.linalg.norm(odd_ND, axis=1, keepdims=True).clip(min=1e-9)
    seen = float(np.square(odd_ND.mean(axis=0)).sum())
    random = np.random.default_rng(seed)
    signs = random.choice([-1.0, 1.0], size=(NUM_DRAWS, num))
    by_chance = np.square(signs @ odd_ND / num).sum(axis=1)
    p = (1 + int((by_chance >= seen).sum())) / (NUM_DRAWS + 1)
    # Of unit vectors that share nothing, the mean has 1 / num of a square by chance.
    share = max(0.0, (seen - 1 / num) / (1 - 1 / num))
    return Symmetry(share=round(share, 4), p=p, num=num)
