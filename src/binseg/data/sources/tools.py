"""Exports of annotation tools: labelme, CVAT, Label Studio, VIA, Supervisely, V7 and QuPath.

Each function turns a file of its tool into images with outlines in pixels; a `ValueError` says what
is wrong in it. `annotations.read_outlines` does the rest, but for labelme.
"""

import base64
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol, TypeVar
from xml.etree import ElementTree as ET

import numpy as np
from jaxtyping import UInt8

from binseg.config.recipe import DataConfig
from binseg.data.sources.annotations import (
    Annotated,
    choose_labels,
    foreground_of,
    mapping,
    mask_of_png,
    missing_note,
    place_problem,
    refuse,
    rings_of_mask,
    shape_of,
    taken_for_empty,
)
from binseg.data.sources.layouts import split_of
from binseg.data.sources.listing import (
    Findings,
    holds,
    ignored_note,
    inside,
    list_folder,
    read_json,
    read_value,
    ring_of,
    size_problem,
    subfolders,
)
from binseg.errors import DataError
from binseg.imageio import IMAGE_SUFFIXES
from binseg.storage import read_bytes
from binseg.types import Record, Ring, Shape

NUM_CORNERS = 128  # Corners of a polygon for an ellipse: off by less than 0.1 % of its radius
MAX_XML = 1 << 30
NO_AREA = {"point", "line", "linestrip", "points"}

T = TypeVar("T")


class _Fields(Protocol):
    def get(self, name: str, /) -> object: ...


def _numbers(value: object, *, num: int | None = None) -> list[float]:
    """Give finite numbers; a `ValueError` says that they aren't."""
    try:
        found = [float(one) for one in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        found = [math.nan]
    if not np.isfinite(found).all() or (num is not None and len(found) != num):
        raise ValueError("holds something that is no number")
    return found


def _fields(one: _Fields, names: str) -> list[float]:
    return _numbers([one.get(name) for name in names.split()])


def _corners(pairs: Iterable[object]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in (_numbers(pair, num=2) for pair in pairs)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [mapping(one) for one in _list(value)]


def _shapes(read: Callable[[T], Shape | None], items: Iterable[T]) -> tuple[Shape, ...]:
    """Read each item; points, lines and tags, for which there is none, have no area."""
    return tuple(filter(None, map(read, items)))


def _box(left: float, top: float, width: float, height: float, *, label: str) -> Shape:
    right, bottom = left + width, top + height
    ring = ((left, top), (right, top), (right, bottom), (left, bottom))
    return Shape(rings=(ring,), label=label)


def _ellipse(x: float, y: float, rx: float, ry: float, *, label: str) -> Shape:
    turns = np.linspace(0, 2 * np.pi, NUM_CORNERS, endpoint=False)
    corners = zip((x + rx * np.cos(turns)).tolist(), (y + ry * np.sin(turns)).tolist(), strict=True)
    return Shape(rings=(tuple(corners),), label=label)


def cvat(file: Path) -> Iterator[Annotated]:
    """Read "CVAT for images 1.1": polygons, boxes, ellipses and masks; its subsets are splits."""
    data = read_bytes(file)
    if len(data) > MAX_XML or b"<!ENTITY" in data:
        raise ValueError("is too large, or holds entities, which no export of CVAT does")
    try:
        images = ET.fromstring(data).iter("image")
    except ET.ParseError as error:
        raise ValueError(f"is no XML: {error}") from None
    for image in images:
        yield Annotated(
            name=image.get("name", ""),
            shapes=_shapes(_cvat_shape, image),
            size=(int(image.get("height", 0)) or None, int(image.get("width", 0)) or None),
            split=split_of(image.get("subset", "")),
        )


def _cvat_shape(one: ET.Element) -> Shape | None:
    label = one.get("label", "")
    if one.tag == "polygon":
        points = one.get("points", "").split(";")
        return shape_of(_corners(pair.split(",") for pair in points), label)
    if one.tag == "box":
        left, top, right, bottom = _fields(one, "xtl ytl xbr ybr")
        return _box(left, top, right - left, bottom - top, label=label)
    if one.tag == "ellipse":
        return _ellipse(*_fields(one, "cx cy rx ry"), label=label)
    if one.tag == "mask":
        left, top, width, height = _fields(one, "left top width height")
        runs = [int(run) for run in _numbers(one.get("rle", "").split(","))]
        shape = (int(height), int(width))
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        if flat.size != shape[0] * shape[1]:
            raise ValueError("has run lengths that don't add up to its size")
        return Shape(rings=rings_of_mask(flat.reshape(shape), left=left, top=top), label=label)
    return None


def label_studio(file: Path) -> Iterator[Annotated]:
    """Read Label Studio's JSON: polygons, rectangles, ellipses and brushes, given in percent."""
    tasks = read_value(file)
    for task in _objects(tasks if isinstance(tasks, list) else [tasks]):
        done = [one for one in _objects(task.get("annotations")) if not one.get("was_cancelled")]
        if not done:
            continue  # nobody has labelled it yet
        results = _objects(done[-1].get("result"))
        sizes = [(one.get("original_height"), one.get("original_width")) for one in results]
        data = mapping(task.get("data"))
        names = [data[key] for key in ("image", "img", "url") if key in data]
        yield Annotated(
            name=str(task.get("file_upload") or next(iter(names), "")),
            shapes=_shapes(_label_studio_shape, results),
            size=next((one for one in sizes if all(one)), (None, None)),
        )


def _label_studio_shape(result: Mapping[str, Any]) -> Shape | None:
    kind, value = str(result.get("type", "")), mapping(result.get("value"))
    label = str((_list(value.get(kind)) or [""])[0])
    height, width = result.get("original_height"), result.get("original_width")
    if not kind.startswith(("polygon", "rectangle", "ellipse", "brush")):
        return None
    if not isinstance(height, int) or not isinstance(width, int):
        raise ValueError(f"a {kind} without the image's size")  # noqa: TRY004  # the file's fault
    if kind.startswith("polygon"):
        corners = _corners(_list(value.get("points")))
        return shape_of([(x * (width / 100), y * (height / 100)) for x, y in corners], label)
    if kind.startswith("brush"):
        rle = [int(one) for one in _numbers(_list(value.get("rle")))]
        alpha_HW = runs_of_brush(rle).reshape(height, width, 4)[:, :, 3] > 0
        return Shape(rings=rings_of_mask(alpha_HW), label=label)
    if value.get("rotation"):
        raise ValueError(f"a turned {kind}; draw it as a polygon")
    is_box = kind.startswith("rect")
    a, b, c, d = _fields(value, "x y width height" if is_box else "x y radiusX radiusY")
    make = _box if is_box else _ellipse
    return make(a * width / 100, b * height / 100, c * width / 100, d * height / 100, label=label)


def runs_of_brush(rle: Sequence[int]) -> UInt8[np.ndarray, "N"]:
    """Unpack Label Studio's brush (runs of RGBA, as @thi.ng/rle-pack); ValueError if cut off."""
    bits = "".join(f"{byte:08b}" for byte in bytes(rle))
    place = 0

    def take(num: int) -> int:
        nonlocal place
        place += num
        if place > len(bits):
            raise ValueError("has a brush that ends too early")
        return int(bits[place - num : place], 2)

    num, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < num:
        is_run = take(1)
        count = take(lengths[take(2)]) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    return np.array(values[:num], np.uint8)


def via(file: Path) -> Iterator[Annotated]:
    """Read VIA's JSON, a project or its annotations: polygons, rectangles, circles, ellipses."""
    content = mapping(read_value(file))
    for entry in map(mapping, mapping(content.get("_via_img_metadata", content)).values()):
        regions = entry.get("regions")
        each = list(regions.values()) if isinstance(regions, Mapping) else regions
        if "filename" in entry:
            shapes = _shapes(_via_shape, _objects(each))
            yield Annotated(name=str(entry["filename"]), shapes=shapes)


def _via_shape(region: Mapping[str, object]) -> Shape | None:
    shape = mapping(region.get("shape_attributes"))
    words = [one for one in mapping(region.get("region_attributes")).values() if one]
    label = str(words[0]) if words else ""
    match shape.get("name"):
        case "polygon":
            xs, ys = _list(shape.get("all_points_x")), _list(shape.get("all_points_y"))
            corners = _corners(zip(xs, ys, strict=True))
            return shape_of(corners[:-1] if corners[:1] == corners[-1:] else corners, label)
        case "rect":
            return _box(*_fields(shape, "x y width height"), label=label)
        case "circle":
            return _ellipse(*_fields(shape, "cx cy r r"), label=label)
        case "ellipse":
            return _ellipse(*_fields(shape, "cx cy rx ry"), label=label)
        case _:
            return None


def find_supervisely(path: Path) -> list[Path]:
    """Find the JSON files of a Supervisely project, or of a dataset of one."""
    files = []
    for home in (path, *subfolders(path)) if path.is_dir() else ():
        if (home / "ann").is_dir() and (home / "img").is_dir():
            there = list_folder(home / "ann").others
            if any(holds(file, '"objects"') for file in there[:1]):
                files += [one for one in there if one.suffix == ".json"]
    return files


def supervisely(file: Path) -> Iterator[Annotated]:
    """Read Supervisely's JSON: polygons, rectangles and bitmaps; its folders may be splits."""
    content = mapping(read_value(file))
    size = mapping(content.get("size"))
    home = file.parent.parent
    image = home / "img" / file.stem
    if not image.is_file():
        raise ValueError(f"its image img/{file.stem} is not there")
    yield Annotated(
        name=file.stem,
        path=image,
        size=(size.get("height"), size.get("width")),
        split=split_of(home.name),
        shapes=_shapes(_supervisely_shape, _objects(content.get("objects"))),
    )


def _supervisely_shape(one: Mapping[str, Any]) -> Shape | None:
    label, points = str(one.get("classTitle", "")), mapping(one.get("points"))
    outside = _corners(_list(points.get("exterior")))
    match one.get("geometryType"):
        case "polygon":
            holes = [tuple(_corners(_list(ring))) for ring in _list(points.get("interior"))]
            return shape_of(outside, label, holes=holes)
        case "rectangle" if len(outside) == 2:
            (left, top), (right, bottom) = outside
            return _box(left, top, right - left + 1, bottom - top + 1, label=label)
        case "bitmap":
            bitmap = mapping(one.get("bitmap"))
            left, top = _numbers(bitmap.get("origin"), num=2)
            try:
                png = zlib.decompress(base64.b64decode(str(bitmap.get("data", ""))))
            except (ValueError, zlib.error) as error:
                raise ValueError(f"has an unreadable bitmap ({error})") from None
            return Shape(rings=rings_of_mask(mask_of_png(png), left=left, top=top), label=label)
        case _:
            return None


def v7(file: Path) -> Iterator[Annotated]:
    """Read V7's Darwin JSON, versions 1 and 2: polygons, their holes, and boxes."""
    content = mapping(read_value(file))
    item = mapping(content.get("item") or content.get("image"))
    slot = mapping((_list(item.get("slots")) or [item])[0])
    names = [item.get(key) for key in ("name", "filename", "original_filename")]
    yield Annotated(
        name=str(next(filter(None, names), file.stem)),
        shapes=_shapes(_v7_shape, _objects(content.get("annotations"))),
        size=(slot.get("height"), slot.get("width")),
    )


def _v7_shape(one: Mapping[str, Any]) -> Shape | None:
    polygon, label = mapping(one.get("polygon")), str(one.get("name", ""))
    paths = _list(polygon.get("paths")) or [
        path for path in (polygon.get("path"), *_list(polygon.get("additional_paths"))) if path
    ]
    rings = [tuple(_corners((p.get("x"), p.get("y")) for p in _objects(path))) for path in paths]
    if rings:
        return shape_of(rings[0], label, holes=rings[1:])
    box = mapping(one.get("bounding_box"))
    return _box(*_fields(box, "x y w h"), label=label) if box else None


def qupath(file: Path) -> Iterator[Annotated]:
    """Read QuPath's GeoJSON: polygons in pixels, of the image that has the file's name."""
    content = read_value(file)
    shapes = []
    for feature in _objects(
        content if isinstance(content, list) else mapping(content).get("features")
    ):
        geometry, properties = mapping(feature.get("geometry")), mapping(feature.get("properties"))
        label = str(mapping(properties.get("classification")).get("name", ""))
        coordinates = _list(geometry.get("coordinates"))
        kinds = {"Polygon": [coordinates], "MultiPolygon": coordinates}
        for polygon in kinds.get(str(geometry.get("type")), []):
            # Corners of a traced area lie on the edges between pixels, so it isn't closed.
            rings = tuple(tuple(_corners(p[:2] for p in ring)) for ring in polygon)
            shapes.append(Shape(rings=rings, label=label))
    yield Annotated(name=file.stem, shapes=tuple(shapes))


def find_labelme(path: Path) -> list[Path]:
    """Find the JSON files in a folder."""
    files = list_folder(path).others if path.is_dir() else ()
    return [file for file in files if file.suffix.lower() == ".json"]


def read_labelme(files: Sequence[Path], path: Path, config: DataConfig) -> Findings:
    """Read a folder of labelme files; every label is foreground unless `data.labels` names some.

    Points and lines have no area and are left out; `__ignore__` doesn't count.
    """
    if not path.is_dir():
        raise DataError(f"{path}: give the folder of labelme's .json files")
    if config.foreground is not None:
        raise DataError(
            "data.foreground is for values of mask files or COCO categories, not labelme"
        )
    skipped: Counter[str] = Counter()
    found: dict[Path, Annotated] = {}
    problems: list[str] = []
    for file in files:
        try:
            found[file] = _labelme(file, path, skipped)
        except ValueError as error:
            problems.append(f"{file.relative_to(path).as_posix()}: {error}")
    used = [one.path for one in found.values() if one.path is not None]
    problems += filter(None, map(place_problem, used, (one.shapes for one in found.values())))
    refuse(path, problems)
    labels, note = choose_labels((s.label for o in found.values() for s in o.shapes), config, path)
    records = [
        Record(id=one.name, image_path=image, shapes=foreground_of(one.shapes, labels))
        for one, image in zip(found.values(), used, strict=True)
    ]
    listing, notes = list_folder(path), [note]
    if skipped:
        told = ", ".join(f"{num} {kind}" for kind, num in sorted(skipped.items()))
        notes.append(f"left out, because they have no area: {told}")
    alone = [one for one in listing.images if one not in used]
    notes += missing_note(alone, len(records), config, path, noun=".json")
    records += taken_for_empty(alone, config, path)
    others = [file for file in listing.others if file not in files]
    return Findings(
        records=tuple(sorted(records, key=lambda record: record.id)),
        notes=(*notes, *ignored_note(others, path)),
    )


def _labelme(file: Path, root: Path, skipped: Counter[str]) -> Annotated:
    content = read_json(file)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError("not labelme: `shapes` must be a list of objects")
    image = _labelme_image(file, root, content.get("imagePath"))
    if wrong := size_problem(image, content.get("imageHeight"), content.get("imageWidth")):
        raise ValueError(wrong)
    name = file.relative_to(root).with_suffix("").as_posix()
    return Annotated(
        name=name, path=image, shapes=_shapes(lambda one: _labelme_shape(one, skipped), shapes)
    )


def _labelme_image(file: Path, root: Path, name: object) -> Path:
    """Find the image: where the file says, beside it by that name, or by the file's own."""
    candidates: list[Path | None] = []
    if isinstance(name, str) and name:
        # labelme on Windows writes backslashes.
        posix = PureWindowsPath(name).as_posix() if "\\" in name else name
        candidates = [
            inside(root, str(file.parent.relative_to(root) / posix)),
            inside(file.parent, Path(posix).name),
        ]
    for path in (*candidates, *map(file.with_suffix, sorted(IMAGE_SUFFIXES))):
        if path is not None and path.is_file():
            return path
    raise ValueError(f"its image {name or file.stem} is not there")


def _labelme_shape(shape: Mapping[str, Any], skipped: Counter[str]) -> Shape | None:
    kind, label = str(shape.get("shape_type") or "polygon"), str(shape.get("label", ""))
    if kind in NO_AREA:
        skipped[kind] += 1
        return None
    try:
        points = ring_of(shape.get("points"))
        if kind == "mask" and isinstance(shape.get("mask"), str):
            (left, top), *_ = points
            rings = rings_of_mask(mask_of_png(shape["mask"]), left=left, top=top)
            return Shape(rings=rings, label=label) if rings else None
    except ValueError as error:
        raise ValueError(f"a {kind} {error}") from None
    ring: Ring = ()
    if kind == "polygon" and len(points) >= 3:
        ring = points
    if kind in {"rectangle", "circle"} and len(points) == 2:
        (x0, y0), (x1, y1) = points
        if kind == "circle":
            radius = math.dist(*points)
            return _ellipse(x0, y0, radius, radius, label=label)
        ring = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    if not ring:
        raise ValueError(
            f"a {kind} with {len(points)} points can't be filled; polygon, rectangle and circle can"
        )
    return Shape(rings=(ring,), label=label)
