"""A project of `binseg label`: images, and the masks that a person accepted so far."""

import hashlib
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted
from binseg.data.sources.layouts import folder_of_images
from binseg.data.sources.listing import Findings, list_folder
from binseg.errors import DataError
from binseg.types import Record, Split

LOG = "labels.sqlite"
LOG_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""Errors of a damaged log: SQLite's own message may quote bytes that are no text."""
_VAL_SHARE = 5  # One in so many, of those that aren't kept to check with, chooses the model


def images_of_project(path: Path, home: Path | None = None) -> tuple[Path, Path]:
    """Tell where a project's images and labels lie, by the folder of either; raises DataError."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve would follow the links)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder of images")
    if (path / LOG).is_file() and (told := _told(path)):
        return told, path
    if list_folder(path, deep=False).images:
        return path, home or (path if (path / "masks").is_dir() else path.parent)
    inside = folder_of_images(path)
    return (inside, home or path) if inside else (path, home or path.parent)


def _told(home: Path) -> Path | None:
    found = _asked(home, "select value from facts where name = 'images'")
    if not found:
        return None
    if not isinstance(found[0][0], str) or "\0" in found[0][0]:
        raise DataError(f"{home / LOG}: it names no folder of images")
    return Path(os.path.normpath(home / found[0][0]))


def _asked(home: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask the log of a project, which is not written; raises DataError."""
    try:
        with closing(sqlite3.connect(f"{(home / LOG).as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()
    except LOG_ERRORS as error:
        raise DataError(f"{home / LOG}: not a log of `binseg label`: {error}") from None


def find_labelled(root: Path) -> tuple[Path, Path] | None:
    """Find images and labels, where a folder's images are labelled with `binseg label`."""
    near = (root, root.absolute().parent)
    if not root.is_dir() or not any((one / LOG).is_file() for one in near):
        return None
    images, home = images_of_project(root)
    return (images, home) if (home / LOG).is_file() and _told(home) == images else None


def read_labelled(found: tuple[Path, Path], root: Path, config: DataConfig) -> Findings:
    """Take images with an accepted mask; those kept to check with are the test split."""
    del root, config
    images, home = found
    rows = _asked(home, "select name, file, is_check, state from images order by name")
    listed = [row for row in rows if _is_inside(row[1], images)]
    masks = {
        path.relative_to(home / "masks").with_suffix("").as_posix(): path
        for path in (list_folder(home / "masks").images if (home / "masks").is_dir() else ())
    }
    records = []
    for name, file, is_check, _ in listed:
        if name in masks:
            split = _split(name, is_check=bool(is_check))
            one = Record(id=name, image_path=images / file, mask_path=masks[name], split=split)
            records.append(one)
    if not records:
        told = f"none of {counted(len(listed), 'image', 'images')} is labelled yet"
        raise DataError(f"{images}: {told}; `binseg label {images}` does it")
    left = len(listed) - len(records)
    skipped = sum(state == "skipped" for *_, state in listed)
    note = f"labelled with `binseg label`: {len(records)} of {len(listed)} images"
    if left:
        note += f"; {left} are unlabelled and left out"
    if skipped:
        note += f" ({skipped} of them were skipped)"
    return Findings(records=tuple(_with_val(records)), notes=(note,))


def _is_inside(file: object, images: Path) -> bool:
    """Tell whether a log's file is there, and below its folder; who made the log may be anyone."""
    if not isinstance(file, str) or "\0" in file:
        return False
    leads_out = Path(file).is_absolute() or ".." in Path(file).parts
    return not leads_out and (images / file).exists()


def _split(name: str, *, is_check: bool) -> Split:
    if is_check:
        return "test"
    place = int(hashlib.sha256(f"val {name}".encode()).hexdigest()[:8], 16)
    return "val" if place % _VAL_SHARE == 0 else "train"


def _with_val(records: list[Record]) -> list[Record]:
    """Leave the splits to chance where one of the first two would be empty."""
    splits = {record.split for record in records}
    if {"train", "val"} <= splits:
        return records
    return [replace(record, split=None) for record in records]
