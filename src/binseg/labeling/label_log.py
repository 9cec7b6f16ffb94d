"""The log of a project: SQLite that only grows, and what follows from its lines."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binseg.data.sources.listing import list_folder
from binseg.errors import DataError, OutputError, UsageError, one_line
from binseg.labeling.label_files import BEFORE
from binseg.labeling.strokes import Labels, Stroke, replay, unpack
from binseg.types import IGNORE

MASKS = "masks"
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
    except sqlite3.Error as error:
        raise OutputError(f"can't open {path}: {error}") from None
    return db


@contextmanager
def reading() -> Iterator[None]:
    """Raise a DataError of one line where a log is damaged or locked."""
    try:
        yield
    except sqlite3.Error as error:
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
