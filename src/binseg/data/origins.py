"""Which pictures come from one source, told by their names: those must stay in one split.

slide1_x0_y256   scan-r3-c4   img_003_patch_12   volume_slice_0041   tile_512_1024   patient7/09.png
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from binseg.data.dataset import counted, name_some
from binseg.data.splits import parse_split
from binseg.structures import Record

__all__ = ["Place", "is_grid", "place_of", "with_groups"]

_GAP = r"[ _.\-]?"
_NUM = r"\d{1,9}"  # longer ones are names, such as DICOM's
_PAIRS = (
    re.compile(
        rf"^(?P<source>.*?){_GAP}(?<![A-Za-z])x{_GAP}(?P<a>{_NUM}){_GAP}y{_GAP}(?P<b>{_NUM})",
        re.I,
    ),
    re.compile(
        rf"^(?P<source>.*?){_GAP}(?<![A-Za-z])y{_GAP}(?P<a>{_NUM}){_GAP}x{_GAP}(?P<b>{_NUM})",
        re.I,
    ),
    re.compile(
        rf"^(?P<source>.*?){_GAP}(?<![A-Za-z])r(?:ow)?{_GAP}(?P<a>{_NUM}){_GAP}"
        rf"c(?:ol(?:umn)?)?{_GAP}(?P<b>{_NUM})",
        re.I,
    ),
)
_NUMBER = re.compile(
    rf"^(?P<source>.*[A-Za-z0-9])[ _.\-](?:patch|tile|crop|chip|slice|frame|z){_GAP}(?P<a>{_NUM})$",
    re.I,
)
_BARE = re.compile(rf"^(?P<source>.*[A-Za-z0-9])[ _.\-](?P<a>{_NUM})[ _.\-](?P<b>{_NUM})$")
_MIN_STEP = 16  # pixels; bare numbers that aren't multiples of such a step are no coordinates


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a patch sits: in which source, and at which numbers."""

    source: str
    at: tuple[int, ...]
    bare: bool = False
    """The name only holds two numbers; whether they are coordinates, its fellows must show."""


FEW_SOURCES = 5
"""Fewer can't be dealt to three splits: then parts of a source are the groups."""
BLOCK_STEPS = 4
"""Patches a side of such a part."""
LEAST_FOLDERS, MOST_IN_FOLDER = 10, 60
"""Folders are patients (volumes, films) where they are many with few pictures each; few folders
with many pictures are more likely classes, of which each split needs some."""


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


def is_grid(at_NP: np.ndarray) -> bool:
    """Whether bare numbers are coordinates: all multiples of a step that no counter has."""
    step = np.gcd.reduce(at_NP.astype(np.int64), axis=None)
    return len(at_NP) >= 4 and int(step) >= _MIN_STEP


def with_groups(
    records: Sequence[Record], *, in_block: int
) -> tuple[tuple[Record, ...], str | None]:
    """Group the pictures of one source, where their names tell it and nobody has grouped them.

    Args:
        records: with the splits that the data brings; pictures that have one keep it, so that only
            those are grouped of which some may become validation or test.
        in_block: consecutive pictures that make a group where there are only few sources.

    Returns:
        The records, and a sentence for the user where something was grouped.
    """
    has_own = any(r.group is not None or r.page is not None for r in records)
    free = [row for row, r in enumerate(records) if r.split in {None, "train"}]
    if has_own or any(record.split == "val" for record in records):
        return tuple(records), None
    group_of = _by_place(records, free, in_block) or _by_folder(records, free)
    groups = set(group_of.values())
    if len(groups) < 2 or len(groups) == len(group_of):
        return tuple(records), None
    grouped = tuple(
        replace(record, group=group_of[row]) if row in group_of else record
        for row, record in enumerate(records)
    )
    parts = counted(len(groups), "source or part of one", "sources or parts of one")
    return grouped, (
        f"{len(group_of)} pictures come from {parts} by their names ({name_some(sorted(groups))}), "
        "which stay in one split each; data.group: none deals pictures singly"
    )


def _by_place(records: Sequence[Record], rows: Sequence[int], in_block: int) -> dict[int, str]:
    """Group patches and slices by their source; of few sources, by parts of them."""
    members: dict[tuple[str, bool, int], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for row in rows:
        place = place_of(records[row].id)
        if place is not None:
            members[place.source, place.bare, len(place.at)].append((row, place.at))
    sources = {
        (source, num): placed
        for (source, bare, num), placed in members.items()
        if not bare or is_grid(np.array([at for _, at in placed]))
    }
    if len(sources) >= FEW_SOURCES:
        return {row: source for (source, _), placed in sources.items() for row, _ in placed}
    return {
        row: f"{source} {part}"
        for (source, _), placed in sources.items()
        for row, part in _parts(placed, in_block).items()
    }


def _parts(placed: Sequence[tuple[int, tuple[int, ...]]], in_block: int) -> dict[int, str]:
    """Name the part of a source that each patch lies in: a square, or a run of slices."""
    at_NP = np.array([at for _, at in placed])
    if at_NP.shape[1] == 1:
        ranks = np.argsort(np.argsort(at_NP[:, 0], kind="stable"), kind="stable")
        return {
            row: f"block{rank // in_block:04d}"
            for (row, _), rank in zip(placed, ranks.tolist(), strict=True)
        }
    places = [np.unique(values, return_inverse=True)[1] // BLOCK_STEPS for values in at_NP.T]
    return {
        row: f"part{first}-{second}"
        for (row, _), first, second in zip(placed, *(each.tolist() for each in places), strict=True)
    }


def _by_folder(records: Sequence[Record], rows: Sequence[int]) -> dict[int, str]:
    """Group by folder, where these are patients rather than classes."""
    members: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        folder = records[row].id.rpartition("/")[0]
        if folder:
            members[folder].append(row)
    sizes = [len(each) for each in members.values()]
    if len(sizes) < LEAST_FOLDERS or not 2 <= np.median(sizes) <= MOST_IN_FOLDER:
        return {}
    return {row: folder for folder, each in members.items() for row in each}
