"""One look at each image and mask: decoded once, a few numbers and a small square are kept."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Num, UInt8

from binseg.data.masks import MaskRule
from binseg.data.samples import fill_shapes, in_pose
from binseg.datacheck.alignment import agreement
from binseg.datacheck.near_duplicates import THUMB_SIDE
from binseg.datacheck.outlines import Outline, measure
from binseg.errors import ImageError
from binseg.imageio import probe, read_image, read_labels
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.transforms.geometry import resize_image, resize_mask
from binseg.types import Finding, Record

__all__ = ["Look", "files_of", "look_at", "look_at_all"]

LOOKED_SIDE = 192
"""Images are reduced to this longer side before edges and outlines are measured."""
_AHEAD = 64  # images that may be decoded before the first of them is asked for


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one record showed; its pixels are gone."""

    record: Record
    height: int
    width: int
    channels: int
    dtype: str
    turned: bool
    """The file asks to be turned (EXIF)."""
    mask_turned: bool
    image_hash: str
    """Of the pixels as they are seen, so that another file format changes nothing."""
    thumb_SS: UInt8[np.ndarray, "S S"]
    scale: float
    """Pixels of the reduced image for one of the original."""
    mask_hash: str | None = None
    foreground: float | None = None
    """Share of the pixels that count; None without a readable mask."""
    num_valid: int = 0
    outline: Outline | None = None
    surface_RR: Float32[np.ndarray, "R R"] | None = None
    """How well the mask's outline agrees with the image's edges, slid by a few pixels."""
    problem: Finding | None = None
    """What is wrong with the mask, where it can't be used."""


def look_at_all(
    records: Sequence[Record], rule: MaskRule, root: Path, *, progress: Progress = SILENT
) -> Iterator[Look | Finding]:
    """Look at all records on a few threads; only a few images are in memory at once.

    Args:
        records: in the order of the answers.
        rule: how masks are read.
        root: the data set's folder, from which files are named.
        progress: told of every record.

    Yields:
        A look, or the finding that says why there is none.
    """
    looks = map_ordered(lambda record: look_at(record, rule, root), records, ahead=_AHEAD)
    return track(looks, progress=progress, label="looking", total=len(records))


def files_of(record: Record, root: Path) -> tuple[str, ...]:
    """Name a record's files from the data set's folder."""
    return tuple(
        path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        for path in record.paths
    )


def look_at(record: Record, rule: MaskRule, root: Path) -> Look | Finding:
    """Decode one record and measure it; what can't be read becomes a finding."""
    try:
        turned = probe(record.image_path).turned
        image_HWC = read_image(record.image_path, page=record.page)
    except ImageError as error:
        return _finding(record, root, "unreadable", str(error))
    mask_HW, valid_HW, mask_turned, problem = _truth(record, rule, root, image_HWC.shape[:2])
    height, width, channels = image_HWC.shape
    scale = min(1.0, LOOKED_SIDE / max(height, width))
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    small_HWC = _reduced(image_HWC, small)
    seen_HWC = resize_image(small_HWC.mean(axis=2, keepdims=True), THUMB_SIDE, THUMB_SIDE)
    facts = Look(
        record=record,
        height=height,
        width=width,
        channels=channels,
        dtype=str(image_HWC.dtype),
        turned=turned,
        mask_turned=mask_turned,
        image_hash=_hash(image_HWC),
        thumb_SS=seen_HWC[:, :, 0].round().astype(np.uint8),
        scale=scale,
        problem=problem,
    )
    if mask_HW is None:
        return facts
    return _with_mask(facts, small_HWC, mask_HW, valid_HW)


def _with_mask(
    facts: Look,
    small_HWC: Float32[np.ndarray, "h w c"],
    mask_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"],
) -> Look:
    num_valid = int(valid_HW.sum())
    num_foreground = int((mask_HW & valid_HW).sum())
    reduced_HW = resize_mask(mask_HW, *small_HWC.shape[:2])
    outline = measure(reduced_HW)
    return replace(
        facts,
        mask_hash=_hash(mask_HW),
        foreground=num_foreground / num_valid if num_valid else 0.0,
        num_valid=num_valid,
        outline=outline,
        surface_RR=None if outline is None else agreement(small_HWC, reduced_HW),
    )


Truth = tuple[Bool[np.ndarray, "H W"] | None, Bool[np.ndarray, "H W"], bool, Finding | None]


def _truth(record: Record, rule: MaskRule, root: Path, size: tuple[int, ...]) -> Truth:
    """Read the mask; where it can't be used, say why and go on with the image alone."""
    everywhere_HW = np.ones(size, np.bool_)
    if record.shapes is not None:
        return *fill_shapes(record.shapes, size[0], size[1]), False, None
    if record.mask_path is None:
        return None, everywhere_HW, False, None
    mask_HW, valid_HW, turned = np.zeros(size, np.bool_), everywhere_HW, False
    for path in record.mask_paths:
        try:
            turned |= probe(path).turned
            labels = read_labels(path, page=record.page, indices=rule.indices)
            labels = in_pose(labels, tuple(size), record.image_path)
        except ImageError as error:
            return None, everywhere_HW, False, _finding(record, root, "unreadable", str(error))
        if labels.shape[:2] != size:
            problem = _finding(record, root, "size", _sizes(path, labels.shape[:2], size))
            return None, everywhere_HW, turned, problem
        try:
            marked_HW, counts_HW = rule.apply(labels)
        except ImageError as error:
            problem = _finding(record, root, "values", f"{path.name}: {error}")
            return None, everywhere_HW, turned, problem
        mask_HW, valid_HW = mask_HW | marked_HW, valid_HW & counts_HW
    return mask_HW, valid_HW, turned, None


_ADVICE = {
    "unreadable": "Get the file anew, or leave the pair out.",
    "size": "Export the mask anew at the image's size, without interpolation.",
    "values": "Mend the file, or say what the values mean: data.foreground, data.ignore.",
}


def _finding(record: Record, root: Path, code: str, text: str) -> Finding:
    return Finding(
        severity="error",
        code=code,
        text=text.replace(f"{root}{os.sep}", ""),
        ids=(record.id,),
        files=files_of(record, root),
        advice=_ADVICE[code],
    )


def _sizes(path: Path, of_mask: tuple[int, ...], of_image: tuple[int, ...]) -> str:
    text = (
        f"{path.name}: the mask is {of_mask[0]}x{of_mask[1]} (height x width), its "
        f"image is {of_image[0]}x{of_image[1]}"
    )
    return f"{text}; one of them is turned" if of_mask == of_image[::-1] else text


def _reduced(
    image_HWC: Num[np.ndarray, "H W C"], size: tuple[int, int]
) -> Float32[np.ndarray, "h w c"]:
    """The reduced image, three channels at most, 0 to 255; other types are stretched."""
    small_HWC = resize_image(image_HWC[:, :, :3], *size).astype(np.float32)
    if image_HWC.dtype != np.uint8:
        low, high = np.percentile(small_HWC, [0.5, 99.5])
        small_HWC = ((small_HWC - low) / max(high - low, 1e-12)).clip(0, 1) * 255
    return small_HWC.astype(np.float32)


def _hash(pixels: np.ndarray) -> str:
    facts = f"{pixels.shape} {pixels.dtype}".encode()
    digest = blake2b(facts, digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
