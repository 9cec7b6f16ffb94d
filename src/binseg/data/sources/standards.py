"""Datasets in the layouts of YOLO, Pascal VOC, nnU-Net, and tables: manifests, run lengths."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from binseg.config.recipe import DataConfig
from binseg.data.dataset import SPLITS, name_some, spread
from binseg.data.samples import agreed, fits_second
from binseg.data.sources.annotations import (
    Annotated,
    FolderImages,
    findings_of,
    mapping,
    refuse,
    rings_of_runs,
    shape_of,
    size_of,
    without_mask,
)
from binseg.data.sources.folder import pages_of
from binseg.data.sources.layouts import split_of_path, wrapped
from binseg.data.sources.listing import (
    Findings,
    inside,
    list_folder,
    read_json,
    read_lines,
    stem_of,
    subfolders,
)
from binseg.data.splits import parse_split, read_table, rows_of
from binseg.errors import DataError, ImageError
from binseg.imageio import read_image, read_palette
from binseg.storage import read_text
from binseg.types import Record, Shape, Split

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
VOC_VOID, VOC_VOID_COLOUR = 255, 0xE0E0C0
LABEL_MAP = "labelmap.txt"  # Of the colours that CVAT's segmentation masks have
MARGIN = 0.05  # Share of an image by which YOLO's segments may reach past it
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_IMAGE_COLUMNS = ("imageid", "image_id", "image", "img", "img_id", "filename", "file_name", "id")
_RUNS_COLUMNS = ("encodedpixels", "encoded_pixels", "rle_mask", "rle", "segmentation")


def find_yolo(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find YOLO's description of a dataset, which names its splits and classes."""
    others = list_folder(path, deep=False).others if path.is_dir() else (path,)
    for file in others:
        if file.suffix.lower() in {".yaml", ".yml"}:
            try:
                content = yaml.safe_load(read_text(file))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                continue
            if isinstance(content, dict) and "names" in content and {"train", "val"} & {*content}:
                return file, content
    return None


def read_yolo(found: tuple[Path, dict[str, Any]], _: Path, config: DataConfig) -> Findings:
    """Read YOLO's segments, texts beside images or in `labels/`; an image without has no object."""
    home, content = found[0].parent, found[1]
    listed = content["names"]
    names = dict(enumerate(listed)) if isinstance(listed, list) else mapping(listed)
    names = {str(key): str(name) for key, name in names.items()}
    items: list[Annotated] = []
    problems: list[str] = []
    for split in SPLITS:
        for image in _yolo_images(home, content, split):
            try:
                shapes = _segments(image, names)
            except ValueError as error:
                problems.append(f"{image.name}: {error}")
                continue
            items.append(Annotated(name=image.name, path=image, shapes=shapes, split=split))
    found = findings_of(items, home, config, problems=problems)
    if {len(one.rings[0]) for item in items for one in item.shapes} != {4}:
        return found
    note = "all segments have four corners: if they are boxes (OBB), the masks are boxes"
    return replace(found, notes=(*found.notes, note))


def _yolo_images(home: Path, content: Mapping[str, Any], split: Split) -> Iterator[Path]:
    """Give a split's images: of folders, or of the lists of names that a key may also name."""
    given = content.get(split)
    for one in given if isinstance(given, list) else [given] if given else []:
        tops = [home / str(content.get("path") or "."), home]
        # Roboflow writes ../train/images for what lies beside the file.
        wanted = [top / str(one) for top in tops] + [home / str(one).removeprefix("../")]
        place = next((each for each in wanted if each.exists()), None)
        if place is None:
            if split == "test":
                continue  # often named and not delivered
            raise DataError(f"{home}: {split}: {one} of the .yaml is not there")
        if place.is_dir():
            yield from list_folder(place).images
        else:
            listed = [(name, inside(home, name)) for name in read_lines(place)]
            if lost := [name for name, image in listed if image is None or not image.is_file()]:
                raise DataError(
                    f"{place}: {len(lost)} of its images are not there: {name_some(lost)}"
                )
            yield from (image for _, image in listed if image is not None)


def _segments(image: Path, names: Mapping[str, str]) -> tuple[Shape, ...]:
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        parts[at] = "labels"
    file = Path(*parts)
    if not file.is_file():
        return ()
    height, width = size_of(image)
    shapes = []
    for number, line in enumerate(read_lines(file), start=1):
        words = line.split()
        if len(words) == 5:
            raise ValueError(f"line {number} is a box; export segments (YOLO segmentation)")
        try:
            values = np.array([float(word) for word in words[1:]])
            corners = values.reshape(-1, 2) * (width, height)
        except ValueError:
            raise ValueError(f"line {number} holds no pairs of numbers") from None
        if np.abs(values - 0.5).max(initial=0) > 0.5 + MARGIN:
            raise ValueError(f"line {number} is in pixels; YOLO's coordinates are shares, 0 to 1")
        label = names.get(words[0], words[0])
        shapes.append(shape_of([(x, y) for x, y in corners.tolist()], label))
    return tuple(shapes)


def find_voc(path: Path) -> tuple[Path, Path] | None:
    """Find the folder of `JPEGImages/` and of masks beside it, as labelme2voc writes them, too."""
    for home in _homes(path, "JPEGImages"):
        for masks in (home / "SegmentationClassPNG", home / "SegmentationClass"):
            if masks.is_dir() and list_folder(masks).images:
                return home, masks
    return None


def _homes(path: Path, *inside: str) -> list[Path]:
    """Find the folders that hold these: the one given, in which one or two may wrap them."""
    tops = dict.fromkeys([*wrapped(path), *subfolders(path)]) if path.is_dir() else {}
    return [home for home in tops if all((home / name).is_dir() for name in inside)]


def read_voc(found: tuple[Path, Path], _: Path, config: DataConfig) -> Findings:
    """Read Pascal VOC's layout: the lists in `ImageSets/` are the split, 255 doesn't count."""
    home, masks = found
    file = home / "class_names.txt"
    found_masks = _by_stem(masks)
    classes: dict[str, tuple[int, ...]] = {}
    ignore = frozenset[int]()
    if (home / LABEL_MAP).is_file():
        classes, ignore = _colours_of(home / LABEL_MAP), frozenset({VOC_VOID_COLOUR})
    elif file.is_file() or _has_palette(next(iter(found_masks.values()))[0]):
        names = read_lines(file) if file.is_file() else ["_background_", *VOC_CLASSES]
        classes = {name: (index,) for index, name in enumerate(names) if index}
        ignore = frozenset({VOC_VOID})
    split_lists: dict[str, Split] = {}
    lists = [home / "ImageSets" / "Segmentation", home / "ImageSets"]
    folder = next((one for one in lists if one.is_dir()), None)
    for one in list_folder(folder, deep=False).others if folder else ():
        if one.suffix == ".txt" and (split := parse_split(one.stem)) is not None:
            split_lists |= dict.fromkeys((line.split()[0] for line in read_lines(one)), split)
    return _paired(
        _by_stem(home / "JPEGImages"),
        found_masks,
        home,
        config,
        classes=classes,
        ignore=ignore,
        split_of_name=split_lists,
    )


def _has_palette(path: Path) -> bool:
    with suppress(ImageError):  # the scan of all masks names it
        return read_palette(path) is not None
    return False


def _colours_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the colours (0xRRGGBB) of CVAT's classes but black, from lines `name:r,g,b::`."""
    colours: dict[str, int] = {}
    for line in read_lines(file):
        name, _, rest = line.partition(":")
        if not line.startswith("#"):
            try:
                red, green, blue = map(int, rest.partition(":")[0].split(","))
            except ValueError:
                raise DataError(f"{file}: {line!r} is no name:red,green,blue") from None
            colours[name] = red << 16 | green << 8 | blue
    return {name: (colour,) for name, colour in colours.items() if colour}


def _by_stem(folder: Path) -> dict[str, tuple[Path, ...]]:
    return {stem_of(path): (path,) for path in list_folder(folder).images}


def _paired(
    images: Mapping[str, tuple[Path, ...]],
    masks: Mapping[str, tuple[Path, ...]],
    home: Path,
    config: DataConfig,
    *,
    classes: Mapping[str, tuple[int, ...]],
    ignore: frozenset[int],
    split_of_name: Mapping[str, Split],
) -> Findings:
    """Join images and masks of the same names."""
    if strays := sorted(masks.keys() - images.keys()):
        raise DataError(f"{home}: {len(strays)} masks have no image ({name_some(strays)})")
    listed = {name: split for name, split in split_of_name.items() if name in masks}
    rest = sorted(images.keys() - masks.keys())
    alone = [Record(id=name, image_path=images[name][0], shapes=()) for name in rest]
    empty, notes = without_mask(alone, len(masks), config, home, noun="mask")
    if listed and len(listed) < len(masks):
        rest = sorted(masks.keys() - listed.keys())
        notes.append(f"{len(rest)} images in no list are left out ({name_some(rest)})")
    names = listed or masks
    records = [
        Record(
            id=name,
            image_path=images[name][0],
            further_images=images[name][1:],
            mask_path=masks[name][0],
            split=listed.get(name),
        )
        for name in sorted(names)
    ]
    records += empty
    if listed:
        notes.append("split from the lists of names")
    return Findings(records=tuple(records), notes=tuple(notes), classes=classes, ignore=ignore)


def find_nnunet(path: Path) -> Path | None:
    """Find the folder of a raw dataset of nnU-Net."""
    return next(iter(_homes(path, "imagesTr", "labelsTr")), None)


def read_nnunet(home: Path, _: Path, config: DataConfig) -> Findings:
    """Read nnU-Net's raw layout: `imagesTr/CASE_0000.png`, a file a channel, and `labelsTr/`."""
    if not list_folder(home / "labelsTr").images:
        endings = {"".join(one.suffixes) for one in list_folder(home / "labelsTr").others}
        raise DataError(
            f"{home}: labelsTr/ holds no images ({name_some(sorted(endings))}); save volumes as "
            "NIfTI, or as slices"
        )
    images, num_channels = _channels_of(home)
    content = read_json(home / "dataset.json") if (home / "dataset.json").is_file() else {}
    values: dict[str, tuple[int, ...]] = {}
    for key, value in mapping(content.get("labels")).items():
        # Numbers by name, as version 2 has them (of regions several), or names by number.
        name, given = (str(value), key) if str(key).isdecimal() else (key, value)
        numbers = [str(one) for one in (given if isinstance(given, list) else [given])]
        if all(one.isdecimal() for one in numbers):
            values[name] = tuple(map(int, numbers))
    found = _paired(
        images,
        _by_stem(home / "labelsTr"),
        home,
        config,
        classes={name: some for name, some in values.items() if any(some) and name != "ignore"},
        ignore=frozenset(values.get("ignore", ())),
        split_of_name={},
    )
    paged = [page for one in found.records for page in pages_of(one, config.page_group)]
    found = replace(found, records=tuple(paged))
    if num_channels == 1:
        return found
    note = f"images of {num_channels} files, whose channels are joined in order"
    return replace(found, notes=(note, *found.notes))


def _channels_of(home: Path) -> tuple[dict[str, tuple[Path, ...]], int]:
    """Give each case's files in the order of their channels, and how many those are."""
    channels: dict[str, dict[str, Path]] = defaultdict(dict)
    for image in list_folder(home / "imagesTr").images:
        stem = stem_of(image)
        match = _CHANNEL.match(stem)
        name, channel = (match["case"], match["channel"]) if match else (stem, "0000")
        channels[name][channel] = image
    usual = set().union(*channels.values())
    if short := sorted(name for name, files in channels.items() if files.keys() != usual):
        raise DataError(f"{home}: cases that lack a channel: {name_some(short)}")
    images = {
        name: tuple(files[channel] for channel in sorted(files)) for name, files in channels.items()
    }
    return images, len(usual)


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
    """Read a CSV of run lengths: starts (from 1) and lengths; an empty cell is no object.

    They go column by column, or row by row where the outlines tell so.
    """
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
    images = FolderImages(folder=root, home=root)
    problems: list[str] = []
    drawn: dict[Path, list[tuple[list[int], str]]] = {}
    for name, several in runs_of.items():
        try:
            image = images.find_loosely(name)
            height, width = size_of(image)
            drawn[image] = [
                (runs, label)
                for text, label in several
                if (runs := _runs_of_text(text, height, width))
            ]
        except ValueError as error:
            problems.append(f"image {name} {error}")
    by_rows, num = agreed([_go_along_rows(*one) for one in spread([*drawn.items()], NUM_LAID)])
    items = [
        Annotated(
            name=image.name,
            path=image,
            shapes=tuple(_shape_of_runs(image, *one, by_rows=bool(by_rows)) for one in several),
            split=split_of_path(image, root),
        )
        for image, several in drawn.items()
    ]
    found = findings_of(items, root, config, problems=problems)
    told = f"along the rows, as {num} outlines tell" if by_rows else "down the columns"
    doubt = " (their outlines don't tell it: look at them)" if by_rows is None else ""
    return replace(found, notes=(f"run lengths go {told}{doubt}", *found.notes))


def _go_along_rows(image: Path, several: Sequence[tuple[list[int], str]]) -> bool | None:
    """Tell whether run lengths make a better mask row by row than column by column, or neither.

    In another order than they were made in, objects fall into shreds, or lie beside the image's.
    """
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
    height, width = size_of(image)
    if not by_rows:
        return Shape(rings=rings_of_runs(runs, height=height, width=width), label=label)
    rings = rings_of_runs(runs, height=width, width=height)
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
    """Read a manifest: columns image and mask, and if wanted id, group, split, page, and more.

    Paths are relative to the manifest's folder and stay in it. Columns are parted by comma,
    semicolon or tab. A column that binseg doesn't know goes into the record's `columns`.
    """
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
    refuse(path, problems)
    alone = [replace(one, shapes=()) for one in records if one.mask_path is None]
    used = [one for one in records if one.mask_path is not None]
    empty, missing = without_mask(alone, len(used), config, path.parent, noun="mask")
    further = [name for name in header if name.lower() not in _OWN]
    notes = (f"manifest columns kept for reports: {', '.join(further)}",) if further else ()
    return Findings(records=(*used, *empty), notes=(*missing, *notes))


def _record(cells: Mapping[str, str], folder: Path) -> tuple[Record, list[str]]:
    """Read one line, and say what is wrong in it."""
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
