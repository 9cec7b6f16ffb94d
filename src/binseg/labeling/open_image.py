"""An image in work: its labels at both sizes, what is predicted, and what a person sees of both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from binseg.errors import UsageError
from binseg.labeling.label_log import Line, active
from binseg.labeling.strokes import Labels, Stroke, draw, pack, unpack
from binseg.labeling.working_image import WorkingImage, resized
from binseg.types import IGNORE

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
