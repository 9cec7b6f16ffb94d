"""Strokes, and the log of a project: SQLite that only grows, and what follows from its lines."""

import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from binseg.data.samples import fill_shapes
from binseg.data.sources.labelled import LOG_ERRORS
from binseg.data.sources.listing import list_folder
from binseg.errors import DataError, ImageError, OutputError, UsageError, one_line
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


MASKS, BEFORE = "masks", "masks-before"
SCHEMA = """
create table if not exists facts (name text primary key, value text not null);
create table if not exists images (
  name text primary key, file text not null, height integer, width integer,
  state text not null default 'open', is_check integer not null default 0, mask_sha256 text,
  settled integer not null default 0);
create table if not exists log (
  id integer primary key autoincrement, image text not null references images(name),
  time real not null, kind text not null, client text unique, target integer, model text,
  tool text, value integer, points text, radius real, region blob);
create index if not exists log_image on log(image, id);
create table if not exists scores (
  id integer primary key autoincrement, time real not null, engine text not null,
  num_labelled integer not null, num_strokes integer not null, scores text not null);
"""


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image of a project."""

    name: str
    path: Path
    state: str  # open, done (all its pixels are labelled) or skipped
    is_check: bool
    num_strokes: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the log."""

    id: int
    image: str
    time: float
    kind: str  # stroke, accept, import, skip, undo, redo
    target: int | None
    model: str | None  # the version of the prediction that was seen
    stroke: Stroke | None


class ChangedError(UsageError):
    """Another window has changed the image since it was last seen."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a log; each commit is on the disk when it returns. Raises OutputError."""
    try:
        db = sqlite3.connect(path, check_same_thread=False, timeout=30)
        check_schema(db)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
    except LOG_ERRORS as error:
        raise OutputError(f"can't open {path}: {error}") from None
    return db


@contextmanager
def reading() -> Iterator[None]:
    """Raise a DataError of one line where a log is damaged or locked."""
    try:
        yield
    except LOG_ERRORS as error:
        raise DataError(
            f"labels.sqlite can't be read ({one_line(str(error))}); put a copy of it in its place"
        ) from None


def check_schema(db: sqlite3.Connection) -> None:
    """Refuse a log that someone prepared to act on its own, or no database: DatabaseError."""
    db.execute("pragma trusted_schema=off")
    known = {line.split("(")[0].split()[-1] for line in SCHEMA.split("create table ")[1:]}
    for kind, name, table in db.execute("select type, name, tbl_name from sqlite_master"):
        if kind not in ("table", "index") or table not in {*known, "sqlite_sequence"}:
            raise sqlite3.DatabaseError(f"{kind} {one_line(name)} is none of binseg's")


def image_files(images: Path, home: Path) -> list[tuple[str, Path]]:
    """List the images of a folder by their names; masks that lie in it are none."""
    apart = (home / MASKS, home / BEFORE)
    return [
        (path.relative_to(images).with_suffix("").as_posix(), path)
        for path in list_folder(images).images
        if not any(path.is_relative_to(one) for one in apart)
    ]


def image_rows(db: sqlite3.Connection, files: Mapping[str, Path]) -> list[ImageRow]:
    """List the images that a log knows of and whose files are there, as a folder has them."""
    counted = "select image, count(*) from log where kind = 'stroke' group by image"
    with reading():
        num = dict(db.execute(counted))
        rows = db.execute("select name, state, is_check from images order by name").fetchall()
    return [
        ImageRow(name=name, path=files[name], state=state, is_check=bool(is_check),
                 num_strokes=num.get(name, 0))
        for name, state, is_check in rows
        if name in files
    ]  # fmt: skip


def lines_in(db: sqlite3.Connection, name: str) -> list[Line]:
    """Read the lines of one image; DataError for one that isn't of binseg's making."""
    columns = "id, image, time, kind, target, model, tool, value, points, radius, region"
    with reading():
        sql = f"select {columns} from log where image = ? order by id"
        found = db.execute(sql, (name,)).fetchall()
    try:
        return [_line_of(row) for row in found]
    except (TypeError, ValueError, UsageError) as error:
        raise _damaged(name, error) from None


def labels_in(db: sqlite3.Connection, name: str, height: int, width: int) -> Labels:
    """Replay what a log knows about the pixels of an image."""
    lines = active(lines_in(db, name))[0]
    try:
        return replay([one.stroke for one in lines if one.stroke], height, width)
    except UsageError as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: its labels hold a damaged line ({one_line(str(error))})")


def _line_of(row: Sequence[Any]) -> Line:
    number, image, when, kind, target, model, tool, value, points, radius, region = row
    stroke = None
    lacks_tool = tool is None and kind in {"stroke", "accept", "import"}
    if lacks_tool or not isinstance(region, bytes | None):
        raise ValueError(f"line {number} has no pixels")
    if tool is not None:
        places = tuple((x, y) for x, y in json.loads(points))
        pixels = region or b""
        stroke = Stroke(tool=tool, value=value, points=places, radius=radius, region=pixels)
    facts = {"id": number, "image": image, "time": when, "kind": kind, "target": target}
    return Line(**facts, model=model, stroke=stroke)


def active(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """Give the lines that count, and the undone ones that nothing new has followed."""
    done: list[Line] = []
    undone: list[Line] = []
    for line in lines:
        if line.kind == "undo":
            undone += [one for one in done if one.id == line.target]
            done = [one for one in done if one.id != line.target]
        elif line.kind == "redo":
            done = sorted([*done, *(o for o in undone if o.id == line.target)], key=lambda o: o.id)
            undone = [one for one in undone if one.id != line.target]
        else:
            done.append(line)
            undone = []
    return done, undone


def is_whole(line: Line) -> bool:
    """Tell whether a line is a mask that leaves no pixel unknown."""
    if line.kind not in {"accept", "import"} or line.stroke is None:
        return False
    return not (unpack(line.stroke.region) == IGNORE).any()
