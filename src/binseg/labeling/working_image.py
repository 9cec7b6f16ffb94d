"""An image as people and engines see it: 8 bits, three channels, at most so many pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image

from binseg.errors import UsageError
from binseg.imageio import read_pixels
from binseg.labeling.strokes import Labels
from binseg.types import IGNORE

MOST_PIXELS = 512 * 512
"""Engines see larger images reduced to this many pixels; what a person draws keeps every pixel."""
_SHARES = (0.5, 99.5)  # percentiles that become black and white where an image has more than 8 bits

_BILINEAR, _BOX = Image.Resampling.BILINEAR, Image.Resampling.BOX
RGB = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True, kw_only=True)
class WorkingImage:
    """An image at its own size, and as engines see it."""

    name: str
    rgb_HW3: RGB
    small_hw3: RGB  # the same, reduced where it has more than `MOST_PIXELS`
    is_deep: bool = False  # True if the file has more than 8 bits, which were stretched

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.rgb_HW3.shape[0], self.rgb_HW3.shape[1]

    @property
    def small_size(self) -> tuple[int, int]:
        """Height and width that engines see."""
        return self.small_hw3.shape[0], self.small_hw3.shape[1]

    def small_box(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """Give a box (top, left, bottom, right) in the engines' pixels; UsageError if tiny."""
        top, left, bottom, right = (
            int(np.clip(round(side * small / full), 0, small))
            for side, small, full in zip(box, self.small_size * 2, self.size * 2, strict=True)
        )
        if bottom - top < 3 or right - left < 3:
            raise UsageError("that box is too small: draw it around the thing")
        return top, left, bottom, right

    def enlarge(self, probability_hw: np.ndarray) -> np.ndarray:
        """A probability at the engines' size, at the image's own."""
        is_own = self.size == self.small_size
        return probability_hw if is_own else resized(probability_hw, self.size)


def open_working_image(name: str, path: Path) -> WorkingImage:
    """Read an image. Raises ImageError."""
    image_HWC, _ = read_pixels(path)
    small_hw3 = rgb_HW3 = to_rgb(image_HWC)
    height, width = rgb_HW3.shape[:2]
    shrink = (MOST_PIXELS / (height * width)) ** 0.5
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        small_hw3 = np.asarray(Image.fromarray(rgb_HW3).resize(size, _BOX))
    is_deep = image_HWC.dtype != np.uint8
    return WorkingImage(name=name, rgb_HW3=rgb_HW3, small_hw3=small_hw3, is_deep=is_deep)


def to_rgb(image_HWC: Num[np.ndarray, "H W C"], *, stretch: bool | None = None) -> RGB:
    """Turn any image into 8 bits and three channels: grey, or the first three.

    `stretch` makes the 0.5 and 99.5 percentiles of each channel black and white; by default where
    there are more than 8 bits.
    """
    taken = image_HWC[..., :3] if image_HWC.shape[2] >= 3 else image_HWC[..., :1]
    if stretch is None:
        stretch = taken.dtype != np.uint8
    if stretch:
        step = max(1, int((taken.shape[0] * taken.shape[1] / 500_000) ** 0.5))
        sample = taken[::step, ::step].reshape(-1, taken.shape[2]).astype(np.float32)
        known = sample[np.isfinite(sample).all(axis=1)]
        low, high = np.percentile(known, _SHARES, axis=0) if len(known) else (0.0, 1.0)
        values = np.nan_to_num(taken.astype(np.float32), nan=0.0)
        unit = (values - low) / np.maximum(np.asarray(high) - low, 1e-9)
        taken = (np.clip(unit, 0, 1) * 255).round().astype(np.uint8)
    if taken.shape[2] == 1:
        taken = np.repeat(taken, 3, axis=2)
    return np.ascontiguousarray(taken)


def resized(values_hw: np.ndarray, size: tuple[int, ...], by: int = _BILINEAR) -> np.ndarray:
    """Resize numbers to a height and width."""
    image = Image.fromarray(values_hw.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), by))


def reduced(labels_HW: Labels, size: tuple[int, int]) -> Labels:
    """Reduce labels to a smaller size: of each cell what most of its labelled pixels are."""
    if labels_HW.shape == size:
        return labels_HW
    shares = [resized(labels_HW == value, size, _BOX) for value in (0, 1)]
    reduced_hw = np.full(size, IGNORE, np.uint8)
    reduced_hw[(shares[0] > 0) & (shares[0] >= shares[1])] = 0
    reduced_hw[shares[1] > shares[0]] = 1
    return reduced_hw
