"""From strokes to pixels: what a stroke covers depends on nothing but itself."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from binseg.data.samples import fill_shapes
from binseg.errors import UsageError
from binseg.types import IGNORE, Shape

TOOLS = ("brush", "polygon", "region", "labels")
"""brush: all within the radius of a line; polygon: the inside of an outline (lasso, polygon);
region: the pixels of a mask that came with it (fill, box); labels: a value for each pixel of the
image (a mask that was accepted, or was there before)."""
VALUES = (0, 1, IGNORE)  # background, foreground, and not labelled (any more)
MOST_POINTS, MOST_RADIUS = 20_000, 2_000.0
_BRUSH_CELLS = 4_000_000  # distances that are computed at once


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One stroke as it was drawn, in pixels of the image; (0, 0) is its upper left corner."""

    tool: str
    value: int
    points: tuple[tuple[float, float], ...] = ()
    """x and y along the line, or around the outline; the upper left corner of a region."""
    radius: float = 0.0  # half the width of the brush, in pixels
    region: bytes = b""  # the pixels of a region (grey PNG, 0 and 255), or of labels (0, 1 and 255)

    def __post_init__(self) -> None:
        if self.tool not in TOOLS or self.value not in VALUES:
            raise UsageError(
                f"a stroke of tool {self.tool!r} and value {self.value}: tools are "
                f"{', '.join(TOOLS)}, values 0, 1 and {IGNORE}"
            )
        least = {"polygon": 3}.get(self.tool, 1)
        if not least <= len(self.points) <= MOST_POINTS:
            raise UsageError(
                f"a {self.tool} has {len(self.points)} points: give {least} to {MOST_POINTS}"
            )
        if not all(np.isfinite(point).all() and len(point) == 2 for point in self.points):
            raise UsageError("a stroke's points are pairs of finite numbers")
        if self.tool == "brush" and not 0 < self.radius <= MOST_RADIUS:
            raise UsageError(f"a brush of radius {self.radius:g}: give up to {MOST_RADIUS:g}")


Labels = UInt8[np.ndarray, "H W"]  # a value of `VALUES` for each pixel


def draw(labels_HW: Labels, stroke: Stroke) -> tuple[int, int, int, int] | None:
    """Draw one stroke, in place; give the box that it touched, None if it lies outside."""
    if stroke.tool in {"region", "labels"}:
        return _draw_region(labels_HW, stroke)
    points_N2 = np.array(stroke.points, np.float64)
    margin = stroke.radius if stroke.tool == "brush" else 1.0
    height, width = labels_HW.shape
    left, top = (max(0, int(one)) for one in np.floor(points_N2.min(axis=0) - margin))
    right, bottom = (int(one) + 1 for one in np.ceil(points_N2.max(axis=0) + margin))
    bottom, right = min(height, bottom), min(width, right)
    if top >= bottom or left >= right:
        return None
    if stroke.tool == "brush":
        _draw_line(labels_HW, points_N2, stroke, (top, left, bottom, right))
    else:
        ring = tuple((x - left, y - top) for x, y in points_N2.tolist())
        inside_hw, _ = fill_shapes([Shape(rings=(ring,))], bottom - top, right - left)
        labels_HW[top:bottom, left:right][inside_hw] = stroke.value
    return top, left, bottom, right


def _draw_line(
    labels_HW: Labels, points_N2: np.ndarray, stroke: Stroke, box: tuple[int, int, int, int]
) -> None:
    """Set the pixels whose middle is within the radius of the line, part by part."""
    radius = max(stroke.radius, 0.5)
    line_N2 = np.repeat(points_N2, 2, axis=0) if len(points_N2) == 1 else points_N2
    for start, end in pairwise(line_N2):
        low, high = np.minimum(start, end) - radius, np.maximum(start, end) + radius
        left, top = np.maximum(np.floor(low).astype(int), (box[1], box[0]))
        right, bottom = np.minimum(np.ceil(high).astype(int) + 1, (box[3], box[2]))
        if top >= bottom or left >= right:
            continue
        step = max(1, _BRUSH_CELLS // (right - left))
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            y_h1 = np.arange(first, last)[:, None] + 0.5 - start[1]
            x_1w = np.arange(left, right)[None] + 0.5 - start[0]
            along = end - start
            length = float(along @ along) or 1.0  # a point: all shares are 0
            share_hw = np.clip((x_1w * along[0] + y_h1 * along[1]) / length, 0, 1)
            far_hw = (x_1w - share_hw * along[0]) ** 2 + (y_h1 - share_hw * along[1]) ** 2
            labels_HW[first:last, left:right][far_hw <= radius**2] = stroke.value


def _draw_region(labels_HW: Labels, stroke: Stroke) -> tuple[int, int, int, int] | None:
    region_hw = unpack(stroke.region)
    left, top = (int(x) for x in stroke.points[0])
    height, width = region_hw.shape
    part_hw = labels_HW[max(0, top) : top + height, max(0, left) : left + width]
    if part_hw.shape != region_hw.shape:
        raise UsageError("a region reaches beyond its image")
    if stroke.tool == "labels":
        if not np.isin(region_hw, VALUES).all():
            raise UsageError(f"labels hold other values than {VALUES}")
        part_hw[...] = region_hw
    else:
        part_hw[region_hw > 0] = stroke.value
    return top, left, top + height, left + width


def pack(values_hw: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]) -> bytes:
    """Pack the pixels of a region or of labels; True becomes 255."""
    if values_hw.dtype == np.bool_:
        values_hw = values_hw.astype(np.uint8) * np.uint8(255)
    buffer = io.BytesIO()
    Image.fromarray(values_hw).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def mask_stroke(labels_HW: Labels) -> Stroke:
    """Make one stroke of a value for each pixel of an image."""
    return Stroke(tool="labels", value=0, points=((0.0, 0.0),), region=pack(labels_HW))


def unpack(data: bytes) -> UInt8[np.ndarray, "h w"]:
    """Unpack the pixels of a region or of labels; UsageError if they are none."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode != "L":
                raise UsageError("a region is a grey PNG of 8 bits")
            return np.array(image)
    except (OSError, SyntaxError, ValueError):
        raise UsageError("the pixels of a region can't be read") from None


def replay(strokes: Sequence[Stroke], height: int, width: int) -> Labels:
    """Draw strokes in their order on an image that nothing is known about."""
    labels_HW = np.full((height, width), IGNORE, np.uint8)
    for stroke in strokes:
        draw(labels_HW, stroke)
    return labels_HW
