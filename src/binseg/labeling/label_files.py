"""Labels as files: those of labelme, COCO, CVAT and YOLO, and masks that others made, taken in."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from jaxtyping import Bool

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.masks import MaskRule, detect_rule
from binseg.data.samples import find_stored_poses, in_pose, read_mask
from binseg.data.sources.annotations import runs_of
from binseg.data.sources.layouts import mask_name_of
from binseg.data.sources.listing import list_folder
from binseg.errors import DataError, UsageError, suggest
from binseg.imageio import encode_mask, probe, read_labels
from binseg.labeling.label_log import BEFORE, Labels
from binseg.postprocess import coco, find_objects, label_objects, trace_polygons
from binseg.progress import Progress
from binseg.storage import write_json, write_text
from binseg.types import IGNORE, Record

Labelled = Sequence[tuple[str, Path, Bool[np.ndarray, "H W"]]]
"""Name, file of the image and mask of each labelled image."""
_LABEL = "foreground"


def write_labels(kind: str, labelled: Labelled, out: Path) -> str:
    """Write masks by a kind of `KINDS`, and say what it can't hold; UsageError, OutputError."""
    if kind not in KINDS:
        raise UsageError(f"--export {kind}: {suggest(kind, KINDS)}")
    return f"{counted(len(labelled), 'image', 'images')} in {out}{KINDS[kind](labelled, out)}"


def _labelme(labelled: Labelled, out: Path) -> str:
    for name, path, mask_HW in labelled:
        height, width = mask_HW.shape
        shapes = []
        for polygon in trace_polygons(mask_HW):
            points = polygon.exterior
            shape: dict[str, object] = {"shape_type": "polygon", "points": points.tolist()}
            if polygon.holes:  # polygons of labelme have none: pixels, then
                (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
                box = np.s_[int(top) : int(bottom), int(left) : int(right)]
                filled_HW = _object(mask_HW, polygon.label)
                pixels = base64.b64encode(encode_mask(filled_HW[box])).decode()
                corners = [[left, top], [right - 1, bottom - 1]]
                shape = {"shape_type": "mask", "points": corners, "mask": pixels}
            shapes.append({"label": _LABEL, "group_id": polygon.label, "flags": {}, **shape})
        facts = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path.name}
        size = {"imageData": None, "imageHeight": height, "imageWidth": width}
        write_json(out / f"{name}.json", {**facts, **size})
    return "; put them beside the images"


def _coco(labelled: Labelled, out: Path) -> str:
    results = []
    for name, path, mask_HW in labelled:
        file = Path(name).parent / path.name
        results.append((file.as_posix(), mask_HW, trace_polygons(mask_HW), find_objects(mask_HW)))
    write_json(out / "annotations.json", coco(results, category=_LABEL))
    return "/annotations.json"


def _cvat(labelled: Labelled, out: Path) -> str:
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    facts = {"label": _LABEL, "source": "manual", "occluded": "0", "z_order": "0"}
    for number, (name, path, mask_HW) in enumerate(labelled):
        height, width = mask_HW.shape
        file = (Path(name).parent / path.name).as_posix()
        size = {"width": str(width), "height": str(height)}
        image = ET.SubElement(root, "image", {"id": str(number), "name": file, **size})
        for one in find_objects(mask_HW):
            box = np.s_[one.top : one.top + one.height, one.left : one.left + one.width]
            place = {side: str(getattr(one, side)) for side in ("left", "top", "width", "height")}
            runs = ", ".join(map(str, runs_of(_object(mask_HW, one.label)[box])))
            ET.SubElement(image, "mask", {**facts, "rle": runs, **place})
    text = ET.tostring(root, encoding="unicode", xml_declaration=True)
    write_text(out / "annotations.xml", text + "\n")
    return "/annotations.xml"


def _yolo(labelled: Labelled, out: Path) -> str:
    num_holes = 0
    for name, _, mask_HW in labelled:
        height, width = mask_HW.shape
        lines = []
        for polygon in trace_polygons(mask_HW):
            num_holes += len(polygon.holes)
            # A trifle off whole pixels: corners on them are read as the middles of rim pixels.
            ring = (polygon.exterior + 0.02) / [width, height]
            lines.append("0 " + " ".join(f"{value:.6f}" for value in ring.ravel()))
        write_text(out / "labels" / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    names = json.dumps({0: _LABEL})
    write_text(out / "data.yaml", f"path: .\ntrain: images\nval: images\nnames: {names}\n")
    lost = f"; {num_holes} holes are filled, as YOLO's outlines have none" if num_holes else ""
    return f": labels/ and data.yaml, to lie beside images/{lost}"


KINDS: Mapping[str, Callable[[Labelled, Path], str]]
KINDS = {"labelme": _labelme, "coco": _coco, "cvat": _cvat, "yolo": _yolo}  # formats by name


def _object(mask_HW: Bool[np.ndarray, "H W"], label: int) -> Bool[np.ndarray, "H W"]:
    return np.asarray(label_objects(mask_HW)[0] == label)


def find_masks(folder: Path, images: Mapping[str, Path], progress: Progress) -> dict[str, Path]:
    """Find the mask of each image by its name; what fits none is told."""
    found: dict[str, Path] = {}
    strange: list[str] = []
    for path in list_folder(folder).images if folder.is_dir() else ():
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name not in images:
            name = mask_name_of(name) or name
        if name not in images or name in found:
            strange.append(path.name)
        else:
            found[name] = path
    if strange:
        progress.say(f"{folder}: no image (or a second mask) for {name_some(strange)}: ignored")
    return found


def read_masks(
    masks: Mapping[str, Path], images: Mapping[str, Path], config: DataConfig, progress: Progress
) -> tuple[dict[str, Labels], MaskRule]:
    """Read masks by the one rule that all their values fit; DataError for doubt and other sizes."""
    records = [
        Record(id=name, image_path=images[name], mask_path=path) for name, path in masks.items()
    ]
    rule = detect_rule(records, config, progress)
    posed, note = find_stored_poses(records, rule)
    if note:
        progress.say(note)
    taken: dict[str, Labels] = {}
    for record in posed:
        info = probe(record.image_path)
        size = (info.height, info.width)
        mask_HW, valid_HW = (in_pose(one, size, record) for one in read_mask(record, rule))
        if mask_HW.shape != size:
            (height, width), own = mask_HW.shape, f"its image {size[1]} x {size[0]}"
            raise DataError(f"{record.mask_path} has {width} x {height} pixels, {own}")
        taken[record.id] = np.where(valid_HW, mask_HW.astype(np.uint8), np.uint8(IGNORE))
    return taken, rule


def put_aside(masks: Mapping[str, Path], folder: Path, progress: Progress) -> None:
    """Keep masks that aren't as ours in a folder of their own, or UsageError if it is there."""
    if all(
        path == folder / f"{name}.png" and np.isin(read_labels(path), (0, 255)).all()
        for name, path in masks.items()
    ):
        return
    before = folder.with_name(BEFORE)
    if before.exists():
        raise UsageError(
            f"{folder} holds masks that aren't 0/255 PNGs of the images' names, and {before} is "
            "there already: move one of them away"
        )
    folder.rename(before)  # whole, so that nothing of it is lost
    progress.say(f"the masks that were there are kept in {before}; {folder} has 0 and 255")
