"""An image in work, at its own size and at the engines': pixels, labels and what is predicted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image
from scipy import ndimage

from binseg.errors import UsageError
from binseg.imageio import read_pixels
from binseg.labeling.label_log import Labels, Line, Stroke, active, draw, pack, unpack
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


LOCAL = 0.06
"""Distance from a stroke, as a share of the image's diagonal, at which a correction fades."""


@dataclass(kw_only=True)
class OpenImage:
    """An image in work; all but `image` is guarded by the session's lock."""

    image: WorkingImage
    labels_HW: Labels
    small_hw: Labels  # the labels at the engines' size, drawn by the same strokes made smaller
    owner_hw: np.ndarray  # the line of the log that each labelled pixel of `small_hw` is of
    line: int  # last line of the log that is drawn
    is_check: bool
    accepted: bool
    probability: Float[np.ndarray, "h w"] | None = None
    engine: str = "none"
    answered: int = -1  # last line of the log that `probability` knows of
    version: int = 0  # counts the predictions of this image
    is_fine: bool = True
    seconds: float = 0.0

    def draw(self, stroke: Stroke, line: int) -> None:
        """Draw a stroke on the labels, at both sizes."""
        draw(self.labels_HW, stroke)
        mark_hw = np.full(self.image.small_size, 7, np.uint8)  # no value of labels
        box = draw(mark_hw, _scaled(stroke, self.image))
        if box is not None:
            area = np.s_[box[0] : box[2], box[1] : box[3]]
            hit = mark_hw[area] != 7
            self.small_hw[area][hit] = mark_hw[area][hit]
            self.owner_hw[area][hit] = line

    def area_at(self, x: int, y: int) -> np.ndarray:
        """Find the area around a point that is shown alike; UsageError outside of the image."""
        height, width = self.image.size
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"the point {x}, {y} is outside of the image")
        mask_HW = self.mask()
        area_HW, _ = ndimage.label(mask_HW == mask_HW[y, x])
        return np.asarray(area_HW == area_HW[y, x])

    def codes(self, box: tuple[int, int, int, int], step: int) -> np.ndarray:
        """Give a part of what is shown: 0 and 1 as predicted, 2 and 3 as labelled."""
        labels = self.labels_HW[box[0] : box[2] : step, box[1] : box[3] : step]
        codes = labels + np.uint8(2)
        unknown = labels == IGNORE
        codes[unknown] = self._part(box, labels.shape)[unknown]
        return codes

    def _part(self, box: tuple[int, int, int, int], shape: tuple[int, ...]) -> np.ndarray:
        """Give what is predicted in a box: a mask of `shape`; nothing where help isn't wanted."""
        if self.probability is None or self.is_check or self.accepted:
            return np.zeros(shape, np.uint8)
        p = self.probability
        if p.shape == self.image.size and shape == (box[2] - box[0], box[3] - box[1]):
            return (p[box[0] : box[2], box[1] : box[3]] > 0.5).astype(np.uint8)
        scale = p.shape[0] / self.image.size[0], p.shape[1] / self.image.size[1]
        area = (box[1] * scale[1], box[0] * scale[0], box[3] * scale[1], box[2] * scale[0])
        part = Image.fromarray(p).resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=area)
        return (np.asarray(part) > 0.5).astype(np.uint8)

    def mask(self) -> np.ndarray:
        """The whole mask that is shown: what is labelled, and what is predicted elsewhere."""
        height, width = self.image.size
        predicted = self._part((0, 0, height, width), (height, width)) == 1
        whole_HW: np.ndarray = np.where(self.labels_HW == IGNORE, predicted, self.labels_HW == 1)
        return whole_HW


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The state of an image that a person sees."""

    codes: np.ndarray  # 0 background and 1 foreground as predicted, 2 and 3 as labelled
    engine: str
    line: int
    version: int
    is_fine: bool
    seconds: float
    share: float


def replayed(image: WorkingImage, lines: Sequence[Line], *, is_check: bool) -> OpenImage:
    """Draw the lines that count on an image of which nothing is known."""
    opened = OpenImage(
        image=image,
        labels_HW=np.full(image.size, IGNORE, np.uint8),
        small_hw=np.full(image.small_size, IGNORE, np.uint8),
        owner_hw=np.zeros(image.small_size, np.int64),
        line=lines[-1].id if lines else 0,
        is_check=is_check,
        accepted=False,
    )
    for line in active(lines)[0]:
        if line.stroke is not None:
            opened.draw(line.stroke, line.id)
            opened.accepted |= line.kind in {"accept", "import"}
    return opened


def region_of(mask_HW: np.ndarray, value: int) -> Stroke:
    """Make a stroke of the pixels of a mask; UsageError if it is empty."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if not len(rows):
        raise UsageError("nothing was found there")
    part = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = (float(columns[0]), float(rows[0]))
    return Stroke(tool="region", value=value, points=(corner,), region=pack(part))


def _scaled(stroke: Stroke, image: WorkingImage) -> Stroke:
    """Make a stroke as small as the engines' image."""
    if image.size == image.small_size:
        return stroke
    y, x = (small / full for small, full in zip(image.small_size, image.size, strict=True))
    region, points = stroke.region, tuple((px * x, py * y) for px, py in stroke.points)
    if region:
        pixels = unpack(region)
        left, top = (int(value) for value in points[0])
        size = (
            max(1, min(round(pixels.shape[1] * x), image.small_size[1] - left)),
            max(1, min(round(pixels.shape[0] * y), image.small_size[0] - top)),
        )
        region = pack(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)))
        points = ((float(left), float(top)),)
    radius = max(0.5, stroke.radius * (x + y) / 2)
    return replace(stroke, points=points, radius=radius, region=region)


def corrected(network: np.ndarray, cold: np.ndarray, small_hw: Labels) -> np.ndarray:
    """Let the trees answer near the strokes, and the network where nobody has drawn."""
    far_hw = ndimage.distance_transform_edt(small_hw == IGNORE)
    reach = LOCAL * float(np.hypot(*small_hw.shape))
    near_hw = np.exp(-((far_hw / reach) ** 2)).astype(np.float32)
    near, local = (resized(values, network.shape) for values in (near_hw, cold))
    joined: np.ndarray = (1 - near) * network + near * local
    return joined
