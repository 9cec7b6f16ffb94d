"""The project on disk: a log in SQLite of every stroke and decision, and the masks that follow.

`labels.sqlite` and `masks/` lie beside the folder of images, which is never written to. The log
only grows, and a line is on the disk before its author hears of it (write-ahead log,
synchronous=FULL); a mask follows its line, at the next opening where a crash came between.
"""

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.sources.labelled import LOG, LOG_ERRORS, images_of_project
from binseg.errors import DataError, OutputError, UsageError
from binseg.imageio import probe, read_labels, write_mask
from binseg.labeling.label_files import find_masks, put_aside, read_masks
from binseg.labeling.label_log import (
    MASKS,
    SCHEMA,
    ChangedError,
    ImageRow,
    Labels,
    Line,
    Stroke,
    active,
    connect,
    image_files,
    image_rows,
    is_whole,
    labels_in,
    lines_in,
    mask_stroke,
    reading,
    unpack,
)
from binseg.progress import SILENT, Progress
from binseg.types import IGNORE

CHECK_SHARE = 10
"""One image in so many is kept to check with, and labelled without help."""


class Project:
    """An open project; one process at a time, any number of threads and windows.

    `home` is for the labels, beside the images if left out; `config` tells the meanings of values
    of masks that are there already. Raises DataError (no images, two of one name, stacks, masks
    that can't be read) and UsageError (open elsewhere, or the labels are of another folder).
    """

    def __init__(
        self,
        images: Path,
        *,
        config: DataConfig | None = None,
        home: Path | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.images, self.home = images_of_project(images, home)
        self._guard = threading.RLock()
        self._lock = filelock.FileLock(self.home / f"{LOG}.lock")
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0.5)
        except filelock.Timeout:
            raise UsageError(
                f"{self.home / LOG} is open in another `binseg label`: use the page that it "
                "serves, or end it first"
            ) from None
        except OSError as error:
            raise OutputError(f"can't write in {self.home}: {error.strerror}") from None
        try:
            self._db = connect(self.home / LOG)
            with self._writing():
                self._db.executescript(SCHEMA)
            self._check_home()
            self._list_images(progress)
            self._take_in(config or DataConfig(), progress)
            self._settle_all()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others open the project."""
        if hasattr(self, "_db"):
            with self._guard:
                self._db.close()
        self._lock.release()

    # Images

    def rows(self) -> list[ImageRow]:
        """Every image with its state."""
        with self._guard:
            return image_rows(self._db, self._present)

    def row(self, name: str) -> ImageRow:
        """One image; UsageError if there is none of that name."""
        found = next((one for one in self.rows() if one.name == name), None)
        if found is None:
            raise UsageError(f"there is no image {name!r} in {self.images}")
        return found

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of an image, as its EXIF turns it."""
        ((height, width),) = self._read("select height, width from images where name = ?", name)
        if height is None:
            info = probe(self.row(name).path)
            height, width = info.height, info.width
            sql = "update images set height = ?, width = ? where name = ?"
            self._write(sql, height, width, name)
        return height, width

    # The log

    def add_stroke(
        self, name: str, stroke: Stroke, *, client: str | None = None, model: str | None = None
    ) -> int:
        """Put a stroke on the disk, once for each name of a `client`'s; OutputError: unchanged."""
        return self._append(name, "stroke", client=client, model=model, stroke=stroke)

    def undo(self, name: str, *, redo: bool = False, client: str | None = None) -> int | None:
        """Take back the last stroke or decision on an image, or bring back; None: nothing left."""
        with self._guard:
            if client and (known := self._known(client, name)):
                return known
            done, undone = active(self.lines(name))
            chosen = undone if redo else [line for line in done if line.kind != "import"]
            if not chosen:
                return None
            kind = "redo" if redo else "undo"
            number = self._append(name, kind, client=client, target=chosen[-1].id)
            self._settle(name)
            return number

    def accept(
        self,
        name: str,
        labels_HW: Labels,
        *,
        seen: int | None = None,
        client: str | None = None,
        model: str | None = None,
    ) -> int:
        """Keep an image's labels, all 0 or 1, as its mask; ChangedError for a line after `seen`."""
        assert not (labels_HW == IGNORE).any(), "an accepted image has all its pixels labelled"
        with self._guard:
            if client and (known := self._known(client, name)):
                return known
            if seen is not None and self.last(name) > seen:
                raise ChangedError(
                    f"{name} was changed in another window; look at it again before you accept it"
                )
            stroke = mask_stroke(labels_HW)
            number = self._append(name, "accept", client=client, model=model, stroke=stroke)
            self._settle(name)
            return number

    def skip(self, name: str, *, client: str | None = None) -> int:
        """Leave an image out; drawing on it takes it in again."""
        with self._guard:
            number = self._append(name, "skip", client=client)
            self._settle(name)
            return number

    def lines(self, name: str) -> list[Line]:
        """The log of one image."""
        with self._guard:
            return lines_in(self._db, name)

    def last(self, name: str) -> int:
        """Number of the last line of an image; 0 if it has none."""
        ((number,),) = self._read("select coalesce(max(id), 0) from log where image = ?", name)
        return int(number)

    def labels(self, name: str) -> Labels:
        """Replay what is known about the pixels of an image."""
        height, width = self.size(name)
        with self._guard:
            return labels_in(self._db, name, height, width)

    def accepted(self) -> list[tuple[str, Path, np.ndarray]]:
        """Name, file and mask of every image that is done."""
        done = (row for row in self.rows() if row.state == "done")
        return [(row.name, row.path, self.labels(row.name) == 1) for row in done]

    # Scores of the engines on the check images

    def add_score(self, engine: str, scores: Sequence[float]) -> None:
        """Keep the Dice of an engine on the check images, for the learning curve."""
        done = [one for one in self.rows() if one.state == "done" and not one.is_check]
        strokes = sum(one.num_strokes for one in self.rows())
        self._write(
            "insert into scores (time, engine, num_labelled, num_strokes, scores) "
            "values (?, ?, ?, ?, ?)",
            *(time.time(), engine, len(done), strokes, json.dumps([*scores])),
        )

    def scores(self) -> list[tuple[str, int, list[float]]]:
        """Engine, number of labelled images and Dice of each check image, in order of time."""
        sql = "select engine, num_labelled, scores from scores order by id"
        return [(engine, num, json.loads(text)) for engine, num, text in self._read(sql)]

    # Inside

    def _read(self, sql: str, *values: Any) -> list[Any]:
        with self._guard, reading():
            return self._db.execute(sql, values).fetchall()

    def _write(self, sql: str, *values: Any) -> None:
        with self._writing():
            self._db.execute(sql, values)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the database; what the disk refuses is one sentence, and leaves all as it was."""
        with self._guard:
            try:
                with self._db:
                    yield
            except LOG_ERRORS as error:
                raise OutputError(
                    f"can't write {self.home / LOG}: {error}; nothing was lost: make room on the "
                    "disk, and draw on; a damaged log needs a copy in its place"
                ) from None

    def _known(self, client: str, name: str) -> int | None:
        found = self._read("select id, image from log where client = ?", client)
        if found and found[0][1] != name:
            raise UsageError("that name of a request was used for another image")
        return int(found[0][0]) if found else None

    def _append(
        self,
        name: str,
        kind: str,
        *,
        client: str | None = None,
        target: int | None = None,
        model: str | None = None,
        stroke: Stroke | None = None,
    ) -> int:
        if name not in self._present:
            raise UsageError(f"there is no image {name!r} in {self.images}")
        drawn: tuple[Any, ...] = (None,) * 5
        if stroke is not None:
            points = json.dumps([[round(x, 2), round(y, 2)] for x, y in stroke.points])
            drawn = (stroke.tool, stroke.value, points, stroke.radius, stroke.region or None)
        with self._guard:
            if client and (known := self._known(client, name)):
                return known
            with self._writing():
                number = self._db.execute(
                    "insert into log (image, time, kind, client, target, model, tool, value, "
                    "points, radius, region) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (name, time.time(), kind, client, target, model, *drawn),
                ).lastrowid
                if kind == "stroke":  # drawing on a skipped image takes it in again
                    sql = "update images set state = 'open' where name = ? and state = 'skipped'"
                    self._db.execute(sql, (name,))
            assert number is not None
            return number

    def _settle(self, name: str) -> None:
        """Bring an image's state and its mask in line with its log."""
        done, _ = active(self.lines(name))
        state = "open"
        for line in done:
            if line.kind == "skip":
                state = "skipped"
            elif line.kind in {"accept", "import"}:
                state = "done" if is_whole(line) else "open"
            elif state == "skipped":
                state = "open"
        self._write("update images set state = ? where name = ?", state, name)
        self._write_mask(name)
        self._write(  # last: until then the next opening does all of it again
            "update images set settled = (select coalesce(max(id), 0) from log where image = name) "
            "where name = ?",
            name,
        )

    def _settle_all(self) -> None:
        """Finish what a crash left between a line and what follows from it."""
        behind = self._read(
            "select name from images where settled < (select coalesce(max(id), 0) from log where "
            "image = name and kind != 'stroke')"
        )
        gone = [
            name
            for name, _ in self._read("select name, 1 from images where mask_sha256 not null")
            if not (self.home / MASKS / f"{name}.png").exists()
        ]
        for name in {*(name for (name,) in behind), *gone} & self._present.keys():
            self._settle(name)

    def _write_mask(self, name: str) -> None:
        """Have `masks/` hold what was accepted last, and nothing where nothing is."""
        path = self.home / MASKS / f"{name}.png"
        ((before,),) = self._read("select mask_sha256 from images where name = ?", name)
        labels_HW = self._settled(name)
        key = None if labels_HW is None else hashlib.sha256(labels_HW.tobytes()).hexdigest()
        if key == before and path.exists() == (key is not None):
            return
        if labels_HW is not None:
            if path.is_symlink():  # a link that somebody put there would have us write elsewhere
                path.unlink()
            write_mask(path, labels_HW == 1)
        elif before is not None:
            path.unlink(missing_ok=True)
        self._write("update images set mask_sha256 = ? where name = ?", key, name)

    def _check_home(self) -> None:
        """Refuse a folder whose labels are of other images."""
        here = os.path.relpath(self.images, self.home)
        known = dict(self._read("select name, value from facts"))
        if known.setdefault("images", here) != here:
            raise UsageError(
                f"{self.home / LOG} holds the labels of {known['images']}; give these images a "
                "folder of their own with --home FOLDER"
            )
        self._write("insert or ignore into facts values ('images', ?)", here)

    def _list_images(self, progress: Progress) -> None:
        listed = image_files(self.images, self.home)
        names, files = [name for name, _ in listed], [path for _, path in listed]
        if not files:
            raise DataError(f"{self.images}: no images found")
        twice = sorted(name for name, num in Counter(names).items() if num > 1)
        if twice:
            raise DataError(
                f"{self.images}: {counted(len(twice), 'name stands', 'names stand')} for two "
                f"images ({name_some(twice)}); masks go by names, so give each image one of its own"
            )
        tiffs = [path for path in files if path.suffix.lower() in {".tif", ".tiff"}]
        stacks = [path.name for path in tiffs if probe(path).num_pages > 1]
        if stacks:
            raise DataError(
                f"{self.images}: {name_some(stacks)}: stacks of pages can't be labelled; save each "
                "page as an image"
            )
        self._present = dict(zip(names, files, strict=True))
        known = {name for (name,) in self._read("select name from images")}
        fresh = {n: path for n, path in zip(names, files, strict=True) if n not in known}
        checks = _check_images([*fresh], is_first=not known)
        rows = [(n, p.relative_to(self.images).as_posix(), n in checks) for n, p in fresh.items()]
        with self._writing():
            self._db.execute("update images set height = null")  # files may be others by now
            sql = "insert into images (name, file, is_check) values (?, ?, ?)"
            self._db.executemany(sql, rows)
        told = counted(len(names), "image", "images")
        progress.say(f"{self.images}: {told}; labels in {self.home}")

    def _take_in(self, config: DataConfig, progress: Progress) -> None:
        """Take in the masks that aren't what was written here last."""
        folder = self.home / MASKS
        paths = {row.name: row.path for row in self.rows()}
        found = find_masks(folder, paths, progress)
        fresh = {name: path for name, path in found.items() if self._is_foreign(name, path)}
        if not fresh:
            return
        try:
            taken, rule = read_masks(fresh, paths, config, progress)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None
        put_aside(fresh, folder, progress)
        for name, labels_HW in taken.items():
            self._append(name, "import", stroke=mask_stroke(labels_HW))
            self._settle(name)
        told = counted(len(taken), "mask", "masks")
        progress.say(f"{told} taken in, read as {rule.describe()}; they can be corrected")

    def _is_foreign(self, name: str, path: Path) -> bool:
        """Tell whether a mask is another than the one that was settled last."""
        kept = self._settled(name)
        if kept is None:
            return True
        labels = read_labels(path)
        return labels.shape != kept.shape or not np.array_equal(labels > 127, kept == 1)

    def _settled(self, name: str) -> Labels | None:
        """Labels of the last line that settles all pixels of an image, if there is one."""
        done, _ = active(self.lines(name))
        whole = [line.stroke for line in done if line.stroke and is_whole(line)]
        return unpack(whole[-1].region) if whole else None


def _check_images(names: Sequence[str], *, is_first: bool) -> set[str]:
    """Choose one image in ten by the hashes of their names, so that no order decides."""
    place = {name: int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) for name in names}
    if is_first:
        return set(sorted(names, key=place.__getitem__)[: round(len(names) / CHECK_SHARE)])
    return {name for name in names if place[name] % CHECK_SHARE == 0}
