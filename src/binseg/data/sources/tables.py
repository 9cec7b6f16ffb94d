"""Tables: a contest's run lengths, and manifests of images and masks."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import spread
from binseg.data.samples import agreed, fits_second
from binseg.data.sources import annotations
from binseg.data.sources.layouts import split_of_path
from binseg.data.sources.listing import Findings, inside, list_folder
from binseg.data.splits import parse_split, read_table, rows_of
from binseg.errors import DataError, ImageError
from binseg.imageio import read_image
from binseg.types import Record, Shape

_IMAGE_COLUMNS = ("imageid", "image_id", "image", "img", "img_id", "filename", "file_name", "id")
_RUNS_COLUMNS = ("encodedpixels", "encoded_pixels", "rle_mask", "rle", "segmentation")


def find_kaggle(path: Path) -> tuple[Path, str, str] | None:
    """Find a table of run lengths, with the names of its columns of images and runs."""
    others = list_folder(path, deep=False).others if path.is_dir() else (path,)
    for file in others:
        if file.suffix.lower() == ".csv":
            header: Sequence[str] = ()
            with suppress(DataError, csv.Error):  # then it is no such table
                header = read_table(file, "table").fieldnames or ()
            lower = {name.strip().lower(): name for name in header}
            image = next((lower[one] for one in _IMAGE_COLUMNS if one in lower), None)
            runs = next((lower[one] for one in _RUNS_COLUMNS if one in lower), None)
            if image is not None and runs is not None:
                return file, image, runs
    return None


MOST_LETTERS = 10_000_000  # Letters of run lengths in one cell
NUM_LAID = 16  # Images that tell whether runs go along rows or down columns
SHREDDED = 1.3  # Outlines so many times longer than in the other order are those of shreds


def read_kaggle(found: tuple[Path, str, str], _: Path, config: DataConfig) -> Findings:
    """Read a CSV of run lengths from 1, down the columns unless outlines tell otherwise."""
    file, image_column, runs_column = found
    runs_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    usual = csv.field_size_limit(MOST_LETTERS)
    try:
        for row in rows_of(read_table(file, "table"), file):
            label = row.get("class") or row.get("label") or row.get("ClassId") or ""
            runs_of[row[image_column] or ""].append((row[runs_column] or "", label))
    finally:
        csv.field_size_limit(usual)  # it is one for the whole process
    root = file.parent
    images = annotations.FolderImages(folder=root, home=root)
    problems: list[str] = []
    drawn: dict[Path, list[tuple[list[int], str]]] = {}
    for name, several in runs_of.items():
        try:
            image = images.find_loosely(name)
            size = annotations.size_of(image)
            read = [(_runs_of_text(text, *size), label) for text, label in several]
            drawn[image] = [one for one in read if one[0]]
        except ValueError as error:
            problems.append(f"image {name} {error}")
    by_rows, num = agreed([_go_along_rows(*one) for one in spread([*drawn.items()], NUM_LAID)])
    items = []
    for path, runs in drawn.items():
        shapes = tuple(_shape_of_runs(path, *one, by_rows=bool(by_rows)) for one in runs)
        one = annotations.Annotated(name=path.name, path=path, shapes=shapes)
        items.append(replace(one, split=split_of_path(path, root)))
    findings = annotations.findings_of(items, root, config, problems=problems)
    told = f"along the rows, as {num} outlines tell" if by_rows else "down the columns"
    doubt = " (their outlines don't tell it: look at them)" if by_rows is None else ""
    return replace(findings, notes=(f"run lengths go {told}{doubt}", *findings.notes))


def _go_along_rows(image: Path, several: Sequence[tuple[list[int], str]]) -> bool | None:
    """Tell whether runs, row by row, give less shreds than column by column, or better edges."""
    if not several:
        return None
    try:
        image_HWC = read_image(image)
    except ImageError:
        return None  # reading the sample will name it
    height, width = image_HWC.shape[:2]
    flat_P = np.zeros(height * width, np.bool_)
    for runs, _ in several:
        flat_P |= np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    down_HW, along_HW = flat_P.reshape(width, height).T, flat_P.reshape(height, width)
    lengths = [sum(np.diff(one, axis=axis).sum() for axis in (0, 1)) for one in (down_HW, along_HW)]
    if max(lengths) > SHREDDED * min(lengths):
        return bool(lengths[1] < lengths[0])
    return fits_second(image_HWC, down_HW, along_HW)


def _shape_of_runs(image: Path, runs: list[int], label: str, *, by_rows: bool) -> Shape:
    height, width = annotations.size_of(image)
    if not by_rows:
        return Shape(rings=annotations.rings_of_runs(runs, height=height, width=width), label=label)
    rings = annotations.rings_of_runs(runs, height=width, width=height)
    return Shape(rings=tuple(tuple((x, y) for y, x in ring) for ring in rings), label=label)


def _runs_of_text(text: str, height: int, width: int) -> list[int]:
    """Read starts (from 1) and lengths as lengths of background and foreground in turn."""
    words = text.split()
    if not words or words == ["-1"]:
        return []
    try:
        numbers = np.array([int(float(word)) for word in words])
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        ends = starts + lengths
    except (ValueError, OverflowError):
        raise ValueError("has unreadable run lengths") from None
    order = np.argsort(starts)
    starts, ends = starts[order], ends[order]
    if starts[0] < 0 or (lengths < 1).any() or ends[-1] > height * width:
        raise ValueError(f"has run lengths that leave its {height}x{width} pixels")
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("has run lengths that overlap")
    edges = np.stack([starts, ends], axis=1).ravel()
    return [*np.diff([0, *edges.tolist(), height * width]).tolist()]


_NAME = "manifest.csv"
_SUFFIXES = {".csv", ".tsv"}
_OWN = {"id", "image", "mask", "group", "split", "page"}


def find_manifest(path: Path) -> bool:
    """Tell whether a path is a manifest, or a folder that holds `manifest.csv`."""
    return (path / _NAME).is_file() if path.is_dir() else path.suffix.lower() in _SUFFIXES


def read_manifest(_: object, path: Path, config: DataConfig) -> Findings:
    """Read columns image and mask (in its folder), and id, group, split, page, and more."""
    path = path / _NAME if path.is_dir() else path
    reader = read_table(path, "manifest")
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
    for row in rows_of(reader, path):
        line = reader.line_num
        if None in row or None in row.values():
            problems.append(f"line {line}: has another number of columns than the header")
            continue
        record, wrong = _record({name: cell.strip() for name, cell in row.items()}, path.parent)
        if line_of.setdefault(record.id, line) != line:
            wrong.append(f"{record.id} is also on line {line_of[record.id]}")
        records.append(record)
        problems += [f"line {line}: {what}" for what in wrong]
    annotations.refuse(path, problems)
    alone = [replace(one, shapes=()) for one in records if one.mask_path is None]
    used = [one for one in records if one.mask_path is not None]
    empty, missing = annotations.without_mask(alone, len(used), config, path.parent, noun="mask")
    further = [name for name in header if name.lower() not in _OWN]
    notes = (f"manifest columns kept for reports: {', '.join(further)}",) if further else ()
    return Findings(records=(*used, *empty), notes=(*missing, *notes))


def _record(cells: Mapping[str, str], folder: Path) -> tuple[Record, list[str]]:
    wrong: list[str] = []
    paths: list[Path] = []
    for noun in ("image", "mask"):
        name = cells[noun]
        path = inside(folder, name)
        if not name:
            wrong += ["no image"] * (noun == "image")
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
    stem = Path(cells["image"] or "none").with_suffix("").as_posix()
    number = int(page) if page.isdecimal() else None
    record = Record(
        id=cells.get("id") or (stem if number is None else f"{stem}-page{number:04d}"),
        image_path=paths[0],
        mask_path=paths[1] if cells["mask"] else None,
        page=number,
        group=cells.get("group") or None,
        split=split,
        columns={name: cell for name, cell in cells.items() if name not in _OWN},
    )
    return record, wrong
