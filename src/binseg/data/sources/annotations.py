"""Outlines that tools wrote become records: images found, labels chosen, sizes checked."""

import base64
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some, spread
from binseg.data.sources.listing import Findings, composed, inside, list_folder, posix
from binseg.errors import DataError, ImageError
from binseg.imageio import IMAGE_SUFFIXES, probe
from binseg.imageio.decoding import swaps_sides
from binseg.types import Mask, Record, Ring, Shape, Split

IGNORED, BACKGROUND = {"__ignore__", "ignore", "ignored", "ignore*"}, {"_background_", "background"}
"""Labels of tools for what doesn't count, and for what is no object."""
MAX_PIXELS = 1 << 30
MOST_SCALED = 1.5  # Outlines whose coordinates all stay below were scaled to 0..1
MOST_BEYOND = 1.25  # Share of an image's sides that outlines drawn by hand may reach to
MOST_CORNERED, NUM_LOOKED, LEAST_LOOKED = 0.6, 64, 5
"""Share of the sides in which all outlines lie if images were enlarged; images looked at for it."""
_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's, before an uploaded file's name


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """One image that an annotation file names (a path, address or name), and its outlines."""

    name: str
    shapes: tuple[Shape, ...]
    size: tuple[object, object] = (None, None)
    split: Split | None = None
    path: Path | None = None
    left_out: tuple[str, ...] = ()  # Kinds of what is no area


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """Places of images that a file in `folder` names, anywhere in `home` if the name is unique."""

    folder: Path
    home: Path

    def find(self, name: str) -> Path:
        """Give an image's path; a `ValueError` says why there is none."""
        folder, name = self.folder, posix(name)
        for place in (folder, folder / "images", folder.parent / "images", folder.parent):
            path = inside(place, name) if name else None
            if path is not None and path.is_file():
                return path
        is_within = name and inside(self.home, name) is not None
        found = self._paths_of[composed(Path(name).name)] if is_within else []
        if not found:
            raise ValueError("is not there")
        if len(found) > 1:
            told = " or ".join(path.relative_to(self.home).as_posix() for path in found[:2])
            raise ValueError(f"could be {told}: write its folder into the file_name")
        return found[0]

    def find_loosely(self, name: str) -> Path:
        """Find an image that is named by an address, an upload's name, or without its ending."""
        base = Path(unquote(name.rpartition("?d=")[2])).name
        for one in (name, base, _PREFIX.sub("", base)):
            for suffix in ("", *sorted(IMAGE_SUFFIXES)):
                try:
                    return self.find(one + suffix)
                except ValueError as error:
                    if "could be" in str(error):
                        raise
        raise ValueError("is not there")

    @cached_property
    def _paths_of(self) -> dict[str, list[Path]]:
        paths_of: dict[str, list[Path]] = defaultdict(list)
        for path in list_folder(self.home).images:
            paths_of[composed(path.name)].append(path)
        return paths_of


def read_outlines(
    parse: Callable[[Path], Iterable[Annotated]],
    files: Iterable[Path],
    path: Path,
    config: DataConfig,
    *,
    noun: str = "annotation",
) -> Findings:
    """Read all files of a tool, and tell what is wrong in them together; raises DataError."""
    items: list[Annotated] = []
    problems: list[str] = []
    root = path if path.is_dir() else path.parent
    for file in files:
        try:
            items += parse(file)
        except ValueError as error:
            problems.append(f"{file.relative_to(root).as_posix()}: {error}")
    return findings_of(items, root, config, problems=problems, noun=noun)


def findings_of(
    items: Sequence[Annotated],
    root: Path,
    config: DataConfig,
    *,
    problems: list[str],
    noun: str = "annotation",
) -> Findings:
    """Make records of a tool's items; images without an entry are left out, and said."""
    if config.foreground is not None:
        why = "data.foreground is for values of mask files or COCO categories"
        raise DataError(f"{root}: {why}; choose outlines by data.labels")
    labels, note = choose_labels((s.label for one in items for s in one.shapes), config, root)
    entry_of, as_stored = _by_image(items, FolderImages(folder=root, home=root), problems)
    refuse(root, problems)
    records = []
    for path, one in entry_of.items():
        found = Record(id=_id_of(path, root), image_path=path, split=one.split)
        shapes = foreground_of(one.shapes, labels)
        records.append(replace(found, shapes=shapes, mask_as_stored=path in as_stored))
    rest = [path for path in list_folder(root).images if path not in entry_of]
    alone = [Record(id=_id_of(path, root), image_path=path, shapes=()) for path in rest]
    empty, told = without_mask(alone, len(records), config, root, noun=noun)
    notes = [note, *told]
    if kinds := Counter(kind for one in items for kind in one.left_out):
        some = ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        notes.append(f"left out: {some} (areas are filled; of several annotations the last one)")
        if not any(one.shapes for one in items):
            raise DataError(f"{root}: no areas, but {some}; export polygons")
    records += empty
    # A split for some would refuse the rest, and a folder that is called train alone is none.
    splits = {record.split for record in records}
    if None in splits or splits == {"train"}:
        records = [replace(record, split=None) for record in records]
    notes += empty_note(records)
    return Findings(records=tuple(sorted(records, key=lambda r: r.id)), notes=tuple(notes))


def refuse(place: Path, problems: Sequence[str]) -> None:
    """Tell up to 10 problems at once, if there are any."""
    if problems:
        raise DataError(f"{place}: {name_some(problems, limit=10)}")


def empty_note(records: Sequence[Record]) -> list[str]:
    """Say how many images are all background."""
    num = sum(not record.shapes for record in records)
    told = counted(num, "image has", "images have")
    return [f"{told} no outline: all background"] if num else []


def _by_image(
    items: Iterable[Annotated], images: FolderImages, problems: list[str]
) -> tuple[dict[Path, Annotated], set[Path]]:
    entry_of: dict[Path, Annotated] = {}
    as_stored: set[Path] = set()
    for one in items:
        try:
            path = one.path or images.find_loosely(one.name)
        except ValueError as error:
            problems.append(f"image {one.name} {error}")
            continue
        wrong, is_stored = check_outlines(path, one.shapes, one.size)
        problems += wrong
        as_stored |= {path} if is_stored else set()
        before = entry_of[path].shapes if path in entry_of else ()
        entry_of[path] = replace(one, shapes=(*before, *one.shapes))
    return entry_of, as_stored


def without_mask(
    alone: Sequence[Record], num_used: int, config: DataConfig, root: Path, *, noun: str
) -> tuple[list[Record], list[str]]:
    """Take images without a mask for empty, leave them out or refuse, as `data.missing` says."""
    if not alone:
        return [], []
    names = name_some(one.image_path.relative_to(root).as_posix() for one in alone)
    told = counted(len(alone), f"image without {noun}", f"images without {noun}")
    if config.missing == "refuse":
        raise DataError(f"{root}: {told} ({names}); data.missing: skip leaves them out")
    if config.missing == "empty":
        return [*alone], [f"{told} taken for empty ({names})"]
    return [], [
        f"{counted(num_used, 'image', 'images')} with {noun} used, {told} left out ({names}): "
        "`binseg suggest` says which to label next; data.missing: empty takes them for background"
    ]


def choose_labels(
    names: Iterable[str], config: DataConfig, root: Path
) -> tuple[frozenset[str], str]:
    """Choose the labels that are foreground, and say which they are."""
    there = {*names}
    if config.labels is None:
        usual = frozenset(one for one in there if not is_background(one))
        told = name_some(sorted(usual - {""}), limit=10)
        return usual, f"foreground: {f'all labels ({told})' if told else 'all that is marked'}"
    if unknown := [one for one in config.labels if one not in there]:
        known = name_some(sorted(there), limit=20)
        told = f"data.labels names {name_some(unknown)}, which aren't there"
        raise DataError(f"{root}: {told}; there are {known}")
    told = name_some(config.labels, limit=10)
    return frozenset(config.labels), f"foreground: {told}; all other labels are background"


def foreground_of(shapes: Iterable[Shape], labels: frozenset[str]) -> tuple[Shape, ...]:
    """Keep the shapes that are foreground, and mark those that don't count."""
    kept = [one for one in shapes if one.label in labels or one.label.lower() in IGNORED]
    return tuple(replace(one, ignored=one.label not in labels) for one in kept)


def _id_of(path: Path, root: Path) -> str:
    home = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return home.with_suffix("").as_posix()


def is_background(label: str) -> bool:
    """Tell whether a label, or "number label", is no object by the tools' convention."""
    return label.lower().split(" ")[-1] in IGNORED | BACKGROUND


def check_outlines(
    image: Path, shapes: Iterable[Shape], *sizes: tuple[object, object]
) -> tuple[list[str], bool]:
    """Say what is wrong with outlines for these sizes, and if they are on pixels as stored."""
    try:
        info = probe(image)
    except ImageError:
        return [], False  # reading the image will say what is wrong with it
    size = seen = (info.height, info.width)
    stated = [one for one in sizes if None not in one]  # lists: a file may hold anything
    if is_stored := swaps_sides(info.orientation) and seen not in stated and seen[::-1] in stated:
        size = seen[::-1]
    told = f"{image.name} is {seen[0]}x{seen[1]}"
    wrong = [f"{told}, its outlines are for {h}x{w}" for h, w in stated if (h, w) != size]
    corners_N2 = np.array([xy for one in shapes for ring in one.rings for xy in ring])
    if not len(corners_N2):
        return wrong, is_stored
    largest, ends = corners_N2.max(), np.array(size[::-1])
    if largest <= MOST_SCALED and (np.rint(corners_N2) != corners_N2).any():
        scaled = f"its outlines go from 0 to {largest:g}; give coordinates in pixels"
        wrong.append(f"{image.name}: {scaled}")
    elif not ((corners_N2 >= 0) & (corners_N2 <= ends)).all(axis=1).any():
        wrong.append(f"{told}, and no corner of its outlines lies in it")
    elif not (wrong or (corners_N2 <= MOST_BEYOND * ends).all() or swaps_sides(info.orientation)):
        x, y = corners_N2.max(axis=0)
        reach = f"its outlines reach to {y:.0f}x{x:.0f}"
        wrong.append(f"{told}, {reach}: were they drawn at that size?")
    return wrong, is_stored


def extent_note(records: Sequence[Record]) -> str | None:
    """Say that all outlines lie in the upper left, as where images were enlarged since."""
    ends: list[np.ndarray] = []
    for record in spread([one for one in records if one.shapes], NUM_LOOKED):
        corners = [xy for one in record.shapes or () for ring in one.rings for xy in ring]
        with suppress(ImageError, ValueError):
            height, width = size_of(record.image_path)
            corners_N2 = np.array(corners) / (width, height)
            ends.append(np.stack([corners_N2.min(axis=0), corners_N2.max(axis=0)]))
    if len(ends) < LEAST_LOOKED:
        return None
    low, high = np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))
    if (high > MOST_CORNERED).any() or (low + high > 1.25 * MOST_CORNERED).any():
        return None
    told = f"all outlines lie in the upper left {high[1]:.0%} x {high[0]:.0%} of their images"
    return f"{told}: were the images enlarged since they were drawn?"


def shape_of(
    points: Sequence[tuple[float, float]], label: str, *, holes: Sequence[Ring] = ()
) -> Shape:
    """Make a shape of a polygon (whole pixels: a traced contour); ValueError below 3 corners."""
    if len(points) < 3:
        raise ValueError("has fewer than 3 corners")
    corners = np.asarray(points, np.float64)
    closed = bool(np.abs(corners - corners.round()).max() < 0.01)
    if closed:
        corners = corners.round()
    ring = tuple((float(x), float(y)) for x, y in corners)
    return Shape(rings=(ring, *holes), label=label, closed=closed)


def parts_of(rings: Sequence[Ring], label: str) -> tuple[Shape, ...]:
    """Unite an object's rings; only one that lies wholly inside another is a hole in it.

    Raises ValueError for a ring of fewer than three corners.
    """
    from shapely import Polygon

    if any(len(ring) < 3 for ring in rings):
        raise ValueError("has fewer than 3 corners")
    areas = [Polygon(ring).buffer(0) for ring in rings]
    holes_of: dict[int, list[Ring]] = {}
    for index, area in enumerate(areas):
        others = [(n, other) for n, other in enumerate(areas) if n != index]
        around = [n for n, other in others if other.contains_properly(area)]
        # A ring inside a hole is an island again.
        if len(around) % 2:
            inner = min(around, key=lambda one: areas[one].area)
            holes_of.setdefault(inner, []).append(rings[index])
        else:
            holes_of.setdefault(index, [])
    return tuple(Shape(rings=(rings[one], *holes), label=label) for one, holes in holes_of.items())


def rings_of_runs(runs: Sequence[int], *, height: int, width: int) -> tuple[Ring, ...]:
    """Turn run lengths (by columns, background first) into rectangles; ValueError if amiss."""
    if not 0 < height * width <= MAX_PIXELS or sum(runs) != height * width:
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


def runs_of(mask_HW: Mask) -> list[int]:
    """Count pixels row by row: runs of background and of foreground in turn."""
    flat = mask_HW.ravel().astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return [*np.diff([0, *changes.tolist(), flat.size]).tolist()]


def rings_of_mask(mask_HW: Mask, *, left: float = 0.0, top: float = 0.0) -> tuple[Ring, ...]:
    """Turn a bitmap that lies somewhere in an image into rectangles, pixel for pixel."""
    height, width = mask_HW.shape
    rings = rings_of_runs(runs_of(mask_HW.T), height=height, width=width)
    return tuple(tuple((x + left, y + top) for x, y in ring) for ring in rings)


def mask_of_png(text: str | bytes) -> Mask:
    """Read a bitmap out of a PNG (bytes or base64), by its alpha if it has one; ValueError."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else text
        image = PngImageFile(io.BytesIO(data))  # `Image.open` has a limit of its own, not ours
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("is too large")
        band = image.getchannel("A") if "A" in image.getbands() else image
        return np.asarray(band.convert("L") if band.mode == "P" else band) > 0
    except (OSError, SyntaxError) as error:
        raise ValueError(f"has an unreadable bitmap ({error})") from None


def size_of(path: Path) -> tuple[int, int]:
    """Give an image's height and width; a `ValueError` says why not."""
    try:
        info = probe(path)
    except ImageError as error:
        raise ValueError(str(error)) from None
    return info.height, info.width


def mapping(value: object) -> Mapping[str, object]:
    """Give a JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}
