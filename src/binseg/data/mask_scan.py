"""A look at mask files: the values they hold, in how many of them, and what palettes mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from binseg.config.recipe import DataConfig
from binseg.errors import ImageError
from binseg.imageio import probe, read_labels, read_palette
from binseg.progress import Progress, track
from binseg.types import Record

Labels = Integer[np.ndarray, "H W"] | Integer[np.ndarray, "H W 3"]

NEAR = 40
"""JPEG moves 0 and 255 by less than this, except at edges."""
GREY = 0x010101
"""A grey level times this is the same grey as a colour 0xRRGGBB."""
MOST_CLASSES = 32
"""More colours in a palette are the soft edges of an adaptive one."""
MOST_TOUCHING = 0.2
"""Edges between 1 and 2 for each one at a 3, up to which 3 is a border that lies between them."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Values that the scanned masks hold between them."""

    holders: Mapping[int, tuple[int, Path]]
    """Number of masks that hold each value, and the first of them."""
    colour: bool
    lossy: bool
    is_mixed: bool = False
    """No mask holds both 1 and 255: some were saved as 1 bit, some as 8."""
    has_palette: bool = False
    white_is_zero: bool = False
    between: float = 0.0
    """Share of the grey pixels that aren't near 0 or 255."""

    @property
    def values(self) -> frozenset[int]:
        """All of them."""
        return frozenset(self.holders)


def means_indices(records: Sequence[Record], config: DataConfig) -> bool:
    """Tell whether palette masks mean their indices, as Pascal VOC's do, and not their colours.

    That is so where index 0 is black, every index has one colour of its own in all files, and
    there are more than two, or they are VOC's very colours. Two-colour masks look the same both
    ways unless their order differs from file to file, which colours don't mind.
    """
    asked = {*(config.foreground or ()), *(config.ignore or ())}
    if any(value > 255 for value in asked):
        return False
    colour_of = _colour_of_index(records)
    if colour_of is None or colour_of.get(0, 0) != 0:
        return False
    colours = set(colour_of.values())
    is_plain = all(colour % GREY == 0 for colour in colours)
    if is_plain or len(colours) < len(colour_of) or len(colours) > MOST_CLASSES:
        return False
    is_voc = all(colour == _voc_colour(one) for one, colour in colour_of.items() if one != 255)
    return is_voc or len(colours) > 2 or asked <= colour_of.keys() != set()


def _colour_of_index(records: Sequence[Record]) -> dict[int, int] | None:
    """Give the colour of each index that palette files use; None where files differ."""
    colour_of: dict[int, int] = {}
    for path, page in [(path, one.page) for one in records for path in one.mask_paths]:
        try:
            palette_N3 = read_palette(path, page=page)
            if palette_N3 is None:
                continue
            used = values_of(read_labels(path, page=page, indices=True))
        except ImageError:
            continue  # the scan names it
        packed_N = coloured(palette_N3[None])[0]
        if any(colour_of.setdefault(one, int(packed_N[one])) != packed_N[one] for one in used):
            return None
    return colour_of


def _voc_colour(index: int) -> int:
    """Give a class's colour in Pascal VOC's palette, as 0xRRGGBB.

    >>> [f"{_voc_colour(index):06X}" for index in (0, 1, 2, 15)]
    ['000000', '800000', '008000', 'C08080']
    """
    colour = 0
    for bit in range(8):
        for channel, shift in enumerate((16, 8, 0)):
            colour |= (index >> (3 * bit + channel) & 1) << (7 - bit) << shift
    return colour


def scan(records: Sequence[Record], progress: Progress, *, indices: bool) -> Scan:
    """Look at masks, with palettes as indices or as the colours that these stand for."""
    greys: dict[int, tuple[int, Path]] = {}
    colours: dict[int, tuple[int, Path]] = {}
    lossy, is_mixed, has_palette, white_is_zero = False, True, False, False
    num_between = num_pixels = 0
    broken: list[ImageError] = []
    files = [(path, record.page) for record in records for path in record.mask_paths]
    watched = track(files, progress=progress, label="looking at masks", total=len(files))
    for path, page in watched:
        try:
            info = probe(path)
            labels = read_labels(path, page=page, indices=indices)
        except ImageError as error:
            # One broken file doesn't hide what the others mean; reading the samples will name it.
            broken.append(error)
            continue
        lossy |= info.format == "JPEG"
        has_palette |= info.mode in {"P", "PA", "PALETTE"}
        white_is_zero |= info.mode == "MINISWHITE"
        is_colour = _is_colour(labels)
        holders = colours if is_colour else greys
        values = coloured(labels) if is_colour else grey(labels)
        num_pixels += values.size
        num_between += int(((values > NEAR) & (values < 255 - NEAR)).sum())
        held = values_of(values)
        is_mixed &= not held >= {1, 255}
        for value in held:
            num, first = holders.get(value, (0, path))
            holders[value] = (num + 1, first)
    if len(broken) == len(files):
        raise broken[0]
    if colours:
        colours = {value * GREY: held for value, held in greys.items()} | colours
    return Scan(
        holders=colours or greys,
        colour=bool(colours),
        lossy=lossy,
        is_mixed=is_mixed,
        has_palette=has_palette,
        white_is_zero=white_is_zero,
        between=num_between / max(1, num_pixels),
    )


def lies_between(records: Sequence[Record]) -> bool:
    """Tell whether 3 parts 1 from 2, as the border of a trimap does."""
    parted = touching = 0
    for record in records[:: max(1, len(records) // 8)]:
        try:
            labels_HW = grey(read_labels(record.mask_paths[0], page=record.page, indices=True))
        except ImageError:
            continue  # the scan named it
        for one, other in (
            (labels_HW[1:], labels_HW[:-1]),
            (labels_HW[:, 1:], labels_HW[:, :-1]),
        ):
            low, high = np.minimum(one, other), np.maximum(one, other)
            touching += int(((low == 1) & (high == 2)).sum())
            parted += int(((high == 3) & (low < 3)).sum())
    return touching < MOST_TOUCHING * parted


def _is_colour(labels: Labels) -> bool:
    if labels.ndim == 2:
        return False
    red_HW, green_HW, blue_HW = np.moveaxis(labels, 2, 0)
    return not (np.array_equal(red_HW, green_HW) and np.array_equal(red_HW, blue_HW))


def grey(labels: Labels) -> Integer[np.ndarray, "H W"]:
    """Give the numbers of a grey mask; an `ImageError` says that it has colours."""
    if _is_colour(labels):
        raise ImageError(
            "the mask is in colour, but the dataset's masks were read as grey; "
            "save it like the others"
        )
    return labels if labels.ndim == 2 else labels[..., 0]


def coloured(labels: Labels) -> Integer[np.ndarray, "H W"]:
    """Pack colours into 0xRRGGBB, so that one number stands for one colour."""
    if labels.ndim == 2:
        return labels.astype(np.int64) * GREY
    wide = labels.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def values_of(values: Integer[np.ndarray, "..."]) -> set[int]:
    """Give the values that are there."""
    if values.dtype == np.uint8:
        # Counting is ten times faster than sorting, and most masks are 8-bit.
        return set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())
    return set(np.unique(values).tolist())
