"""Patches of one source, told by their names: neighbours in two splits share what is at the seam.

slide1_x0_y256   scan-r3-c4   img_003_patch_12   volume_slice_0041   tile_512_1024
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from binseg.data.splits import parse_split
from binseg.structures import Record

__all__ = ["Place", "Seam", "place_of", "seams"]

_GAP = r"[ _.\-]?"
_PAIRS = (
    re.compile(
        rf"^(?P<source>.*?){_GAP}(?<![A-Za-z])x{_GAP}(?P<a>\d+){_GAP}y{_GAP}(?P<b>\d+)", re.I
    ),
    re.compile(
        rf"^(?P<source>.*?){_GAP}(?<![A-Za-z])y{_GAP}(?P<a>\d+){_GAP}x{_GAP}(?P<b>\d+)", re.I
    ),
    re.compile(
        rf"^(?P<source>.*?){_GAP}(?<![A-Za-z])r(?:ow)?{_GAP}(?P<a>\d+){_GAP}"
        rf"c(?:ol(?:umn)?)?{_GAP}(?P<b>\d+)",
        re.I,
    ),
)
_NUMBER = re.compile(
    rf"^(?P<source>.*[A-Za-z0-9])[ _.\-](?:patch|tile|crop|chip|slice|frame|z){_GAP}(?P<a>\d+)$",
    re.I,
)
_BARE = re.compile(r"^(?P<source>.*[A-Za-z0-9])[ _.\-](?P<a>\d+)[ _.\-](?P<b>\d+)$")
_MIN_STEP = 16  # pixels; bare numbers that aren't multiples of such a step are no coordinates


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a patch sits: in which source, and at which numbers."""

    source: str
    at: tuple[int, ...]
    bare: bool = False
    """The name only holds two numbers; whether they are coordinates, its fellows must show."""


@dataclass(frozen=True, kw_only=True)
class Seam:
    """One source whose patches lie in more than one split."""

    source: str
    splits: tuple[str, ...]
    indices: tuple[int, ...]
    """Of the records that have a neighbour in another split."""
    pages: bool
    """Pages of a stack, not files with telling names."""
    grouped: bool
    """Every patch at the seam has a group of its user's choice."""


def place_of(id_: str) -> Place | None:
    """Read source and position out of a record's id.

    >>> place_of("train/slide1_x0_y256")
    Place(source='slide1', at=(0, 256), bare=False)
    >>> place_of("Abyssinian_12") is None
    True
    """
    first, slash, rest = id_.partition("/")
    name = rest if slash and parse_split(first) is not None else id_
    for pattern in _PAIRS:
        if match := pattern.match(name):
            at = (int(match["a"]), int(match["b"]))
            # What stands before and behind the coordinates names the source.
            return Place(source=match["source"] + name[match.end() :], at=at)
    if match := _NUMBER.match(name):
        return Place(source=match["source"], at=(int(match["a"]),))
    if match := _BARE.match(name):
        return Place(source=match["source"], at=(int(match["a"]), int(match["b"])), bare=True)
    return None


def seams(records: Sequence[Record]) -> Iterator[Seam]:
    """Find the sources that are in more than one split, with the patches that touch across."""
    members: dict[tuple[str, bool], list[tuple[int, Place]]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.page is not None:
            place: Place | None = Place(source=str(record.image_path), at=(record.page,))
        else:
            place = place_of(record.id)
        if place is not None and record.split is not None:
            members[place.source, place.bare].append((index, place))
    for (source, bare), placed in members.items():
        splits = sorted({str(records[index].split) for index, _ in placed})
        at_NP = np.array([place.at for _, place in placed], dtype=np.float64)
        if len(splits) < 2 or (bare and not _is_grid(at_NP)):
            continue
        indices = tuple(placed[n][0] for n in _touching(at_NP, placed, records))
        if indices:
            yield Seam(
                source=source,
                splits=tuple(splits),
                indices=indices,
                pages=records[indices[0]].page is not None,
                grouped=all(records[index].group is not None for index in indices),
            )


def _touching(
    at_NP: np.ndarray, placed: Sequence[tuple[int, Place]], records: Sequence[Record]
) -> list[int]:
    """Patches one step or less from a patch in another split."""
    steps = np.array([_step(values) for values in at_NP.T])
    found: set[int] = set()
    for first, second in cKDTree(at_NP / steps).query_pairs(1.01, p=np.inf):
        if records[placed[first][0]].split != records[placed[second][0]].split:
            found |= {first, second}
    return sorted(found)


def _step(values: np.ndarray) -> float:
    """The smallest distance of two positions on one axis; 1 where there is only one."""
    distances = np.diff(np.unique(values))
    return float(distances.min()) if distances.size else 1.0


def _is_grid(at_NP: np.ndarray) -> bool:
    """Whether bare numbers are coordinates: all multiples of a step that no counter has."""
    step = np.gcd.reduce(at_NP.astype(np.int64), axis=None)
    return len(at_NP) >= 4 and int(step) >= _MIN_STEP
