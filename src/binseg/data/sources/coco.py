"""COCO annotations: polygons and run lengths, one JSON for many images."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from binseg.config.recipe import DataConfig
from binseg.data.dataset import SPLITS, counted, name_some
from binseg.data.sources import annotations as outlines
from binseg.data.sources.annotations import FolderImages, is_background, rings_of_runs
from binseg.data.sources.layouts import split_of
from binseg.data.sources.listing import (
    Findings,
    holds,
    list_folder,
    posix,
    read_json,
    ring_of,
    subfolders,
)
from binseg.errors import DataError
from binseg.types import Record, Shape, Split

MARKS = ('"images"', '"annotations"')  # Words of each such file


def read_coco(files: Mapping[Path, Split | None], path: Path, config: DataConfig) -> Findings:
    """Read COCO annotations, one file or one for each split; images are found by their names."""
    records: list[Record] = []
    notes: list[str] = []
    for file, split in files.items():
        found = _read_file(file, path, config, split=split)
        records += found.records
        notes += found.notes
    if len(files) > 1:
        shown = [one.relative_to(path).as_posix() for one in files]
        notes.append(f"split from {', '.join(shown)}")
    records.sort(key=lambda record: record.id)
    listed = {record.image_path for record in records}
    if path.is_dir() and (rest := [x for x in list_folder(path).images if x not in listed]):
        names = name_some(one.relative_to(path).as_posix() for one in rest)
        notes.append(f"{len(rest)} image files that no list names are left out ({names})")
    return Findings(records=tuple(records), notes=tuple(dict.fromkeys(notes)))


def _read_file(file: Path, path: Path, config: DataConfig, *, split: Split | None) -> Findings:
    content = read_json(file)
    images, annotations = (_objects(content, key, file) for key in ("images", "annotations"))
    names = {str(a.get("category_id")): str(a.get("category_id")) for a in annotations}
    for category in _objects(content, "categories", file):
        names[str(category.get("id"))] = f"{category.get('id')} {category.get('name', '')}".strip()
    chosen, note = _choose(names, config, file)
    kept = [a for a in annotations if str(a.get("category_id")) in chosen]
    shapes_of: dict[str, list[Shape]] = defaultdict(list)
    sizes_of: dict[str, set[tuple[object, object]]] = defaultdict(set)
    problems: list[str] = []
    for annotation in kept:
        owner = str(annotation.get("image_id"))
        try:
            some, size = _shapes(annotation)
        except ValueError as error:
            problems.append(f"annotation {annotation.get('id')}: its segmentation {error}")
            continue
        shapes_of[owner] += some
        sizes_of[owner] |= size
    for noun, items in (("image", images), ("annotation", annotations)):
        num_of = Counter(str(item["id"]) for item in items if "id" in item)
        if twice := [id_ for id_, num in num_of.items() if num > 1]:
            problems.append(f"{noun} ids are used more than once: {name_some(twice)}")
    places = _places(file, path, split)
    records: list[Record] = []
    known = set()
    for image in images:
        name, id_ = str(image.get("file_name", "")), str(image.get("id"))
        known.add(id_)
        try:
            found = _find(name, places)
        except ValueError as error:
            problems.append(f"image {name or image.get('id')} {error}")
            continue
        shapes = tuple(shapes_of.pop(id_, []))
        listed = (image.get("height"), image.get("width"))
        wrong, is_stored = outlines.check_outlines(found, shapes, listed, *sizes_of[id_])
        problems += wrong
        stem = Path(posix(name)).with_suffix("").as_posix()
        id_ = stem if split is None else f"{split}/{stem}"
        records.append(
            Record(id=id_, image_path=found, shapes=shapes, split=split, mask_as_stored=is_stored)
        )
    if strays := [key for key in shapes_of if key not in known]:
        problems.append(f"annotations for images that are not listed: {name_some(strays)}")
    outlines.refuse(file, problems)
    num = sum(bool(a.get("iscrowd")) for a in kept)
    told = counted(num, "crowd region (iscrowd) counts", "crowd regions (iscrowd) count")
    crowds = [f"{told} as foreground, as a whole"] if num else []
    return Findings(records=tuple(records), notes=(note, *crowds, *outlines.empty_note(records)))


def find_coco(path: Path) -> dict[Path, Split | None]:
    """Find the annotation files: the one there is, or one for each split."""
    if not path.is_dir():
        return {path: None}
    by_folder = {split: _jsons(one) for one in subfolders(path) if (split := split_of(one.name))}
    if len(by_folder) > 1 and all(len(files) == 1 for files in by_folder.values()):
        return {files[0]: split for split, files in by_folder.items()}
    for folder in (path, path / "annotations"):
        if files := _jsons(folder):
            splits = {
                split: file
                for file in files
                if (split := split_of(file.stem))
                and holds(file, *MARKS)
                and (file.stem.startswith("instances") or len(files) <= len(SPLITS))
            }
            if len(splits) > 1:
                return {splits[split]: split for split in SPLITS if split in splits}
            return {files[0]: None} if len(files) == 1 else {}
    return {}


def _jsons(folder: Path) -> list[Path]:
    listing = list_folder(folder, deep=False) if folder.is_dir() else None
    return [one for one in listing.others if one.suffix.lower() == ".json"] if listing else []


def _places(file: Path, path: Path, split: Split | None) -> list[FolderImages]:
    """Give the folders to look for images in: those of the split first."""
    is_aside = file.parent.name.lower() == "annotations"
    home = path if path.is_dir() else file.parent.parent if is_aside else file.parent
    tops = [top for top in (home, home / "images") if split is not None and top.is_dir()]
    own = [one for top in tops for one in subfolders(top) if split_of(one.name) == split]
    own_places = [FolderImages(folder=one, home=one) for one in own]
    return [*own_places, FolderImages(folder=file.parent, home=home)]


def _find(name: str, places: list[FolderImages]) -> Path:
    for place in places[:-1]:
        with contextlib.suppress(ValueError):
            return place.find(name)
    return places[-1].find(name)


def _objects(content: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    items = content.get(key, [] if key == "categories" else None)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{file}: not COCO: `{key}` must be a list of objects")
    return items


def _choose(names: dict[str, str], config: DataConfig, file: Path) -> tuple[set[str], str]:
    """Choose the categories that are foreground, by name or id, and say which they are."""
    if config.foreground is None and config.labels is None:
        usual = {key: told for key, told in names.items() if not is_background(told)}
        return set(usual), f"foreground: all categories ({name_some(usual.values(), limit=10)})"
    asked = [str(one) for one in config.labels or config.foreground or ()]
    chosen = {key for key, told in names.items() if {key, told.partition(" ")[2]} & {*asked}}
    known = {word for key, told in names.items() for word in (key, told.partition(" ")[2])}
    if unknown := [one for one in asked if one not in known]:
        option = "foreground" if config.labels is None else "labels"
        there = f"which aren't there; there are {name_some(names.values(), limit=20)}"
        raise DataError(f"{file}: data.{option} names the categories {name_some(unknown)}, {there}")
    told = name_some((names[key] for key in names if key in chosen), limit=10)
    return chosen, f"foreground: categories {told}; all others are background"


def _shapes(annotation: Mapping[str, Any]) -> tuple[Sequence[Shape], set[tuple[object, object]]]:
    """Give an object's outlines, and the size that its run lengths are for."""
    segmentation, label = annotation.get("segmentation"), str(annotation.get("category_id", ""))
    if isinstance(segmentation, list) and segmentation:
        rings = tuple(ring_of(points) for points in segmentation)
        return outlines.parts_of(rings, label), set()
    if not isinstance(segmentation, dict):
        raise ValueError("is missing (a box alone is no outline)")  # noqa: TRY004  # the file's fault
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
        raise ValueError("has run lengths without a size")
    runs = runs_of_text(counts) if isinstance(counts, str) else counts
    if not (isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs)):
        raise ValueError("has unreadable run lengths")
    rings = rings_of_runs(runs, height=size[0], width=size[1])
    return [Shape(rings=rings, label=label)], {(size[0], size[1])}


def runs_of_text(text: str) -> list[int]:
    """Undo COCO's packing of run lengths: 5 bits a letter, from the third on as differences.

    The format is the one of pycocotools' `rleToString`.

    >>> runs_of_text("61X13mN000`0")
    [6, 1, 40, 4, 5, 4, 5, 4, 21]
    """
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            raise ValueError("has unreadable run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return runs
