"""Outlines of a mask along the edges of its pixels: drawing them again gives the very mask."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from binseg.errors import UsageError
from binseg.postprocess.objects import label_objects

__all__ = ["Polygon", "trace_polygons"]

Ring = Float[np.ndarray, "_ 2"]
"""x and y of the corners, the first one not repeated; (0, 0) is the picture's upper left corner."""


@dataclass(frozen=True, kw_only=True)
class Polygon:
    """One connected area. Objects that touch at corners only are several polygons of one label.

    Rings are simple: none meets itself, though a hole may touch the outline in single points
    (as the Simple Features standard allows).
    """

    label: int
    """Of the object, as `label_objects` numbers them."""
    exterior: Ring
    """Clockwise as seen, y downwards."""
    holes: tuple[Ring, ...] = ()
    """Anticlockwise."""

    @property
    def area(self) -> float:
        """In pixels, holes left out."""
        return signed_area(self.exterior) + sum(signed_area(hole) for hole in self.holes)


def trace_polygons(mask_HW: Bool[np.ndarray, "H W"], *, tolerance: float = 0.0) -> list[Polygon]:
    """Trace the outlines of all objects.

    Args:
        mask_HW: True where the objects are.
        tolerance: corners that lie less than this from a straight line, in pixels, are left out
            (Douglas-Peucker); 0 keeps the outline exact. Holes of fewer than three remaining
            corners vanish; outlines keep at least their largest triangle.

    Raises:
        UsageError: a negative tolerance.
    """
    if tolerance < 0:
        raise UsageError(f"tolerance {tolerance:g}: give pixels from 0")
    labels_HW, _ = label_objects(mask_HW)
    outlines: dict[int, list[Ring]] = defaultdict(list)
    holes: dict[int, list[Ring]] = defaultdict(list)
    for label, ring in _rings(labels_HW):
        (outlines if signed_area(ring) > 0 else holes)[label].append(ring)
    polygons = []
    for label, rings in outlines.items():
        inside = _sort_holes(rings, holes[label])
        for ring, own in zip(rings, inside, strict=True):
            kept = [simplify(hole, tolerance) for hole in own] if tolerance else own
            polygons.append(
                Polygon(
                    label=label,
                    exterior=simplify(ring, tolerance) if tolerance else ring,
                    holes=tuple(hole for hole in kept if len(hole) > 3 or signed_area(hole) < 0),
                )
            )
    return polygons


def signed_area(ring: Ring) -> float:
    """The area inside a ring, positive where it runs clockwise as seen (y downwards)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _rings(labels_HW: Int[np.ndarray, "H W"]) -> Iterator[tuple[int, Ring]]:
    """All closed walks along pixel edges with the object at the right hand, split to be simple."""
    starts, ends, labels = _edges(labels_HW)
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
        for points in _split([end_of[edge] for edge in walk], [corner[edge] for edge in walk]):
            codes = np.array(points)
            ring = np.stack([codes % width, codes // width], axis=1).astype(np.float64)
            yield int(labels[first]), _without_straight(ring)


def _edges(
    labels_HW: Int[np.ndarray, "H W"],
) -> tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"], Int[np.ndarray, "E"]]:
    """Pixel sides between object and background: start and end vertex as numbers, and the label."""
    padded = np.pad(labels_HW, 1)
    inner = padded[1:-1, 1:-1]
    width = labels_HW.shape[1] + 1
    starts, ends, labels = [], [], []
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
        labels.append(inner[rows, columns])
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(labels)


def _next_edges(
    starts: Int[np.ndarray, "E"], ends: Int[np.ndarray, "E"], width: int
) -> Int[np.ndarray, "E"]:
    """The edge that follows each edge; where two could, the one that turns right."""
    order = np.argsort(starts, kind="stable")
    by_start = starts[order]
    place = np.searchsorted(by_start, ends)
    following = order[place]
    second = np.minimum(place + 1, len(order) - 1)
    doubtful = np.nonzero((place + 1 < len(order)) & (by_start[second] == ends))[0]
    step = ends - starts
    right = {1: width, width: -1, -1: -width, -width: 1}  # right, down, left, up
    other = order[second]
    for edge in doubtful.tolist():
        if step[following[edge]] != right[int(step[edge])]:
            following[edge] = other[edge]
    return following


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


def _sort_holes(rings: list[Ring], holes: list[Ring]) -> list[list[Ring]]:
    """Give each hole to the outline around it."""
    if len(rings) == 1:
        return [holes]
    sorted_holes: list[list[Ring]] = [[] for _ in rings]
    areas = [signed_area(ring) for ring in rings]
    for hole in holes:
        point = _inner_point(hole)
        around = [at for at, ring in enumerate(rings) if _contains(ring, point)]
        sorted_holes[min(around, key=areas.__getitem__)].append(hole)
    return sorted_holes


def _inner_point(hole: Ring) -> tuple[float, float]:
    """The centre of a pixel of the hole: beside its uppermost, leftmost corner."""
    first = hole[np.lexsort((hole[:, 0], hole[:, 1]))[0]]
    return float(first[0]) + 0.5, float(first[1]) + 0.5


def _contains(ring: Ring, point: tuple[float, float]) -> bool:
    """Whether a point, on no edge, lies inside a ring (even-odd rule)."""
    x, y = point
    here, there = ring, np.roll(ring, -1, axis=0)
    crosses = (here[:, 1] > y) != (there[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = here[:, 0] + (y - here[:, 1]) / (there[:, 1] - here[:, 1]) * (there[:, 0] - here[:, 0])
    return bool(np.count_nonzero(crosses & (x < at)) % 2)


def simplify(ring: Ring, tolerance: float) -> Ring:
    """Leave out corners that lie less than `tolerance` from the line between those that stay.

    Douglas-Peucker (doi 10.3138/FM57-6770-U75U-7727) on the two halves between the first corner and
    the one farthest from it.
    """
    num = len(ring)
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    kept = {0, far}
    closed = np.concatenate([ring, ring[:1]])
    open_parts = [(0, far), (far, num)]
    while open_parts:
        start, end = open_parts.pop()
        if end - start < 2:
            continue
        distances = _from_line(closed[start + 1 : end], closed[start], closed[end])
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance:
            middle = start + 1 + worst
            kept.add(middle)
            open_parts += [(start, middle), (middle, end)]
    if len(kept) < 3:
        distances = _from_line(ring, ring[0], ring[far])
        kept.add(int(np.argmax(distances)))
    return ring[sorted(kept)]


def _from_line(
    points: Float[np.ndarray, "N 2"], start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "N"]:
    """Distances of points from a segment."""
    along = end - start
    length = float(along @ along)
    if length == 0:
        return np.asarray(np.sqrt(((points - start) ** 2).sum(axis=1)))
    share = np.clip((points - start) @ along / length, 0, 1)
    nearest = start + share[:, None] * along
    return np.asarray(np.sqrt(((points - nearest) ** 2).sum(axis=1)))
