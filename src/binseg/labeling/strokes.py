"""From strokes to pixels: what a stroke covers depends on nothing but itself."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from binseg.data.samples import fill_shapes
from binseg.errors import ImageError, UsageError
from binseg.imageio import decode_image
from binseg.types import IGNORE, Shape

TOOLS = ("brush", "polygon", "region", "labels")
"""brush: all within the radius of a line; polygon: the inside of an outline (lasso, polygon);
region: the pixels of a mask that came with it (fill, box); labels: a value for each pixel of the
image (a mask that was accepted, or was there before)."""
VALUES = (0, 1, IGNORE)  # background, foreground, and not labelled (any more)
MOST_POINTS, MOST_RADIUS = 20_000, 2_000.0
_FARTHEST = 1e6
"""Coordinates beyond it are no place in an image."""
_LEVEL = 1e-9  # rise of a line that has none


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
        if {len(one) for one in self.points} != {2} or not np.abs(self.points).max() <= _FARTHEST:
            raise UsageError("a stroke's points are pairs of numbers, up to a million")
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
    """Set the pixels near a line: near one piece of it, a convex area, each row has one run."""
    radius, (top, left, bottom, right) = max(stroke.radius, 0.5), box
    starts = points_N2[:1] if len(points_N2) == 1 else points_N2[:-1]
    ends = points_N2[:1] if len(points_N2) == 1 else points_N2[1:]
    edges_hw = np.zeros((bottom - top, right - left + 1), np.int16)  # of runs: their sum is inside
    for start, end in zip(starts, ends, strict=True):
        low, high = sorted((start[1], end[1]))
        first = max(top, int(np.floor(low - radius)))
        last = min(bottom, int(np.ceil(high + radius)) + 1)
        if first >= last:
            continue
        begin_h, end_h = _runs(np.arange(first, last) + 0.5, start, end, radius)
        begin_h = np.clip(np.ceil(begin_h - 0.5), left, right).astype(np.int64) - left
        end_h = np.clip(np.floor(end_h - 0.5) + 1, left, right).astype(np.int64) - left
        rows = np.flatnonzero(begin_h < end_h)
        edges_hw[rows + first - top, begin_h[rows]] += 1
        edges_hw[rows + first - top, end_h[rows]] -= 1
    np.cumsum(edges_hw, axis=1, out=edges_hw)
    labels_HW[top:bottom, left:right][edges_hw[:, :-1] > 0] = stroke.value


def _runs(
    y_h: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Give first and last x near a piece of a line in each row, inf and -inf without any.

    They lie around the point of it that is nearest to its straight sides: a convex problem.
    """
    (x0, y0), (dx, dy) = start, end - start
    dy = dy if abs(dy) > _LEVEL else _LEVEL
    length = float(np.hypot(dx, dy))
    ends_2h = np.sort([(y_h - y0 - radius) / dy, (y_h - y0 + radius) / dy], axis=0)
    low_h, high_h = np.maximum(ends_2h[0], 0), np.minimum(ends_2h[1], 1)
    found = []
    for side in (-1, 1):
        best_h = (y_h - y0 + side * radius * np.sign(dy) * dx / length) / dy
        t_h = np.clip(best_h, low_h, high_h)  # from 0 at the start to 1 at the end
        half_h = np.sqrt(np.maximum(radius**2 - (y_h - y0 - t_h * dy) ** 2, 0))
        x_h = x0 + t_h * dx + side * half_h
        found.append(np.where(low_h <= high_h, x_h, -side * np.inf))
    return found[0], found[1]


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
        pixels_HWC = decode_image(data, name="a region")
    except ImageError as error:
        raise UsageError(f"the pixels of a region can't be read: {error}") from None
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.shape[2] != 1:
        raise UsageError("a region is a grey PNG of 8 bits")
    return np.asarray(pixels_HWC[:, :, 0])


def replay(strokes: Sequence[Stroke], height: int, width: int) -> Labels:
    """Draw strokes in their order on an image that nothing is known about."""
    labels_HW = np.full((height, width), IGNORE, np.uint8)
    for stroke in strokes:
        draw(labels_HW, stroke)
    return labels_HW
