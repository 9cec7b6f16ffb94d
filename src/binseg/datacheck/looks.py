"""One look at each image and mask: decoded once; a few numbers and a small square are kept."""

import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, label
from scipy.spatial import ConvexHull, QhullError

from binseg.data.dataset import Dataset
from binseg.data.samples import fill_outlines, in_pose, sizes_differ
from binseg.datacheck import near_duplicates
from binseg.datacheck.alignment import agreement
from binseg.datacheck.near_duplicates import digest_of, reduced, squares_of
from binseg.errors import DataError, ImageError
from binseg.imageio import probe, read_labels, read_pixels
from binseg.imageio.decoding import both_valid, without
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.transforms.geometry import resize_mask
from binseg.types import AnyImage, Mask, Record

_RIM, _FINE, _ABOVE_NOISE = 4, 2.0, 1.5
"""Pixels to each side of an outline, and of blur; the step there as a multiple of the noise."""
_AHEAD = 64  # images that may be decoded before the first of them is asked for


class Problem(NamedTuple):
    """The reason why an image or a mask can't be used."""

    record: Record
    code: str  # the check that reports it: unreadable, size or values
    text: str


@dataclass(frozen=True)
class Outline:
    """A mask that has foreground and background, in a few numbers."""

    share: float
    num_objects: int
    solidity: float
    """Area of the largest object over that of its convex hull: 1 for a disc, low for scribbles."""
    rim: float
    """Share of foreground along the image's rim; close to 1 where the classes are exchanged."""


@dataclass(frozen=True)
class Look:
    """The facts about one record; its pixels are gone."""

    record: Record
    height: int
    width: int
    channels: int
    dtype: str
    turned: bool  # True if the image file asks to be turned (EXIF)
    mask_turned: bool
    image_hash: str
    """Hash of the pixels as they are seen, so that another file format changes nothing."""
    thumb_SS: UInt8[np.ndarray, "S S"]
    core_TT: UInt8[np.ndarray, "T T"]
    scale: float  # pixels of the reduced image per pixel of the original
    mask_hash: str | None = None
    foreground: float | None = None
    """Share of foreground in the pixels that count; None without a readable mask."""
    num_valid: int = 0
    outline: Outline | None = None
    surface_RR: Float32[np.ndarray, "R R"] | None = None
    """Agreement of the mask's outline with the image's edges, slid by a few pixels."""
    problem: Problem | None = None
    brightest: float = 0.0  # the greatest value, as a share of the pixel type's; 0 for floats
    hidden: float | None = None
    """Levels of 255 between both sides of the outline, where these are too few to be seen."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the checks of a data set judge by."""

    dataset: Dataset
    looks: tuple[Look, ...] = ()
    unread: tuple[Problem, ...] = ()  # images that can't be read, so that there is no look at them
    progress: Progress = SILENT

    @cached_property
    def near_copies(self) -> list[list[Look]]:
        """Groups of images that are nearly the same, though not equal, and unexpectedly so."""
        looks = self.looks
        if not looks:
            return []
        thumbs_NSS = np.stack([look.thumb_SS for look in looks])
        cores_NTT = np.stack([look.core_TT for look in looks])
        pairs = near_duplicates.near_pairs(thumbs_NSS, cores_NTT, progress=self.progress)
        ones = [look.record for look in looks]
        belong = near_duplicates.belong
        odd = [(a, b) for a, b in pairs if not belong(ones[a], ones[b], in_split=True)]
        clusters = near_duplicates.clusters_of(len(looks), odd)
        groups = [[looks[index] for index in group] for group in clusters]
        return [group for group in groups if len({look.image_hash for look in group}) > 1]


def looks_as_dict(evidence: Evidence) -> dict[str, Any]:
    """Give the looks at some records as plain data, by id; arrays as type, shape and numbers."""

    def plain(one: Any) -> Any:
        if isinstance(one, np.ndarray):
            return [one.dtype.name, one.shape, b64encode(one.tobytes()).decode()]
        if isinstance(one, Outline):
            return vars(one)
        return one[1:] if isinstance(one, Problem) else one

    unread: dict[str, Any] = {one.record.id: [*one[1:]] for one in evidence.unread}
    return unread | {
        look.record.id: {k: plain(v) for k, v in vars(look).items() if k != "record"}
        for look in evidence.looks
    }


def _known_look(record: Record, known: Any) -> Look | Problem:
    if isinstance(known, list):
        return Problem(record, *known)
    facts = dict(known)
    for name in ("thumb_SS", "core_TT", "surface_RR"):
        if facts[name] is not None:
            dtype, shape, data = facts[name]
            facts[name] = np.frombuffer(b64decode(data), dtype).reshape(shape)
    facts["outline"] = facts["outline"] and Outline(**facts["outline"])
    facts["problem"] = facts["problem"] and Problem(record, *facts["problem"])
    return Look(record=record, **facts)


def look_at_all(
    dataset: Dataset, *, known: Mapping[str, Any] | None = None, progress: Progress = SILENT
) -> Evidence:
    """Look at all records on a few threads, or make known looks (`looks_as_dict`) anew."""
    records = dataset.records
    if known is None:
        looks = map_ordered(lambda record: _look_at(record, dataset), records, ahead=_AHEAD)
    else:
        if odd := {record.id for record in records} ^ set(known):
            told = f"{len(odd)} images ({min(odd)} first) are in the data or in the shards alone"
            raise DataError(f"{told}: the data changed; run the shards again")
        looks = (_known_look(record, known[record.id]) for record in records)
    found = list(track(looks, progress=progress, label="looking", total=len(records)))
    seen = tuple(one for one in found if isinstance(one, Look))
    unread = tuple(one for one in found if isinstance(one, Problem))
    return Evidence(dataset=dataset, looks=seen, unread=unread, progress=progress)


def _look_at(record: Record, dataset: Dataset) -> Look | Problem:
    try:
        turned = probe(record.image_path).turned
        image_HWC, data_HW = read_pixels(record.image_path, page=record.page)
        if record.nodata is not None:
            image_HWC, declared_HW = without(image_HWC, record.nodata)
            data_HW = both_valid(data_HW, declared_HW)
    except ImageError as error:
        return Problem(record, "unreadable", _relative(str(error), dataset.root))
    height, width, channels = image_HWC.shape
    mask_HW, valid_HW, mask_turned, problem = _read_mask(record, dataset, (height, width))
    valid_HW = valid_HW if data_HW is None else valid_HW & data_HW
    scale = min(1.0, near_duplicates.REDUCED_SIDE / max(height, width))
    small_HWC = reduced(image_HWC)
    thumb_SS, core_TT = squares_of(small_HWC)
    shown = (height, width, channels, str(image_HWC.dtype), turned, mask_turned)
    seen = (digest_of(image_HWC), thumb_SS, core_TT, scale)
    brightest = image_HWC.max() / 65535 if image_HWC.dtype == np.uint16 else 0.0
    look = Look(record, *shown, *seen, brightest=brightest, problem=problem)
    if mask_HW is None:
        return look
    num_valid = int(valid_HW.sum())
    reduced_HW = resize_mask(mask_HW, *small_HWC.shape[:2])
    outline = measure_outline(reduced_HW)
    share = int((mask_HW & valid_HW).sum()) / num_valid if num_valid else 0.0
    look = replace(look, mask_hash=digest_of(mask_HW), foreground=share, num_valid=num_valid)
    if outline is None:
        return look
    surface_RR, hidden = agreement(small_HWC, reduced_HW), hidden_levels(image_HWC, mask_HW)
    return replace(look, outline=outline, surface_RR=surface_RR, hidden=hidden)


def hidden_levels(image_HWC: AnyImage, mask_HW: Mask) -> float | None:
    """Measure a clear step at a mask's outline in levels of 255; None where 8 bits show it."""
    inside_HW = mask_HW & ~binary_erosion(mask_HW, iterations=_RIM, border_value=1)
    outside_HW = binary_dilation(mask_HW, iterations=_RIM) & ~mask_HW
    if image_HWC.dtype == np.uint8 or not inside_HW.any() or not outside_HW.any():
        return None
    low_C, high_C = np.percentile(image_HWC, (0.5, 99.5), axis=(0, 1))
    most, is_clear = 0.0, False
    for channel, width in enumerate(np.maximum(high_C - low_C, 1e-12)):
        plane_HW = image_HWC[:, :, channel].astype(np.float32)
        step = abs(float(plane_HW[inside_HW].mean() - plane_HW[outside_HW].mean()))
        fine_HW = plane_HW - gaussian_filter(plane_HW, _FINE)
        is_clear |= step > _ABOVE_NOISE * float(fine_HW[inside_HW | outside_HW].std())
        most = max(most, 255 * step / float(width))
    return most if is_clear and most < 1 else None


def _read_mask(
    record: Record, dataset: Dataset, size: tuple[int, int]
) -> tuple[Mask | None, Mask, bool, Problem | None]:
    """Read a mask as `data.samples.read_mask` does; what is wrong with it is sorted by check."""
    mask_HW, valid_HW, turned = np.zeros(size, np.bool_), np.ones(size, np.bool_), False
    if record.shapes is not None:
        return *fill_outlines(record, size), False, None
    if record.mask_path is None:
        return None, valid_HW, False, None
    for path in record.mask_paths:
        code, told = "unreadable", ""
        try:
            turned |= probe(path).turned
            labels = read_labels(path, page=record.page, read_as=dataset.rule.read_as)
            labels = in_pose(labels, size, record)
            code, told = "size", sizes_differ(record, labels.shape[:2], size)
            if labels.shape[:2] == size:
                code, told = "values", ""
                marked_HW, counts_HW = dataset.rule.apply(labels)
        except ImageError as error:
            told = str(error)
        if told:
            text = _relative(told if code == "unreadable" else f"{path.name}: {told}", dataset.root)
            return None, np.ones(size, np.bool_), turned, Problem(record, code, text)
        mask_HW, valid_HW = mask_HW | marked_HW, valid_HW & counts_HW
    return mask_HW, valid_HW, turned, None


def _relative(text: str, root: Path) -> str:
    return text.replace(f"{root}{os.sep}", "")


def measure_outline(mask_HW: Mask) -> Outline | None:
    """Measure a (reduced) mask; None where it is empty or full."""
    if not mask_HW.any() or mask_HW.all():
        return None
    labels_HW, _ = label(mask_HW)
    areas_N = np.bincount(labels_HW.ravel())[1:]
    largest_HW = labels_HW == int(areas_N.argmax()) + 1
    rim = np.concatenate([mask_HW[0], mask_HW[-1], mask_HW[1:-1, 0], mask_HW[1:-1, -1]])
    num = max(1, int((areas_N > 2).sum()))  # specks of one or two pixels are left from reducing
    return Outline(float(mask_HW.mean()), num, _solidity(largest_HW), float(rim.mean()))


def _solidity(object_HW: Mask) -> float:
    rows = np.flatnonzero(object_HW.any(axis=1))
    first = object_HW.argmax(axis=1)[rows]
    last = object_HW.shape[1] - object_HW[:, ::-1].argmax(axis=1)[rows]
    # Corners of the first and last pixel of each row: the hull needs no others.
    corners = np.concatenate([np.c_[rows + y, x] for y in (0, 1) for x in (first, last)])
    try:
        hull_area = float(ConvexHull(corners).volume)
    except QhullError:
        return 1.0
    return min(1.0, float(object_HW.sum()) / hull_area)
