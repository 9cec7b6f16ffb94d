"""A CSV manifest: one line an image, with its mask, group, split and any further columns."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from binseg.config.recipe import DataConfig
from binseg.data.sources.annotations import refuse
from binseg.data.sources.listing import Findings, inside
from binseg.data.splits import parse_split
from binseg.errors import DataError
from binseg.types import Record

_NAME = "manifest.csv"
_SUFFIXES = {".csv", ".tsv"}
_OWN = {"id", "image", "mask", "group", "split", "page"}


def find_manifest(path: Path) -> bool:
    """Tell whether a path is a manifest, or a folder that holds `manifest.csv`."""
    return (path / _NAME).is_file() if path.is_dir() else path.suffix.lower() in _SUFFIXES


def read_manifest(_: object, path: Path, config: DataConfig) -> Findings:
    """Read a manifest: columns image and mask, and if wanted id, group, split, page, and more.

    Paths are relative to the manifest's folder and stay in it. Columns are parted by comma,
    semicolon or tab. A column that binseg doesn't know goes into the record's `columns`.

    Raises:
        DataError: up to 10 problems at once, each with its line.
    """
    del config
    path = path / _NAME if path.is_dir() else path
    reader = _reader(path)
    header = [(name or "").strip() for name in reader.fieldnames or ()]
    lower = [name.lower() for name in header]
    if not {"image", "mask"} <= set(lower) or len(set(lower)) < len(lower):
        raise DataError(
            f"{path}: needs the columns image and mask, each once; it has "
            f"{', '.join(header) or 'none'} (also understood: id, group, split, page)"
        )
    reader.fieldnames = [name if name.lower() not in _OWN else name.lower() for name in header]
    records: list[Record] = []
    problems: list[str] = []
    line_of: dict[str, int] = {}
    for row in reader:
        line = reader.line_num
        if None in row or None in row.values():
            problems.append(f"line {line}: has another number of columns than the header")
            continue
        record, wrong = _record({name: cell.strip() for name, cell in row.items()}, path.parent)
        if line_of.setdefault(record.id, line) != line:
            wrong.append(f"{record.id} is also on line {line_of[record.id]}")
        records.append(record)
        problems += [f"line {line}: {what}" for what in wrong]
    refuse(path, problems)
    further = [name for name in header if name.lower() not in _OWN]
    notes = (f"manifest columns kept for reports: {', '.join(further)}",) if further else ()
    return Findings(records=tuple(records), notes=notes)


def _record(cells: Mapping[str, str], folder: Path) -> tuple[Record, list[str]]:
    """Read one line, and say what is wrong in it."""
    wrong: list[str] = []
    paths: list[Path] = []
    for noun in ("image", "mask"):
        name = cells[noun]
        path = inside(folder, name)
        if not name:
            wrong.append(f"no {noun}")
        elif path is None:
            wrong.append(f"{noun} {name} lies outside the manifest's folder")
        elif not path.is_file():
            wrong.append(f"{noun} {name} does not exist")
        paths.append(path or folder)
    page, split = cells.get("page", ""), parse_split(cells.get("split", ""))
    if page and not page.isdecimal():
        wrong.append(f"page {page!r} is not a whole number from 0")
    if split is None and cells.get("split"):
        wrong.append(f"split {cells['split']!r} is not train, val or test")
    stem = Path(cells["image"]).with_suffix("").as_posix()
    number = int(page) if page.isdecimal() else None
    record = Record(
        id=cells.get("id") or (stem if number is None else f"{stem}-page{number:04d}"),
        image_path=paths[0],
        mask_path=paths[1],
        page=number,
        group=cells.get("group") or None,
        split=split,
        columns={name: cell for name, cell in cells.items() if name not in _OWN},
    )
    return record, wrong


def _reader(path: Path) -> "csv.DictReader[str]":
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: the manifest can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: the manifest is not UTF-8 text; save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
