"""labelme annotations: one JSON beside each image."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.sources.annotations import choose_labels, mask_of_png, rings_of_mask, scale_problem
from binseg.data.sources.listing import (
    Findings,
    has_keys,
    ignored_note,
    inside,
    list_folder,
    read_json,
    ring_of,
    size_problem,
)
from binseg.errors import DataError
from binseg.imageio import IMAGE_SUFFIXES
from binseg.types import Record, Ring, Shape

_NUM_CORNERS = 128
"""Corners of a polygon that stands for a circle: off by less than 0.1 % of its radius."""
_NO_AREA = {"point", "line", "linestrip", "points"}


def is_labelme(path: Path) -> bool:
    """Tell whether a folder's first JSON file is labelme's."""
    if not path.is_dir():
        return False
    files = [file for file in list_folder(path).others if file.suffix.lower() == ".json"]
    return bool(files) and has_keys(files[0], "shapes")


def read_labelme(path: Path, config: DataConfig) -> Findings:
    """Read a folder of labelme files; every label is foreground unless `data.labels` names some.

    Polygons, rectangles, circles and masks are filled; points and lines have no area and are left
    out. What is labelled `__ignore__` doesn't count, `_background_` is no object.

    Raises:
        DataError: up to 10 problems at once: missing images, unreadable outlines, other sizes.
    """
    if not path.is_dir():
        raise DataError(f"{path}: give the folder of labelme's .json files")
    if config.foreground is not None:
        raise DataError(
            "data.foreground is for values of mask files or COCO categories, not labelme"
        )
    listing = list_folder(path)
    files = [file for file in listing.others if file.suffix.lower() == ".json"]
    skipped: Counter[str] = Counter()
    records = _records(files, path, skipped)
    chosen, note = choose_labels(
        (shape.label for one in records for shape in one.shapes or ()), config, path
    )
    records = [replace(one, shapes=chosen(one.shapes or ())) for one in records]
    used = {record.image_path for record in records}
    alone = [p.relative_to(path).as_posix() for p in listing.images if p not in used]
    notes = [note]
    if skipped:
        told = ", ".join(f"{num} {kind}" for kind, num in sorted(skipped.items()))
        notes.append(f"left out, because they have no area: {told}")
    if alone:
        told = counted(len(alone), "image has no .json and is", "images have no .json and are")
        notes.append(f"{told} left out: {name_some(alone)}")
    others = [file for file in listing.others if file not in files]
    return Findings(
        records=tuple(sorted(records, key=lambda record: record.id)),
        notes=(*notes, *ignored_note(others, path)),
    )


def _records(files: Sequence[Path], root: Path, skipped: Counter[str]) -> list[Record]:
    records: list[Record] = []
    problems: list[str] = []
    for file in files:
        try:
            records.append(_record(file, root, skipped))
        except ValueError as error:
            problems.append(f"{file.relative_to(root).as_posix()}: {error}")
    problems += filter(None, (scale_problem(r.image_path, r.shapes or ()) for r in records))
    if problems:
        raise DataError(f"{root}: {name_some(problems, limit=10)}")
    return records


def _record(file: Path, root: Path, skipped: Counter[str]) -> Record:
    content = read_json(file)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError("not labelme: `shapes` must be a list of objects")
    image = _image(file, root, content.get("imagePath"))
    if wrong := size_problem(image, content.get("imageHeight"), content.get("imageWidth")):
        raise ValueError(wrong)
    rings = [(_rings(shape, skipped), str(shape.get("label", ""))) for shape in shapes]
    return Record(
        id=file.relative_to(root).with_suffix("").as_posix(),
        image_path=image,
        shapes=tuple(Shape(rings=some, label=label) for some, label in rings if some),
    )


def _image(file: Path, root: Path, name: object) -> Path:
    """Find the image: where the file says, beside it by that name, or by the file's own."""
    candidates: list[Path | None] = []
    if isinstance(name, str) and name:
        # labelme on Windows writes backslashes.
        posix = PureWindowsPath(name).as_posix() if "\\" in name else name
        candidates += [
            _inside_root(file.parent, posix, root),
            inside(file.parent, Path(posix).name),
        ]
    candidates += [file.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES)]
    for path in candidates:
        if path is not None and path.is_file():
            return path
    raise ValueError(f"its image {name or file.stem} is not there")


def _inside_root(folder: Path, name: str, root: Path) -> Path | None:
    """Give the path that a name in `folder` stands for; None where it leads out of `root`."""
    relative = folder.relative_to(root) / name
    return inside(root, str(relative))


def _rings(shape: Mapping[str, Any], skipped: Counter[str]) -> tuple[Ring, ...]:
    points = shape.get("points")
    if shape.get("shape_type") == "mask" and isinstance(shape.get("mask"), str):
        try:
            (left, top), *_ = ring_of(points)
            return rings_of_mask(mask_of_png(shape["mask"]), left=left, top=top)
        except ValueError as error:
            raise ValueError(f"a mask {error}") from None
    ring = _ring(shape, skipped)
    return (ring,) if ring else ()


def _ring(shape: Mapping[str, Any], skipped: Counter[str]) -> Ring:
    kind = shape.get("shape_type") or "polygon"
    if kind in _NO_AREA:
        skipped[str(kind)] += 1
        return ()
    try:
        points = ring_of(shape.get("points"))
    except ValueError as error:
        raise ValueError(f"a {kind} {error}") from None
    if kind == "polygon" and len(points) >= 3:
        return points
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        turns = [2 * math.pi * corner / _NUM_CORNERS for corner in range(_NUM_CORNERS)]
        return tuple((x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns)
    raise ValueError(
        f"a {kind} with {len(points)} points can't be filled; polygon, rectangle and circle can"
    )
