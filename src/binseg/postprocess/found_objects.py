"""The objects of a mask, outlines that give it when filled again, and both in others' formats."""

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from binseg.errors import UsageError, needing
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
            row[f"area_{self.unit}2"] = round(self.area * tall * broad, 6)
            row[f"centroid_y_{self.unit}"] = round(self.centroid_y * tall, 6)
            row[f"centroid_x_{self.unit}"] = round(self.centroid_x * broad, 6)
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


Affine = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f of X = a x + b y + c and Y = d x + e y + f, from pixels to a map."""
Project = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes x and y of points, and gives longitudes and latitudes, N x 2."""


def geojson(
    polygons: Sequence[Polygon],
    objects: Sequence[FoundObject] = (),
    *,
    properties: Mapping[str, Any] | None = None,
    transform: Affine | None = None,
    project: Project | None = None,
) -> dict[str, Any]:
    """A FeatureCollection (RFC 7946), in pixels, or `transform`ed to a map and `project`ed."""
    figures = {one.label: one.as_row() for one in objects}
    features = []
    for label, alike in groupby(polygons, key=attrgetter("label")):
        rings = [(one.exterior, *one.holes) for one in alike]
        parts = [[_closed(ring, transform, project) for ring in each] for each in rings]
        geometry: dict[str, Any] = {"type": "MultiPolygon", "coordinates": parts}
        if len(parts) == 1:
            geometry = {"type": "Polygon", "coordinates": parts[0]}
        feature = {"type": "Feature", "id": label, "geometry": geometry}
        features.append({**feature, "properties": figures.get(label, {"label": label})})
    facts = {"coordinates": "map" if transform else "pixels, y downwards", **(properties or {})}
    return {"type": "FeatureCollection", "binseg": facts, "features": features}


def _closed(ring: Ring, transform: Affine | None, project: Project | None) -> list[list[float]]:
    """A ring in map coordinates, its first point repeated; outlines turn as RFC 7946 asks."""
    points = ring
    if transform is not None:
        a, b, c, d, e, f = transform
        x, y = ring[:, 0], ring[:, 1]
        points = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
        if a * e - b * d < 0:
            points = points[::-1]
        if project is not None:
            points = project(points[:, 0], points[:, 1])
    return [[_plain(v) for v in point] for point in [*points.tolist(), points[0].tolist()]]


def _plain(value: float) -> float:
    """Give whole numbers without a fraction: files of pixel corners become half as long."""
    return int(value) if value.is_integer() else value


def encode_rle(mask_HW: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths, column by column: what `pycocotools.mask.decode` reads."""
    changes = np.flatnonzero(np.diff(np.asarray(mask_HW, np.int8).ravel(order="F"), prepend=0))
    return _rle(changes.tolist(), mask_HW.shape)


def kaggle_runs(mask_HW: Mask) -> str:
    """Write a mask as Kaggle's run lengths: starts from 1 column by column, and lengths.

    >>> kaggle_runs(np.array([[False, True], [True, True]]))
    '2 3'
    """
    flat = np.pad(np.asarray(mask_HW, np.int8).ravel(order="F"), 1)
    starts, ends = (np.flatnonzero(np.diff(flat) == step) for step in (1, -1))
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def imagej_rois(polygons: Sequence[Polygon]) -> bytes:
    """Zip an ImageJ region for each object, holes cut out; MissingExtraError without roifile."""
    with needing("roifile", extra="objects", purpose="ImageJ's regions"):
        from roifile import ROI_TYPE, ImagejRoi
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for label, alike in groupby(polygons, key=attrgetter("label")):
            rings = [ring for one in alike for ring in (one.exterior, *one.holes)]
            corners, name = np.concatenate(rings), f"{label:05d}"
            roi = ImagejRoi.frompoints(corners if (corners % 1).any() else corners.astype(int))
            roi.roitype, roi.name = ROI_TYPE.POLYGON, name
            if len(rings) > 1:  # filled by the even-odd rule: move there (0), lines (1), close (4)
                path = [
                    [*zip([0, *[1] * (len(ring) - 1)], *ring.T.tolist(), strict=True), (4,)]
                    for ring in rings
                ]
                flat = np.array([x for ring in path for order in ring for x in order], np.float32)
                (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
                box: dict[str, Any] = {"left": int(left), "top": int(top)}
                box |= {"right": int(right), "bottom": int(bottom), "roitype": ROI_TYPE.RECT}
                box |= {"shape_roi_size": len(flat), "multi_coordinates": flat}
                roi = ImagejRoi(name=name, **box)
            # One date for all, so that equal masks give equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.roi"), roi.tobytes())
    return whole.getvalue()


def _rle(changes: list[int], shape: tuple[int, ...]) -> dict[str, Any]:
    """Encode the places at which a mask begins or ends, column by column."""
    height, width = shape
    bounds = [0, *changes, height * width]
    runs = [end - start for start, end in pairwise(bounds)]
    if len(runs) > 1 and runs[-1] == 0:  # as pycocotools, which writes no empty run at the end
        runs.pop()
    return {"size": [height, width], "counts": _text_of_runs(runs)}


def _text_of_runs(runs: Sequence[int]) -> str:
    """Encode as pycocotools does: differences to the run before the last, 5 bits a letter."""
    letters = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            letters.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(letters)


def coco(
    results: Sequence[tuple[str, Mask, Sequence[Polygon], Sequence[FoundObject]]],
    *,
    category: str = "foreground",
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make a COCO data set of name, mask, polygons and objects; run lengths for holes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, mask_HW, polygons, objects) in enumerate(results, start=1):
        height, width = mask_HW.shape
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        by_label = groupby(polygons, key=attrgetter("label"))
        of_label = {label: list(alike) for label, alike in by_label}
        labels_HW, _ = label_objects(mask_HW)
        for one in objects:
            parts = of_label[one.label]
            segmentation: Any = [[*map(_plain, x.exterior.ravel().tolist())] for x in parts]
            if any(part.holes for part in parts):
                segmentation = _rle_of_object(labels_HW, one)
            score = one.mean_probability
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [one.left, one.top, one.width, one.height],
                    "area": one.area,
                    "iscrowd": 0,
                    "segmentation": segmentation,
                    **({} if score is None else {"score": score}),
                }
            )
    whole = {"info": dict(info or {}), "images": images, "annotations": annotations}
    return {**whole, "categories": [{"id": 1, "name": category}]}


def _rle_of_object(labels_HW: Int32[np.ndarray, "H W"], one: FoundObject) -> dict[str, Any]:
    box = (slice(one.top, one.top + one.height), slice(one.left, one.left + one.width))
    columns, rows = np.nonzero(np.equal(labels_HW[box].T, one.label))  # as COCO counts
    places = (columns + one.left) * len(labels_HW) + rows + one.top
    breaks = np.flatnonzero(np.diff(places) != 1)
    starts, ends = places[[0, *(breaks + 1)]], places[[*breaks, -1]] + 1
    return _rle(np.stack([starts, ends], axis=1).ravel().tolist(), labels_HW.shape)
