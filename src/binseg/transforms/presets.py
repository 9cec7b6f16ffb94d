"""Named sets of random changes, and what a recipe makes of them."""

import math
from dataclasses import dataclass, replace
from typing import Any

from binseg.config.recipe import AugmentConfig

UPRIGHT_ANGLE = 20.0  # largest angle of images that have an up, in degrees
CHANCE = 0.5  # probability of a change that a recipe's own field asks for and the preset leaves off
_CHANCE_OF = {"rotate": "affine", "scale": "affine", "elastic": "affine", "gamma": "jitter",
              "noise": "noisy"}  # fmt: skip
_SHARES, _AMOUNTS = ("brightness", "contrast", "saturation"), ("gamma", "noise")
MAX_CONTEXT = 1.5
"""Patches are cut at most this much larger than they are used; beyond it they are mirrored."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Strengths of changes; `affine` is the chance of rotate..elastic, `jitter` that of light."""

    source: str  # origin of the preset, in a few words
    flip: float = 0.0
    flip_vertical: float = 0.0
    quarter_turn: float = 0.0
    affine: float = 0.0
    rotate: float = 0.0  # largest angle in degrees, either way
    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest factor: above 1 enlarges
    shift: float = 0.0  # largest shift as a share of the side
    elastic: float = 0.0  # largest displacement of a smooth deformation, as a share of the side
    crop_area: tuple[float, float] | None = None
    """A random crop of this share of the area (aspect 3:4 to 4:3), resized to the whole; always."""
    jitter: float = 0.0
    brightness: float = 0.0  # factor from 1 - this to 1 + this; likewise contrast and saturation
    contrast: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0  # exponent from 1 / (1 + this) to 1 + this
    invert: float = 0.0  # probability that light and dark change places
    grey: float = 0.0  # probability that colours are taken away
    noise: float = 0.0  # largest standard deviation of Gaussian noise; white is 1
    noisy: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 0.8)
    """In pixels; Albumentations takes 0.8 for a kernel of 3."""

    @property
    def context(self) -> float:
        """Factor by which an input must exceed the output, so that nothing need be mirrored."""
        if self.affine == 0:
            return 1.0
        angle = math.radians(min(self.rotate, 45.0))
        turned = (math.cos(angle) + math.sin(angle)) / min(1.0, self.scale[0])
        return min(MAX_CONTEXT, turned + 2 * self.shift + 2 * self.elastic)


PRESETS: dict[str, Preset] = {
    "none": Preset(source="no change"),
    "mild": Preset(
        source="report D's, with a little scale and shift",
        flip=0.5, affine=0.3, rotate=15.0, scale=(0.9, 1.1), shift=0.05,
        jitter=0.5, brightness=0.2, contrast=0.2, saturation=0.2,
    ),
    "medium": Preset(
        source="mild, with more of everything, for long runs of small networks",
        flip=0.5, affine=0.7, rotate=15.0, scale=(0.75, 1.35), shift=0.08,
        jitter=0.8, brightness=0.25, contrast=0.25, saturation=0.25,
    ),
    "strong": Preset(
        source="medium, with deformation, exposure, noise and blur, for few images",
        flip=0.5, affine=0.8, rotate=20.0, scale=(0.65, 1.5), shift=0.08, elastic=0.02,
        jitter=0.8, brightness=0.3, contrast=0.3, saturation=0.3, gamma=0.4,
        noise=0.05, noisy=0.25, blur=0.25, blur_sigma=(0.5, 1.2),
    ),
    "pet-plain": Preset(
        source="report A: flip, rotation, jitter, random resized crop, shift",
        flip=0.5, affine=1.0, rotate=20.0, shift=0.1, crop_area=(0.8, 1.0),
        jitter=1.0, brightness=0.2, contrast=0.2, saturation=0.2,
    ),
    "pet-augmented": Preset(
        source="report B: flips, quarter turns, shift-scale-rotate, brightness-contrast, blur",
        flip=0.5, flip_vertical=0.2, quarter_turn=0.3,
        affine=0.5, rotate=15.0, scale=(0.8, 1.2), shift=0.1,
        jitter=0.2, brightness=0.2, contrast=0.2, blur=0.3,
    ),
    "em": Preset(source="tutorial C: none; it only scales values to [0, 1]"),
    "pet-cosine": Preset(
        source="report D: flip, rotation, jitter",
        flip=0.5, affine=0.3, rotate=15.0,
        jitter=0.5, brightness=0.2, contrast=0.2, saturation=0.2,
    ),
}  # fmt: skip


def resolve_preset(config: AugmentConfig) -> Preset:
    """Give the preset of a recipe, with what the recipe changes in it.

    >>> resolve_preset(AugmentConfig(preset="none", orientation="any")).quarter_turn
    1.0
    """
    preset = PRESETS[config.preset]
    if config.orientation == "fixed":
        preset = replace(preset, flip=0.0, flip_vertical=0.0, quarter_turn=0.0)
    elif config.orientation == "upright":
        angle = min(preset.rotate, UPRIGHT_ANGLE)
        preset = replace(preset, flip=0.5, flip_vertical=0.0, quarter_turn=0.0, rotate=angle)
    elif config.orientation == "any":
        # With quarter turns, angles up to 45 degrees reach every direction alike.
        preset = replace(preset, flip=0.5, flip_vertical=0.5, quarter_turn=1.0, rotate=45.0)
    named = ("rotate", "elastic", "gamma", "invert", "grey", "noise", "blur")
    own: dict[str, Any] = {"scale": config.zoom, **{name: getattr(config, name) for name in named}}
    own = {name: value for name, value in own.items() if value is not None}
    for name in _CHANCE_OF.keys() & own.keys():
        own[_CHANCE_OF[name]] = getattr(preset, _CHANCE_OF[name]) or CHANCE
    preset = replace(preset, **own)
    amounts = {name: getattr(preset, name) * config.intensity for name in (*_SHARES, *_AMOUNTS)}
    return replace(preset, **amounts | {name: min(1.0, amounts[name]) for name in _SHARES})
