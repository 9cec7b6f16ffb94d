"""Masks that others made, or changed since, are taken into the log; none of them is lost."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import name_some
from binseg.data.masks import MaskRule, detect_rule
from binseg.data.samples import find_stored_poses, in_pose, read_mask
from binseg.data.sources.layouts import mask_name_of
from binseg.data.sources.listing import list_folder
from binseg.errors import DataError, UsageError
from binseg.imageio import probe, read_labels
from binseg.labeling.strokes import Labels
from binseg.progress import Progress
from binseg.types import IGNORE, Record

BEFORE = "masks-before"


def find_masks(folder: Path, images: Mapping[str, Path], progress: Progress) -> dict[str, Path]:
    """Find the mask of each image by its name; a line names what fits none."""
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
