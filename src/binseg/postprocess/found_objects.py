"""The objects of a mask, one record each, and outlines that give that mask when filled again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from binseg.errors import UsageError
from binseg.postprocess.mask_cleaning import join_parts, label_objects
from binseg.types import Mask, Probability

Ring = Float[np.ndarray, "_ 2"]
"""x and y of the corners, the first one not repeated; (0, 0) is the image's upper left corner."""


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """One object; lengths in pixels of the image's own size, y downwards."""

    label: int  # from 1, in order of the first pixel by rows
    area: int
    centroid_y: float  # mean of the pixels' centres; the first pixel's centre is at 0.5
    centroid_x: float
    top: int
    left: int
    height: int
    width: int
    mean_probability: float | None = None
    """Mean over the object's pixels; None where no probability was given."""
    pixel_size: tuple[float, float] | None = None
    """Height and width of a pixel in `unit`, where known."""
    unit: str = ""

    def as_row(self) -> dict[str, int | float]:
        """The figures as one line of a table; physical ones are there only where known."""
        row: dict[str, int | float] = {
            "label": self.label,
            "area_px": self.area,
            "centroid_y": round(self.centroid_y, 3),
            "centroid_x": round(self.centroid_x, 3),
            "top": self.top,
            "left": self.left,
            "height": self.height,
            "width": self.width,
        }
        if self.mean_probability is not None:
            row["mean_probability"] = round(self.mean_probability, 6)
        if self.pixel_size is not None:
            tall, broad = self.pixel_size
            row[f"area_{self.unit}2"] = self.area * tall * broad
            row[f"centroid_y_{self.unit}"] = self.centroid_y * tall
            row[f"centroid_x_{self.unit}"] = self.centroid_x * broad
        return row


def find_objects(
    mask_HW: Mask,
    probability_HW: Probability | None = None,
    *,
    pixel_size: tuple[float, float] | None = None,
    unit: str = "um",
) -> list[FoundObject]:
    """List a mask's objects, with mean probabilities, and figures in `unit` by `pixel_size`."""
    weights = None if probability_HW is None else iter([probability_HW])
    return find_objects_in_bands(iter([mask_HW]), weights, pixel_size=pixel_size, unit=unit)


def find_objects_in_bands(
    bands: Iterator[Mask],
    probabilities: Iterator[Probability] | None = None,
    *,
    pixel_size: tuple[float, float] | None = None,
    unit: str = "um",
) -> list[FoundObject]:
    """List the objects of a mask that comes in bands from the top down; DataError for too many."""
    from scipy import ndimage

    top, rows_of, boxes_of = 0, [np.zeros((0, 4))], [np.zeros((0, 4), np.int64)]

    def measure(labels_HW: Int32[np.ndarray, "h W"], num: int) -> None:
        nonlocal top
        # Only foreground pixels are looked at: masks are mostly background.
        rows, columns = np.nonzero(labels_HW)
        of_pixel = labels_HW[rows, columns] - 1
        weights = [np.ones(len(rows)), rows + (top + 0.5), columns + 0.5]
        if probabilities is not None:
            weights.append(next(probabilities)[rows, columns])
        sums = [np.bincount(of_pixel, weights=one, minlength=num) for one in weights]
        rows_of.append(np.stack([*sums, *[np.zeros(num)] * (4 - len(sums))], axis=1))
        boxes = [
            (top + down.start, across.start, top + down.stop, across.stop)
            for down, across in ndimage.find_objects(labels_HW)
        ]
        boxes_of.append(np.array(boxes, np.int64).reshape(-1, 4))
        top += len(labels_HW)

    of_part = join_parts(bands, measure).of_part
    num = int(of_part.max()) + 1 if len(of_part) else 0
    areas, *sums = (np.bincount(of_part, one, num) for one in np.concatenate(rows_of).T)
    firsts, lasts = np.split(np.concatenate(boxes_of), 2, axis=1)
    starts, ends = np.full((num, 2), np.iinfo(np.int64).max), np.zeros((num, 2), np.int64)
    np.minimum.at(starts, of_part, firsts)
    np.maximum.at(ends, of_part, lasts)
    means = np.stack([one / areas for one in sums], axis=1).tolist()
    figures = zip(areas.tolist(), means, starts.tolist(), (ends - starts).tolist(), strict=True)
    return [
        FoundObject(
            label=label,
            area=int(area),
            centroid_y=y,
            centroid_x=x,
            top=start[0],
            left=start[1],
            height=size[0],
            width=size[1],
            mean_probability=None if probabilities is None else probability,
            pixel_size=pixel_size,
            unit=unit if pixel_size is not None else "",
        )
        for label, (area, (y, x, probability), start, size) in enumerate(figures, start=1)
    ]


@dataclass(frozen=True, kw_only=True)
class Polygon:
    """One connected area, with rings that never meet themselves; an object may be several."""

    label: int  # number of the object, as `label_objects` gives it
    exterior: Ring  # clockwise as seen, y downwards
    holes: tuple[Ring, ...] = ()  # anticlockwise

    @property
    def area(self) -> float:
        """Pixels inside the outline, holes left out."""
        return signed_area(self.exterior) + sum(signed_area(hole) for hole in self.holes)


def trace_polygons(mask_HW: Mask, *, tolerance: float = 0.0) -> list[Polygon]:
    """Trace all objects' outlines, exact or within a `tolerance`, never crossing; UsageError."""
    if tolerance < 0:
        raise UsageError(f"tolerance {tolerance:g}: give pixels from 0")
    import shapely  # its import would slow every start

    labels_HW, _ = label_objects(mask_HW)
    lines = shapely.line_merge(shapely.multilinestrings(shapely.linestrings(_sides(mask_HW))))
    faces = shapely.get_parts(shapely.polygonize([lines]))
    found: list[tuple[tuple[int, int, int], Polygon]] = []
    for face in shapely.orient_polygons(faces):
        exterior, *holes = (_ring(ring) for ring in (face.exterior, *face.interiors))
        x, y = exterior[-1].astype(int).tolist()
        label = int(labels_HW[y, x])
        if label:  # 0 is a hole, which is a face too
            holes.sort(key=lambda ring: (ring[-1, 1], ring[-1, 0]))
            found.append(
                ((label, y, x), Polygon(label=label, exterior=exterior, holes=tuple(holes)))
            )
    polygons = [polygon for _, polygon in sorted(found, key=lambda one: one[0])]
    return _simplified(polygons, tolerance) if tolerance and polygons else polygons


def signed_area(ring: Ring) -> float:
    """The area inside a ring, positive where it runs clockwise as seen (y downwards)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _sides(mask_HW: Mask) -> Float[np.ndarray, "E 2 2"]:
    """List straight runs of pixel sides between object and background, from corner to corner."""
    padded = np.pad(mask_HW, 1)
    level, upright = padded[1:] != padded[:-1], padded[:, 1:] != padded[:, :-1]
    corner = (level[:, 1:] | level[:, :-1]) & (upright[1:] | upright[:-1])
    across, down = _runs(level[:, 1:-1], corner), _runs(upright[1:-1].T, corner.T)
    return np.concatenate([across[..., ::-1], down]).astype(np.float64)


def _runs(
    sides: Bool[np.ndarray, "rows places"], corner: Bool[np.ndarray, "rows _"]
) -> Int[np.ndarray, "_ 2 2"]:
    """List both ends, (row, place), of each run of sides between two corners of a row."""
    starts = np.argwhere(sides & corner[:, :-1])
    ends = np.argwhere(sides & corner[:, 1:]) + np.array([0, 1])
    return np.stack([starts, ends], axis=1)


def _ring(line: Any) -> Ring:
    """Take a ring's corners so that the last one begins its first run to the right, by rows."""
    import shapely

    points = shapely.get_coordinates(line)[:-1]  # GEOS repeats the first point
    rightward = np.flatnonzero(np.roll(points[:, 0], -1) > points[:, 0])
    first = rightward[np.lexsort(points[rightward].T)[0]]
    return np.roll(points, -first - 1, axis=0)


def _simplified(polygons: list[Polygon], tolerance: float) -> list[Polygon]:
    """Leave out corners as long as every polygon stays valid, by GEOS."""
    import shapely  # its import would slow every start

    exact = np.array([shapely.Polygon(one.exterior, one.holes) for one in polygons], object)
    rough = shapely.simplify(exact, tolerance, preserve_topology=True)
    rough = np.where(shapely.is_valid(rough) & ~shapely.is_empty(rough), rough, exact)
    return [  # GEOS repeats the first point of each ring, which is cut off
        Polygon(
            label=one.label,
            exterior=shapely.get_coordinates(other.exterior)[:-1],
            holes=tuple(shapely.get_coordinates(hole)[:-1] for hole in other.interiors),
        )
        for one, other in zip(polygons, rough, strict=True)
    ]
