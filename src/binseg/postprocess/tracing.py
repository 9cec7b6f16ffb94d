"""Outlines of a mask along the edges of its pixels: drawing them again gives the very mask."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from binseg.errors import UsageError
from binseg.postprocess.mask_cleaning import label_objects

Ring = Float[np.ndarray, "_ 2"]
"""x and y of the corners, the first one not repeated; (0, 0) is the image's upper left corner."""


@dataclass(frozen=True, kw_only=True)
class Polygon:
    """One connected area. Objects that touch at corners only are several polygons of one label.

    Rings are simple: none meets itself, though a hole may touch the outline or another hole in a
    single point (as the Simple Features standard allows).
    """

    label: int
    """Number of the object, as `label_objects` gives it."""
    exterior: Ring
    """Clockwise as seen, y downwards."""
    holes: tuple[Ring, ...] = ()
    """Anticlockwise."""

    @property
    def area(self) -> float:
        """Pixels inside the outline, holes left out."""
        return signed_area(self.exterior) + sum(signed_area(hole) for hole in self.holes)


def trace_polygons(mask_HW: Bool[np.ndarray, "H W"], *, tolerance: float = 0.0) -> list[Polygon]:
    """Trace the outlines of all objects.

    Args:
        mask_HW: True where the objects are.
        tolerance: corners that lie less than this from a straight line, in pixels, are left out
            (Douglas-Peucker) unless a ring would then meet itself or another one; all holes stay.
            0 keeps the outline exact.

    Raises:
        UsageError: a negative tolerance.
    """
    if tolerance < 0:
        raise UsageError(f"tolerance {tolerance:g}: give pixels from 0")
    labels_HW, _ = label_objects(mask_HW)
    # Walks keep to pixels that touch at sides, so that each such area has one outline.
    outlines: dict[tuple[int, int], Ring] = {}
    holes: dict[tuple[int, int], list[Ring]] = defaultdict(list)
    for area, ring in _rings(labels_HW):
        if signed_area(ring) > 0:
            assert area not in outlines, "an area has one outline"
            outlines[area] = ring
        else:
            holes[area].append(ring)
    polygons = [
        Polygon(label=area[0], exterior=outlines[area], holes=tuple(holes[area]))
        for area in sorted(outlines)
    ]
    return _simplified(polygons, tolerance) if tolerance and polygons else polygons


def signed_area(ring: Ring) -> float:
    """The area inside a ring, positive where it runs clockwise as seen (y downwards)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _rings(labels_HW: Int[np.ndarray, "H W"]) -> Iterator[tuple[tuple[int, int], Ring]]:
    """All closed walks along pixel edges with the object at the right hand, split to be simple.

    With each come the numbers of its object and of its area of pixels that touch at sides.
    """
    starts, ends, areas_E2 = _edges(labels_HW)
    width = labels_HW.shape[1] + 1
    following = _next_edges(starts, ends, width)
    # A corner is where the direction changes; straight runs are skipped when rings are built.
    step = ends - starts
    is_corner = step[following] != step
    taken = np.zeros(len(starts), bool)
    after, corner, end_of = following.tolist(), is_corner.tolist(), ends.tolist()
    for first in range(len(starts)):
        if taken[first]:
            continue
        walk = []
        at = first
        while not taken[at]:
            taken[at] = True
            walk.append(at)
            at = after[at]
        area = (int(areas_E2[first, 0]), int(areas_E2[first, 1]))
        for points in _split([end_of[edge] for edge in walk], [corner[edge] for edge in walk]):
            codes = np.array(points)
            ring = np.stack([codes % width, codes // width], axis=1).astype(np.float64)
            yield area, _without_straight(ring)


def _edges(
    labels_HW: Int[np.ndarray, "H W"],
) -> tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"], Int[np.ndarray, "E 2"]]:
    """Pixel sides between object and background: start and end vertex, and numbers of the area."""
    from scipy import ndimage  # its import would slow every start

    padded = np.pad(labels_HW, 1)
    inner = padded[1:-1, 1:-1]
    parts_HW = np.empty(labels_HW.shape, np.int32)
    ndimage.label(labels_HW, output=parts_HW)
    width = labels_HW.shape[1] + 1
    starts, ends, areas = [], [], []
    sides = (
        (padded[:-2, 1:-1], (0, 0), (0, 1)),  # above: to the right
        (padded[1:-1, 2:], (0, 1), (1, 1)),  # right: down
        (padded[2:, 1:-1], (1, 1), (1, 0)),  # below: to the left
        (padded[1:-1, :-2], (1, 0), (0, 0)),  # left: up
    )
    for neighbour, start, end in sides:
        rows, columns = np.nonzero((inner > 0) & (neighbour == 0))
        starts.append((rows + start[0]) * width + columns + start[1])
        ends.append((rows + end[0]) * width + columns + end[1])
        areas.append(np.stack([inner[rows, columns], parts_HW[rows, columns]], axis=1))
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(areas)


def _next_edges(
    starts: Int[np.ndarray, "E"], ends: Int[np.ndarray, "E"], width: int
) -> Int[np.ndarray, "E"]:
    """The edge that follows each edge; where two could, the one that turns right."""
    if len(starts) == 0:
        return starts
    order = np.argsort(starts, kind="stable")
    by_start = starts[order]
    place = np.searchsorted(by_start, ends)
    first = order[place]
    second = np.minimum(place + 1, len(order) - 1)
    is_doubtful = (place + 1 < len(order)) & (by_start[second] == ends)
    step = ends - starts
    # right, down, left, up
    right = np.select([step == 1, step == width, step == -1], [width, -1, -width], default=1)
    turns_wrong = is_doubtful & (step[first] != right)
    return np.asarray(np.where(turns_wrong, order[second], first))


def _split(points: list[int], corners: list[bool]) -> Iterator[list[int]]:
    """Cut a closed walk into simple rings where it comes back to a vertex."""
    if len(set(points)) == len(points):
        yield [point for point, corner in zip(points, corners, strict=True) if corner]
        return
    stack: list[int] = []
    place: dict[int, int] = {}
    for point in points:
        if point in place:
            start = place[point]
            yield stack[start:]
            for gone in stack[start + 1 :]:
                del place[gone]
            del stack[start + 1 :]
        else:
            place[point] = len(stack)
            stack.append(point)
    yield stack


def _without_straight(ring: Ring) -> Ring:
    """Leave out the vertices at which the ring goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    kept: Ring = ring[turns != 0]
    return kept


def _simplified(polygons: list[Polygon], tolerance: float) -> list[Polygon]:
    """Leave out corners as long as every polygon stays valid, by GEOS."""
    import shapely  # its import would slow every start

    exact = np.array([shapely.Polygon(one.exterior, one.holes) for one in polygons], object)
    rough = shapely.simplify(exact, tolerance, preserve_topology=True)
    return [  # GEOS repeats the first point of each ring, which is cut off
        Polygon(
            label=one.label,
            exterior=shapely.get_coordinates(other.exterior)[:-1],
            holes=tuple(shapely.get_coordinates(hole)[:-1] for hole in other.interiors),
        )
        for one, other in zip(polygons, rough, strict=True)
    ]
