"""Exports of annotation tools: CVAT, Label Studio, VIA, Supervisely, V7 and QuPath.

Each reader turns what its tool wrote into outlines in pixels; `findings_of` does the rest.
"""

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from jaxtyping import UInt8

from binseg.config.recipe import DataConfig
from binseg.data.sources.annotations import (
    Annotated,
    findings_of,
    mapping,
    mask_of_png,
    rings_of_mask,
    shape_of,
)
from binseg.data.sources.layouts import split_of
from binseg.data.sources.listing import Findings, has_keys, list_folder, read_value, subfolders
from binseg.types import Shape

NUM_CORNERS = 128
"""Corners of a polygon that stands for an ellipse: off by less than 0.1 % of its radius."""
MAX_XML = 1 << 30


def _files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Find the files of these endings: the one named, those in a folder, or else in its folders."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in suffixes else []
    for deep in (False, True):
        others = list_folder(path, deep=deep).others
        if found := [one for one in others if one.suffix.lower() in suffixes]:
            return found
    return []


def _read(
    path: Path,
    config: DataConfig,
    files: Iterable[Path],
    parse: Callable[[Path], Iterable[Annotated]],
) -> Findings:
    """Read all files, and tell what is wrong in them together."""
    items: list[Annotated] = []
    problems: list[str] = []
    for file in files:
        try:
            items += parse(file)
        except ValueError as error:
            problems.append(f"{file.name}: {error}")
    root = path if path.is_dir() else path.parent
    return findings_of(items, root, config, problems=problems)


def _numbers(value: object, *, num: int | None = None) -> list[float]:
    """Give finite numbers; a `ValueError` says that they aren't."""
    try:
        found = [float(one) for one in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError("holds something that is no number") from None
    if not np.isfinite(found).all() or (num is not None and len(found) != num):
        raise ValueError("holds something that is no number")
    return found


def _points(xs: object, ys: object) -> list[tuple[float, float]]:
    return list(zip(_numbers(xs), _numbers(ys), strict=True))


def _box(left: float, top: float, width: float, height: float, label: str) -> Shape:
    right, bottom = left + width, top + height
    ring = ((left, top), (right, top), (right, bottom), (left, bottom))
    return Shape(rings=(ring,), label=label)


def _ellipse(x: float, y: float, rx: float, ry: float, label: str) -> Shape:
    turns = np.linspace(0, 2 * np.pi, NUM_CORNERS, endpoint=False)
    corners = zip((x + rx * np.cos(turns)).tolist(), (y + ry * np.sin(turns)).tolist(), strict=True)
    return Shape(rings=(tuple(corners),), label=label)


def is_cvat(path: Path) -> bool:
    """Tell whether a path is, or holds, an `annotations.xml` of "CVAT for images"."""
    for file in _files(path, [".xml"])[:1]:
        with file.open("rb") as handle:
            head = handle.read(1 << 16)
        return b"<annotations" in head and b"<image " in head
    return False


def read_cvat(path: Path, config: DataConfig) -> Findings:
    """Read "CVAT for images 1.1": polygons, boxes, ellipses and masks; its subsets are splits."""
    return _read(path, config, _files(path, [".xml"]), _cvat)


def _cvat(file: Path) -> Iterator[Annotated]:
    data = file.read_bytes()
    if len(data) > MAX_XML or b"<!ENTITY" in data:
        raise ValueError("is too large, or holds entities, which no export of CVAT does")
    try:
        images = ET.fromstring(data).iter("image")
    except ET.ParseError as error:
        raise ValueError(f"is no XML: {error}") from None
    for image in images:
        size = (int(image.get("height", 0)) or None, int(image.get("width", 0)) or None)
        shapes = [shape for one in image if (shape := _cvat_shape(one)) is not None]
        yield Annotated(
            name=image.get("name", ""),
            shapes=tuple(shapes),
            size=size,
            split=split_of(image.get("subset", "")),
        )


def _cvat_shape(one: ET.Element) -> Shape | None:
    label = one.get("label", "")

    def numbers(*names: str) -> list[float]:
        return _numbers([one.get(name, "") for name in names])

    if one.tag == "polygon":
        pairs = [_numbers(pair.split(","), num=2) for pair in one.get("points", "").split(";")]
        return shape_of([(x, y) for x, y in pairs], label)
    if one.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return _box(left, top, right - left, bottom - top, label)
    if one.tag == "ellipse":
        x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
        return _ellipse(x, y, rx, ry, label)
    if one.tag == "mask":
        left, top, width, height = numbers("left", "top", "width", "height")
        runs = [int(run) for run in _numbers(one.get("rle", "").split(","))]
        shape = (int(height), int(width))
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        if flat.size != shape[0] * shape[1]:
            raise ValueError("has run lengths that don't add up to its size")
        return Shape(rings=rings_of_mask(flat.reshape(shape), left=left, top=top), label=label)
    return None  # points, lines and tags have no area


def is_label_studio(path: Path) -> bool:
    """Tell whether a path is, or holds, Label Studio's JSON."""
    files = _files(path, [".json"])
    return bool(files) and has_keys(files[0], "result", "from_name", "to_name")


def read_label_studio(path: Path, config: DataConfig) -> Findings:
    """Read Label Studio's JSON: polygons, rectangles, ellipses and brushes, given in percent."""
    return _read(path, config, _files(path, [".json"]), _label_studio)


def _label_studio(file: Path) -> Iterator[Annotated]:
    tasks = read_value(file)
    for task in map(mapping, tasks if isinstance(tasks, list) else [tasks]):
        done = [
            one
            for one in map(mapping, _list(task.get("annotations")))
            if not one.get("was_cancelled")
        ]
        if not done:
            continue  # nobody has labelled it yet
        results = [mapping(one) for one in _list(done[-1].get("result"))]
        sizes = [(one.get("original_height"), one.get("original_width")) for one in results]
        data = mapping(task.get("data"))
        name = task.get("file_upload") or next(
            (data[key] for key in ("image", "img", "url") if key in data), ""
        )
        shapes = [shape for one in results if (shape := _label_studio_shape(one)) is not None]
        size = next((one for one in sizes if all(one)), (None, None))
        yield Annotated(name=str(name), shapes=tuple(shapes), size=size)


def _label_studio_shape(result: Mapping[str, Any]) -> Shape | None:
    kind, value = str(result.get("type", "")), mapping(result.get("value"))
    names = _list(value.get(kind)) or [""]
    label = str(names[0])
    height, width = result.get("original_height"), result.get("original_width")
    if not kind.startswith(("polygon", "rectangle", "ellipse", "brush")):
        return None
    if not isinstance(height, int) or not isinstance(width, int):
        raise ValueError(f"a {kind} without the image's size")  # noqa: TRY004  # the file's fault
    if kind.startswith("polygon"):
        xs, ys = zip(*(_numbers(one, num=2) for one in _list(value.get("points"))), strict=True)
        corners = np.array([xs, ys]) * np.array([[width / 100], [height / 100]])
        return shape_of(_points(*corners), label)
    if kind.startswith("brush"):
        rle = [int(one) for one in _numbers(_list(value.get("rle")))]
        alpha_HW = runs_of_brush(rle).reshape(height, width, 4)[:, :, 3] > 0
        return Shape(rings=rings_of_mask(alpha_HW), label=label)
    if value.get("rotation"):
        raise ValueError(f"a turned {kind}; draw it as a polygon")
    sides = "width height" if kind.startswith("rect") else "radiusX radiusY"
    a, b, c, d = _numbers([value.get(name) for name in f"x y {sides}".split()])
    make = _box if kind.startswith("rect") else _ellipse
    return make(a * width / 100, b * height / 100, c * width / 100, d * height / 100, label)


def runs_of_brush(rle: Sequence[int]) -> UInt8[np.ndarray, "N"]:
    """Unpack Label Studio's brush: runs of bytes (RGBA), in words of bits as @thi.ng/rle-pack.

    Raises:
        ValueError: it doesn't end where it says.
    """
    bits = np.unpackbits(np.array(rle, np.uint8)) if rle else np.zeros(0, np.uint8)
    place = 0

    def take(num: int) -> int:
        nonlocal place
        if place + num > len(bits):
            raise ValueError("has a brush that ends too early")
        value = int("".join(map(str, bits[place : place + num].tolist())), 2)
        place += num
        return value

    num, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    parts: list[np.ndarray] = []
    done = 0
    while done < num:
        is_run = take(1)
        count = take(lengths[take(2)]) + 1
        values = [take(word)] * count if is_run else [take(word) for _ in range(count)]
        parts.append(np.array(values, np.uint8))
        done += count
    return np.concatenate(parts)[:num] if parts else np.zeros(0, np.uint8)


def is_via(path: Path) -> bool:
    """Tell whether a path is, or holds, JSON of the VGG Image Annotator."""
    files = _files(path, [".json"])
    return bool(files) and has_keys(files[0], "shape_attributes", "filename")


def read_via(path: Path, config: DataConfig) -> Findings:
    """Read VIA's JSON, a project or its annotations: polygons, rectangles, circles, ellipses."""
    return _read(path, config, _files(path, [".json"]), _via)


def _via(file: Path) -> Iterator[Annotated]:
    content = mapping(read_value(file))
    for entry in map(mapping, mapping(content.get("_via_img_metadata", content)).values()):
        regions = entry.get("regions")
        each = regions.values() if isinstance(regions, Mapping) else _list(regions)
        shapes = [shape for one in map(mapping, each) if (shape := _via_shape(one)) is not None]
        if "filename" in entry:
            yield Annotated(name=str(entry["filename"]), shapes=tuple(shapes))


def _via_shape(region: Mapping[str, object]) -> Shape | None:
    shape = mapping(region.get("shape_attributes"))
    words = [one for one in mapping(region.get("region_attributes")).values() if one]
    label = str(words[0]) if words else ""

    def numbers(*names: str) -> list[float]:
        return _numbers([shape.get(name) for name in names])

    match shape.get("name"):
        case "polygon":
            corners = _points(shape.get("all_points_x"), shape.get("all_points_y"))
            return shape_of(corners[:-1] if corners[:1] == corners[-1:] else corners, label)
        case "rect":
            left, top, width, height = numbers("x", "y", "width", "height")
            return _box(left, top, width, height, label)
        case "circle":
            x, y, radius = numbers("cx", "cy", "r")
            return _ellipse(x, y, radius, radius, label)
        case "ellipse":
            x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
            return _ellipse(x, y, rx, ry, label)
        case _:
            return None


def is_supervisely(path: Path) -> bool:
    """Tell whether a folder is a Supervisely project, or a dataset of one."""
    return path.is_dir() and bool(_supervisely_folders(path))


def _supervisely_folders(path: Path) -> list[Path]:
    return [
        one
        for one in (path, *subfolders(path))
        if (one / "ann").is_dir()
        and (one / "img").is_dir()
        and any(has_keys(file, "objects") for file in list_folder(one / "ann").others[:1])
    ]


def read_supervisely(path: Path, config: DataConfig) -> Findings:
    """Read a Supervisely project: polygons, rectangles and bitmaps; its folders may be splits."""
    files = [one for home in _supervisely_folders(path) for one in list_folder(home / "ann").others]
    return _read(path, config, [one for one in files if one.suffix == ".json"], _supervisely)


def _supervisely(file: Path) -> Iterator[Annotated]:
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
        shapes=tuple(
            shape
            for one in map(mapping, _list(content.get("objects")))
            if (shape := _supervisely_shape(one)) is not None
        ),
    )


def _supervisely_shape(one: Mapping[str, Any]) -> Shape | None:
    label, points = str(one.get("classTitle", "")), mapping(one.get("points"))
    outside = [tuple(_numbers(each, num=2)) for each in _list(points.get("exterior"))]
    match one.get("geometryType"):
        case "polygon":
            holes = [
                tuple((x, y) for x, y in (_numbers(each, num=2) for each in ring))
                for ring in map(_list, _list(points.get("interior")))
            ]
            return shape_of([(x, y) for x, y in outside], label, holes=holes)
        case "rectangle" if len(outside) == 2:
            (left, top), (right, bottom) = outside
            return _box(left, top, right - left + 1, bottom - top + 1, label)
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


def is_v7(path: Path) -> bool:
    """Tell whether a path is, or holds, V7's (Darwin) JSON."""
    files = _files(path, [".json"])
    return bool(files) and (
        has_keys(files[0], "annotations", "item", "slots")
        or has_keys(files[0], "annotations", "image", "dataset")
    )


def read_v7(path: Path, config: DataConfig) -> Findings:
    """Read V7's Darwin JSON, versions 1 and 2: polygons, their holes, and boxes."""
    return _read(path, config, _files(path, [".json"]), _v7)


def _v7(file: Path) -> Iterator[Annotated]:
    content = mapping(read_value(file))
    item = mapping(content.get("item") or content.get("image"))
    slot = mapping((_list(item.get("slots")) or [item])[0])
    shapes = []
    for one in map(mapping, _list(content.get("annotations"))):
        polygon, label = mapping(one.get("polygon")), str(one.get("name", ""))
        paths = _list(polygon.get("paths")) or [
            path for path in (polygon.get("path"), *_list(polygon.get("additional_paths"))) if path
        ]
        rings = [
            tuple(_points([mapping(p).get("x") for p in path], [mapping(p).get("y") for p in path]))
            for path in paths
        ]
        if rings:
            shapes.append(shape_of(rings[0], label, holes=rings[1:]))
        elif box := mapping(one.get("bounding_box")):
            sides = _numbers([box.get(name) for name in ("x", "y", "w", "h")])
            shapes.append(_box(sides[0], sides[1], sides[2], sides[3], label))
    name = item.get("name") or item.get("filename") or item.get("original_filename") or file.stem
    yield Annotated(
        name=str(name), shapes=tuple(shapes), size=(slot.get("height"), slot.get("width"))
    )


def is_qupath(path: Path) -> bool:
    """Tell whether a path is, or holds, GeoJSON as QuPath exports it, a file for each image."""
    files = _files(path, [".geojson", ".json"])
    return bool(files) and has_keys(files[0], "geometry", "coordinates")


def read_qupath(path: Path, config: DataConfig) -> Findings:
    """Read QuPath's GeoJSON: polygons in pixels, of the image that has the file's name."""
    return _read(path, config, _files(path, [".geojson", ".json"]), _qupath)


def _qupath(file: Path) -> Iterator[Annotated]:
    content = read_value(file)
    features = content if isinstance(content, list) else _list(mapping(content).get("features"))
    shapes = []
    for feature in map(mapping, features):
        geometry, properties = mapping(feature.get("geometry")), mapping(feature.get("properties"))
        label = str(mapping(properties.get("classification")).get("name", ""))
        coordinates = _list(geometry.get("coordinates"))
        polygons = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(
            str(geometry.get("type")), []
        )
        for polygon in polygons:
            # Corners of a traced area lie on the edges between pixels, so it isn't closed.
            rings = tuple(
                tuple((x, y) for x, y in (_numbers(p[:2], num=2) for p in ring)) for ring in polygon
            )
            shapes.append(Shape(rings=rings, label=label))
    yield Annotated(name=file.stem, shapes=tuple(shapes))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
