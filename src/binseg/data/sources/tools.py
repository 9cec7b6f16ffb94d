"""Exports of annotation tools: labelme, CVAT, Label Studio, VIA, Supervisely, V7 and QuPath.

Each function turns a file of its tool into images with outlines in pixels; a `ValueError` says what
is wrong in it. `annotations.read_outlines` does the rest.
"""

import base64
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from xml.etree import ElementTree as ET

import numpy as np
from jaxtyping import UInt8

from binseg.config.recipe import DataConfig
from binseg.data.sources import listing
from binseg.data.sources.annotations import (
    Annotated,
    is_background,
    mapping,
    mask_of_png,
    parts_of,
    read_outlines,
    rings_of_mask,
    shape_of,
)
from binseg.data.sources.layouts import split_of
from binseg.errors import DataError
from binseg.imageio import IMAGE_SUFFIXES
from binseg.storage import read_bytes
from binseg.types import Ring, Shape

NUM_CORNERS = 128  # Corners of a polygon for an ellipse: off by less than 0.1 % of its radius
MAX_XML = 1 << 30
NO_AREA = {"point", "line", "linestrip", "points"}

T = TypeVar("T")


class _Fields(Protocol):
    def get(self, name: str, /) -> object: ...


def _numbers(value: object, *, num: int | None = None) -> list[float]:
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


def _annotated(
    read: Callable[[T], Shape | str | list[Shape]],
    items: Iterable[T],
    labels_of: Callable[[T], Iterable[object]] = lambda _: (),
    /,
    **facts: Any,
) -> Annotated:
    """Read each item of an image: its shapes, once for each label, or the kind of what is none."""
    shapes: list[Shape] = []
    left_out: list[str] = []
    for item in items:
        got, names = read(item), [str(one) for one in labels_of(item) if one]
        names = [one for one in names if is_background(one)] or names  # none by one of them is none
        for one in got if isinstance(got, list) else [got]:
            if isinstance(one, Shape):
                shapes += [replace(one, label=name) for name in names] or [one]
            else:
                left_out.append(one)
    return Annotated(shapes=tuple(shapes), left_out=tuple(left_out), **facts)


def _box(left: float, top: float, width: float, height: float, *, label: str) -> Shape:
    right, bottom = left + width, top + height
    ring = ((left, top), (right, top), (right, bottom), (left, bottom))
    return Shape(rings=(ring,), label=label)


def _ellipse(x: float, y: float, rx: float, ry: float, *, label: str) -> Shape:
    turns = np.linspace(0, 2 * np.pi, NUM_CORNERS, endpoint=False)
    corners = zip((x + rx * np.cos(turns)).tolist(), (y + ry * np.sin(turns)).tolist(), strict=True)
    return Shape(rings=(tuple(corners),), label=label)


def _turned(shape: Shape, degrees: object, middle: tuple[float, float]) -> Shape:
    (angle,) = np.radians(_numbers([degrees or 0]))
    if not angle:
        return shape
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    turn = np.array([[cosine, sine], [-sine, cosine]])
    rings = [(np.array(ring) - middle) @ turn + middle for ring in shape.rings]
    return replace(shape, rings=tuple(tuple(map(tuple, ring.tolist())) for ring in rings))


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
        size = tuple(int(image.get(side, 0)) or None for side in ("height", "width"))
        name, split = image.get("name", ""), split_of(image.get("subset", ""))
        yield _annotated(_cvat_shape, image, name=name, size=size, split=split)


def _cvat_shape(one: ET.Element) -> Shape | str:
    label = one.get("label", "")
    if one.tag == "polygon":
        points = one.get("points", "").split(";")
        return shape_of(_corners(pair.split(",") for pair in points), label)
    if one.tag == "box":
        left, top, right, bottom = _fields(one, "xtl ytl xbr ybr")
        box = _box(left, top, right - left, bottom - top, label=label)
        return _turned(box, one.get("rotation"), ((left + right) / 2, (top + bottom) / 2))
    if one.tag == "ellipse":
        x, y, rx, ry = _fields(one, "cx cy rx ry")
        return _turned(_ellipse(x, y, rx, ry, label=label), one.get("rotation"), (x, y))
    if one.tag == "mask":
        left, top, width, height = _fields(one, "left top width height")
        runs = [int(run) for run in _numbers(one.get("rle", "").split(","))]
        shape = (int(height), int(width))
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        if flat.size != shape[0] * shape[1]:
            raise ValueError("has run lengths that don't add up to its size")
        return Shape(rings=rings_of_mask(flat.reshape(shape), left=left, top=top), label=label)
    return one.tag


def label_studio(file: Path) -> Iterator[Annotated]:
    """Read Label Studio's JSON: polygons, rectangles, ellipses and brushes, given in percent."""
    tasks = listing.read_value(file)
    for task in _objects(tasks if isinstance(tasks, list) else [tasks]):
        done = [one for one in _objects(task.get("annotations")) if not one.get("was_cancelled")]
        if not done:
            continue  # nobody has labelled it yet
        results = _objects(done[-1].get("result"))
        sizes = [(one.get("original_height"), one.get("original_width")) for one in results]
        data = mapping(task.get("data"))
        names = [data[key] for key in ("image", "img", "url") if key in data]
        # Labels that are results of their own have the id of their area.
        named = [one for one in results if one.get("type") == "labels"]
        apart = {one.get("id"): _studio_labels({}, one) for one in named}
        name = str(task.get("file_upload") or next(iter(names), ""))
        size = next((one for one in sizes if all(one)), (None, None))
        one = _annotated(
            _label_studio_shape, results, partial(_studio_labels, apart), name=name, size=size
        )
        earlier = ("earlier annotation of the same image",) * (len(done) - 1)
        yield replace(one, left_out=(*one.left_out, *earlier))


def _studio_labels(apart: Mapping[object, list[Any]], result: Mapping[str, Any]) -> list[Any]:
    own = _list(mapping(result.get("value")).get(str(result.get("type"))))
    return own or apart.get(result.get("id"), [])


def _label_studio_shape(result: Mapping[str, Any]) -> Shape | str:
    kind, value, label = str(result.get("type", "")), mapping(result.get("value")), ""
    height, width = result.get("original_height"), result.get("original_width")
    if not kind.startswith(("polygon", "rectangle", "ellipse", "brush")):
        return kind
    if not isinstance(height, int) or not isinstance(width, int):
        raise ValueError(f"a {kind} without the image's size")  # noqa: TRY004  # the file's fault
    if kind.startswith("polygon"):
        corners = _corners(_list(value.get("points")))
        return shape_of([(x * (width / 100), y * (height / 100)) for x, y in corners], label)
    if kind.startswith("brush"):
        rle = [int(one) for one in _numbers(_list(value.get("rle")))]
        alpha_HW = runs_of_brush(rle).reshape(height, width, 4)[:, :, 3] > 0
        return Shape(rings=rings_of_mask(alpha_HW), label=label)
    is_box = kind.startswith("rect")
    a, b, c, d = _fields(value, "x y width height" if is_box else "x y radiusX radiusY")
    x, y, wide, tall = a * width / 100, b * height / 100, c * width / 100, d * height / 100
    shape = (_box if is_box else _ellipse)(x, y, wide, tall, label=label)
    return _turned(shape, value.get("rotation"), (x, y))  # a box around its first corner


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
    content = mapping(listing.read_value(file))
    for entry in map(mapping, mapping(content.get("_via_img_metadata", content)).values()):
        regions = entry.get("regions")
        each = list(regions.values()) if isinstance(regions, Mapping) else regions
        if "filename" in entry:
            yield _annotated(_via_shape, _objects(each), _via_labels, name=str(entry["filename"]))


def _via_labels(region: Mapping[str, object]) -> list[object]:
    words: list[object] = []
    for one in mapping(region.get("region_attributes")).values():  # boxes to tick: {name: true}
        words += [key for key, on in one.items() if on] if isinstance(one, Mapping) else [one]
    return words


def _via_shape(region: Mapping[str, object]) -> Shape | str:
    shape, label = mapping(region.get("shape_attributes")), ""
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
            x, y, rx, ry = _fields(shape, "cx cy rx ry")
            angle = np.degrees(_numbers([shape.get("theta") or 0])[0])
            return _turned(_ellipse(x, y, rx, ry, label=label), angle, (x, y))
        case kind:
            return str(kind)


def find_supervisely(path: Path) -> list[Path]:
    """Find the JSON files of a Supervisely project, or of a dataset of one."""
    files = []
    for home in (path, *listing.subfolders(path)) if path.is_dir() else ():
        if (home / "ann").is_dir() and (home / "img").is_dir():
            there = listing.list_folder(home / "ann").others
            if any(listing.holds(file, '"objects"') for file in there[:1]):
                files += [one for one in there if one.suffix == ".json"]
    return files


def supervisely(file: Path) -> Iterator[Annotated]:
    """Read Supervisely's JSON: polygons, rectangles and bitmaps; its folders may be splits."""
    content = mapping(listing.read_value(file))
    size = mapping(content.get("size"))
    home = file.parent.parent
    image = home / "img" / file.stem
    if not image.is_file():
        raise ValueError(f"its image img/{file.stem} is not there")
    facts = {"path": image, "size": (size.get("height"), size.get("width"))}
    objects, split = _objects(content.get("objects")), split_of(home.name)
    yield _annotated(_supervisely_shape, objects, name=file.stem, split=split, **facts)


def _supervisely_shape(one: Mapping[str, Any]) -> Shape | str:
    label, points = str(one.get("classTitle", "")), mapping(one.get("points"))
    outside = _corners(_list(points.get("exterior")))
    match one.get("geometryType"):
        case "polygon":
            holes = [tuple(_corners(_list(ring))) for ring in _list(points.get("interior"))]
            return shape_of(outside, label, holes=holes)
        case "rectangle" if len(outside) == 2:
            (left, top), (right, bottom) = np.sort(outside, axis=0).tolist()  # in any order
            return _box(left, top, right - left + 1, bottom - top + 1, label=label)
        case "bitmap":
            bitmap = mapping(one.get("bitmap"))
            left, top = _numbers(bitmap.get("origin"), num=2)
            try:
                png = zlib.decompress(base64.b64decode(str(bitmap.get("data", ""))))
            except (ValueError, zlib.error) as error:
                raise ValueError(f"has an unreadable bitmap ({error})") from None
            return Shape(rings=rings_of_mask(mask_of_png(png), left=left, top=top), label=label)
        case kind:
            return str(kind)


def v7(file: Path) -> Iterator[Annotated]:
    """Read V7's Darwin JSON, versions 1 and 2: polygons, their holes, and boxes."""
    content = mapping(listing.read_value(file))
    item = mapping(content.get("item") or content.get("image"))
    slot = mapping((_list(item.get("slots")) or [item])[0])
    names = [item.get(key) for key in ("name", "filename", "original_filename")]
    name, size = str(next(filter(None, names), file.stem)), (slot.get("height"), slot.get("width"))
    yield _annotated(_v7_shape, _objects(content.get("annotations")), name=name, size=size)


def _v7_shape(one: Mapping[str, Any]) -> Shape | str | list[Shape]:
    polygon, label = mapping(one.get("polygon")), str(one.get("name", ""))
    paths = _list(polygon.get("paths")) or [
        path for path in (polygon.get("path"), *_list(polygon.get("additional_paths"))) if path
    ]
    rings = [tuple(_corners((p.get("x"), p.get("y")) for p in _objects(path))) for path in paths]
    if rings:
        parts = parts_of(rings, label)
        return [shape_of(part.rings[0], label, holes=part.rings[1:]) for part in parts]
    if ellipse := mapping(one.get("ellipse")):
        (x, y), (rx, ry) = (_fields(mapping(ellipse.get(n)), "x y") for n in ("center", "radius"))
        angle = np.degrees(_numbers([ellipse.get("angle") or 0])[0])
        return _turned(_ellipse(x, y, rx, ry, label=label), angle, (x, y))
    box = mapping(one.get("bounding_box"))
    kinds = [key for key, value in one.items() if isinstance(value, dict)]
    return _box(*_fields(box, "x y w h"), label=label) if box else ", ".join(kinds[:1]) or "tag"


def qupath(file: Path) -> Iterator[Annotated]:
    """Read QuPath's GeoJSON: polygons in pixels, of the image that has the file's name."""
    content = listing.read_value(file)
    shapes, left_out = [], []
    features = content if isinstance(content, list) else mapping(content).get("features", [content])
    for feature in _objects(features):
        geometry, properties = mapping(feature.get("geometry")), mapping(feature.get("properties"))
        given = mapping(properties.get("classification"))
        label = str(given.get("name") or ": ".join(map(str, _list(given.get("names")))))
        coordinates = _list(geometry.get("coordinates"))
        kind = str(geometry.get("type"))
        kinds = {"Polygon": [coordinates], "MultiPolygon": coordinates}
        left_out += [kind] * (kind not in kinds)
        for polygon in kinds.get(kind, []):
            # Corners of a traced area lie on the edges between pixels, so it isn't closed.
            rings = tuple(tuple(_corners(p[:2] for p in ring)) for ring in polygon)
            shapes.append(Shape(rings=rings, label=label))
    yield Annotated(name=file.stem, shapes=tuple(shapes), left_out=tuple(left_out))


def find_labelme(path: Path) -> list[Path]:
    """Find the JSON files in a folder."""
    files = listing.list_folder(path).others if path.is_dir() else ()
    return [file for file in files if file.suffix.lower() == ".json"]


def read_labelme(files: Sequence[Path], path: Path, config: DataConfig) -> listing.Findings:
    """Read a folder of labelme files: an image each, whose `__ignore__` doesn't count."""
    if not path.is_dir():
        raise DataError(f"{path}: give the folder of labelme's .json files")
    found = read_outlines(partial(_labelme, path), files, path, config, noun=".json")
    others = [file for file in listing.list_folder(path).others if file not in files]
    return replace(found, notes=(*found.notes, *listing.ignored_note(others, path)))


def _labelme(root: Path, file: Path) -> Iterator[Annotated]:
    content = listing.read_json(file)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError("not labelme: `shapes` must be a list of objects")
    path = _labelme_image(file, root, content.get("imagePath"))
    size = (content.get("imageHeight"), content.get("imageWidth"))
    yield _annotated(_labelme_shape, shapes, name=file.stem, path=path, size=size)


def _labelme_image(file: Path, root: Path, name: object) -> Path:
    """Find the image: where the file says, beside it by that name, or by the file's own."""
    candidates: list[Path | None] = []
    if isinstance(name, str) and name:
        candidates = [
            listing.inside(root, str(file.parent.relative_to(root) / listing.posix(name))),
            listing.inside(file.parent, Path(listing.posix(name)).name),
        ]
    for path in (*candidates, *map(file.with_suffix, sorted(IMAGE_SUFFIXES))):
        if path is not None and path.is_file():
            return path
    raise ValueError(f"its image {name or file.stem} is not there")


def _labelme_shape(shape: Mapping[str, Any]) -> Shape | str:
    kind, label = str(shape.get("shape_type") or "polygon"), str(shape.get("label", ""))
    if kind in NO_AREA:
        return kind
    try:
        points = listing.ring_of(shape.get("points"))
        if kind == "mask" and isinstance(shape.get("mask"), str):
            (left, top), *_ = points
            rings = rings_of_mask(mask_of_png(shape["mask"]), left=left, top=top)
            return Shape(rings=rings, label=label) if rings else "empty mask"
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
