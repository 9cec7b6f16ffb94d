"""A CSV manifest: one line an image, with its mask, group, split and any further columns."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from binseg.config.recipe import DataConfig
from binseg.data.dataset import name_some
from binseg.data.sources.listing import Findings, inside
from binseg.data.splits import parse_split
from binseg.errors import DataError
from binseg.types import Record, Split

_NAME = "manifest.csv"
_SUFFIXES = {".csv", ".tsv"}
_OWN = {"id", "image", "mask", "group", "split", "page"}


def is_manifest(path: Path) -> bool:
    """Tell whether a path is a manifest, or a folder that holds `manifest.csv`."""
    return (path / _NAME).is_file() if path.is_dir() else path.suffix.lower() in _SUFFIXES


def read_manifest(path: Path, config: DataConfig) -> Findings:
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
    lines = _Lines(folder=path.parent)
    for row in reader:
        lines.add(row, reader.line_num)
    if lines.problems:
        raise DataError(f"{path}: {name_some(lines.problems, limit=10)}")
    further = [name for name in header if name.lower() not in _OWN]
    notes = (f"manifest columns kept for reports: {', '.join(further)}",) if further else ()
    return Findings(records=tuple(lines.records), notes=notes)


@dataclass(kw_only=True)
class _Lines:
    """The lines read so far, and everything that is wrong with them."""

    folder: Path
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    line_of: dict[str, int] = field(default_factory=dict)

    def add(self, row: Mapping[str | None, str | list[str] | None], line: int) -> None:
        """Check one line; its record, or its problems, are kept."""
        num_before = len(self.problems)
        if None in row or None in row.values():
            self._wrong(line, "has another number of columns than the header")
            return
        cells = {str(name): str(cell).strip() for name, cell in row.items()}
        image_path = self._path(cells["image"], "image", line)
        mask_path = self._path(cells["mask"], "mask", line)
        page = self._page(cells.get("page", ""), line)
        split = self._split(cells.get("split", ""), line)
        id_ = cells.get("id") or _id(cells["image"], page)
        if self.line_of.setdefault(id_, line) != line:
            self._wrong(line, f"{id_} is also on line {self.line_of[id_]}")
        if len(self.problems) > num_before or image_path is None:
            return
        columns = {name: cell for name, cell in cells.items() if name not in _OWN}
        self.records.append(
            Record(
                id=id_,
                image_path=image_path,
                mask_path=mask_path,
                page=page,
                group=cells.get("group") or None,
                split=split,
                columns=columns,
            )
        )

    def _wrong(self, line: int, what: str) -> None:
        self.problems.append(f"line {line}: {what}")

    def _path(self, name: str, noun: str, line: int) -> Path | None:
        if not name:
            self._wrong(line, f"no {noun}")
            return None
        path = inside(self.folder, name)
        if path is None:
            self._wrong(line, f"{noun} {name} lies outside the manifest's folder")
        elif not path.is_file():
            self._wrong(line, f"{noun} {name} does not exist")
        return path

    def _page(self, text: str, line: int) -> int | None:
        if not text:
            return None
        if not text.isdecimal():
            self._wrong(line, f"page {text!r} is not a whole number from 0")
            return None
        return int(text)

    def _split(self, text: str, line: int) -> Split | None:
        split = parse_split(text) if text else None
        if text and split is None:
            self._wrong(line, f"split {text!r} is not train, val or test")
        return split


def _id(image: str, page: int | None) -> str:
    stem = Path(image).with_suffix("").as_posix()
    return stem if page is None else f"{stem}-page{page:04d}"


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
