"""COCO annotations: polygons and run lengths, one JSON for many images."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.sources.listing import (
    Findings,
    has_keys,
    inside,
    list_folder,
    read_json,
    ring_of,
    size_problem,
)
from binseg.errors import DataError
from binseg.types import Record, Ring, Shape

__all__ = ["is_coco", "read_coco", "rings_of_runs", "runs_of_text"]

_MAX_PIXELS = 1 << 30


def is_coco(path: Path) -> bool:
    """Tell whether a path is COCO annotations, or a folder with one such file in it."""
    file = _file_of(path)
    return file is not None and has_keys(file, "images", "annotations")


def read_coco(path: Path, config: DataConfig) -> Findings:
    """Read COCO annotations; every category is foreground unless `data.foreground` names ids.

    Several polygons of one object are one even-odd shape: a ring inside a ring is a hole.
    Images are looked for beside the file, in `images/` there, and in `images/` one folder up;
    those that aren't there are found by their name anywhere in the folder, or below the file's.

    Raises:
        DataError: up to 10 problems at once: missing images, names that two files have,
            unreadable outlines, other sizes.
    """
    file = _file_of(path)
    if file is None:
        raise DataError(f"{path}: needs exactly one .json file of COCO annotations; name the file")
    content = read_json(file)
    images, annotations = (_objects(content, key, file) for key in ("images", "annotations"))
    names = {_key(a.get("category_id")): _key(a.get("category_id")) for a in annotations}
    for category in _objects(content, "categories", file):
        names[_key(category.get("id"))] = f"{category.get('id')} {category.get('name', '')}".strip()
    chosen, note = _choose(names, config, file)
    kept = [a for a in annotations if _key(a.get("category_id")) in chosen]
    shapes_of, sizes_of, problems = _shapes(kept)
    is_aside = file.parent.name.lower() == "annotations"
    folder_images = _FolderImages(
        folder=file.parent,
        home=path if path.is_dir() else file.parent.parent if is_aside else file.parent,
    )
    records: list[Record] = []
    for image in images:
        name = str(image.get("file_name", ""))
        try:
            found = folder_images.find(name)
        except ValueError as error:
            problems.append(f"image {name or image.get('id')} {error}")
            continue
        listed = (image.get("height"), image.get("width"))
        sizes = [listed, *(size for size in sizes_of[_key(image.get("id"))] if size != listed)]
        problems += filter(None, (size_problem(found, *size) for size in sizes))
        shapes = tuple(shapes_of.pop(_key(image.get("id")), []))
        id_ = Path(name).with_suffix("").as_posix()
        records.append(Record(id=id_, image_path=found, shapes=shapes))
    known = {_key(image.get("id")) for image in images}
    strays = [key for key in shapes_of if key not in known]
    if strays:
        problems.append(f"annotations for images that are not listed: {name_some(strays)}")
    if problems:
        raise DataError(f"{file}: {name_some(problems, limit=10)}")
    return Findings(
        records=tuple(sorted(records, key=lambda record: record.id)),
        notes=(note, *_crowd_note(kept), *_empty_note(records)),
    )


def _file_of(path: Path) -> Path | None:
    if not path.is_dir():
        return path
    for folder in (path, path / "annotations"):
        listing = list_folder(folder, deep=False) if folder.is_dir() else None
        files = [p for p in listing.others if p.suffix.lower() == ".json"] if listing else []
        if files:
            return files[0] if len(files) == 1 else None
    return None


def _objects(content: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    items = content.get(key, [] if key == "categories" else None)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{file}: not COCO: `{key}` must be a list of objects")
    return items


def _key(id_: object) -> str:
    return str(id_)


def _choose(names: dict[str, str], config: DataConfig, file: Path) -> tuple[set[str], str]:
    """Choose the categories that are foreground, and say which they are."""
    if config.foreground is None:
        return set(names), f"foreground: all categories ({name_some(names.values(), limit=10)})"
    chosen = [_key(id_) for id_ in config.foreground]
    unknown = [id_ for id_ in chosen if id_ not in names]
    if unknown:
        raise DataError(
            f"{file}: data.foreground names the categories {name_some(unknown)}, which aren't "
            f"there; there are {name_some(names.values(), limit=20)}"
        )
    told = name_some((names[id_] for id_ in chosen), limit=10)
    return set(chosen), f"foreground: categories {told}; all others are background"


def _crowd_note(annotations: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    num = sum(bool(a.get("iscrowd")) for a in annotations)
    return (f"{num} crowd regions (iscrowd) count as foreground, as a whole",) if num else ()


def _empty_note(records: Sequence[Record]) -> tuple[str, ...]:
    num = sum(not record.shapes for record in records)
    told = counted(num, "image has", "images have")
    return (f"{told} no outline: all background",) if num else ()


@dataclass(frozen=True, kw_only=True)
class _FolderImages:
    """Places of the images that an annotation file names."""

    folder: Path
    """The file's."""
    home: Path
    """Anywhere in it an image may be, if no other has its name."""

    def find(self, name: str) -> Path:
        """Give an image's path; a `ValueError` says why there is none."""
        folder = self.folder
        for place in (folder, folder / "images", folder.parent / "images", folder.parent):
            path = inside(place, name) if name else None
            if path is not None and path.is_file():
                return path
        is_within = name and inside(self.home, name) is not None
        found = self._paths_of[Path(name).name] if is_within else []
        if not found:
            raise ValueError("is not there")
        if len(found) > 1:
            told = " or ".join(path.relative_to(self.home).as_posix() for path in found[:2])
            raise ValueError(f"could be {told}: write its folder into the file_name")
        return found[0]

    @cached_property
    def _paths_of(self) -> dict[str, list[Path]]:
        paths_of: dict[str, list[Path]] = defaultdict(list)
        for path in list_folder(self.home).images:
            paths_of[path.name].append(path)
        return paths_of


def _shapes(
    annotations: Sequence[dict[str, Any]],
) -> tuple[dict[str, list[Shape]], dict[str, set[tuple[int, int]]], list[str]]:
    """Each image's outlines, the sizes that its run lengths are for, and what is wrong."""
    shapes_of: dict[str, list[Shape]] = defaultdict(list)
    sizes_of: dict[str, set[tuple[int, int]]] = defaultdict(set)
    problems: list[str] = []
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        try:
            rings = _rings(segmentation)
        except ValueError as error:
            problems.append(f"annotation {annotation.get('id')}: its segmentation {error}")
            continue
        shape = Shape(rings=rings, label=str(annotation.get("category_id", "")))
        found = _key(annotation.get("image_id"))
        shapes_of[found].append(shape)
        if isinstance(segmentation, dict):
            height, width = segmentation["size"]
            sizes_of[found].add((height, width))
    return shapes_of, sizes_of, problems


def _rings(segmentation: object) -> tuple[Ring, ...]:
    if isinstance(segmentation, list) and segmentation:
        rings = tuple(ring_of(points) for points in segmentation)
        if any(len(ring) < 3 for ring in rings):
            raise ValueError("has fewer than 3 corners")
        return rings
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
            raise ValueError("has run lengths without a size")
        runs = runs_of_text(counts) if isinstance(counts, str) else counts
        if not (isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs)):
            raise ValueError("has unreadable run lengths")
        return rings_of_runs(runs, height=size[0], width=size[1])
    raise ValueError("is missing (a box alone is no outline)")


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


def rings_of_runs(runs: Sequence[int], *, height: int, width: int) -> tuple[Ring, ...]:
    """Turn run lengths (column by column, background first) into rectangles, pixel for pixel.

    Raises:
        ValueError: runs that don't add up to the image.
    """
    if not 0 < height * width <= _MAX_PIXELS or sum(runs) != height * width:
        raise ValueError("has run lengths that don't add up to its size")
    edges = np.cumsum([0, *runs])
    rings: list[Ring] = []
    for start, end in zip(edges[1::2].tolist(), edges[2::2].tolist(), strict=False):
        while start < end:
            column, top = divmod(start, height)
            # A run that goes on over the column's foot is cut there; whole columns stay one.
            columns = max(1, (end - start) // height) if top == 0 else 1
            bottom = min(height, top + end - start)
            right = column + columns
            x0, y0, x1, y1 = float(column), float(top), float(right), float(bottom)
            rings.append(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
            start += columns * (bottom - top)  # noqa: PLW2901
    return tuple(rings)
