"""Images of one source, told by their names: those must stay in one split.

slide1_x0_y256   scan-r3-c4   img_003_patch_12   volume_slice_0041   tile_512_1024   patient7/09.png
patient7/slice_041   frame_0041
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.splits import parse_split
from binseg.types import Record

_GAP = r"[ _.\-]?"
_NUM = r"\d{1,9}"  # longer ones are names, such as DICOM's
_PAIRS = tuple(
    re.compile(
        rf"^(?P<source>.*?){_GAP}(?<![A-Za-z]){first}{_GAP}(?P<a>{_NUM}){_GAP}{second}{_GAP}"
        rf"(?P<b>{_NUM})",
        re.I,
    )
    for first, second in (("x", "y"), ("y", "x"), ("r(?:ow)?", "c(?:ol(?:umn)?)?"))
)
_NUMBER = re.compile(
    rf"^(?P<source>.*[A-Za-z0-9])[ _.\-](?:patch|tile|crop|chip|slice|frame|z){_GAP}(?P<a>{_NUM})$",
    re.I,
)
_SEQUENCE = re.compile(rf"^(?:(?P<source>.+)/)?(?P<word>slice|frame|z){_GAP}(?P<a>{_NUM})$", re.I)
"""Names that are grouped by folder: slices and frames are in order, tiles may be of any source."""
_BARE = re.compile(rf"^(?P<source>.*[A-Za-z0-9])[ _.\-](?P<a>{_NUM})[ _.\-](?P<b>{_NUM})$")
_COPY = re.compile(
    r"^(?P<a>.+?)(?:[._-](?:jpe?g|png|bmp|tiff?))?\.rf\.[0-9a-zA-Z]{8,}$"
    r"|^(?P<b>.+?)[ _.-]\(?(?:aug|augmented|[hv]?flip(?:ped)?|mirror(?:ed)?|rot(?:ated)?|copy)\)?"
    r"[ _.-]?\d*(?:[_.-]\d+)*$"
    r"|^(?:aug|augmented)[_.-]?\d*[_.-](?P<c>.+?)(?:_\d+_\d{3,})?$",
    re.I,
)
"""Copies of one photo: as Roboflow names them, and as scripts that augment do."""
_CASE = re.compile(rf"^(?P<source>.*[A-Za-z].*?)[ _.\-][A-Za-z]{{0,8}}[ _.\-]?{_NUM}$", re.I)
"""A case and a number in it: BraTS_003_055, p01_001, patient1-2, case01_img02, B03_site2."""
_MIN_STEP = 16  # pixels; bare numbers that don't lie multiples of such a step apart are counters
_MOST_NAMED = 0.9  # share of the names that must be those of cases
_LEAST_PLACES = 4  # fewer bare numbers may lie such steps apart by chance


FEW_SOURCES = 5  # fewer can't be dealt to three splits: then parts of a source are the groups
BLOCK_STEPS = 4  # patches a side of such a part
LEAST_FOLDERS, MOST_IN_FOLDER = 10, 60
"""Folders are patients (volumes, videos) where they are many with few images each; few folders
with many images are more likely classes, of which each split needs some."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Position of a patch; of a bare name its fellows must show whether it holds coordinates."""

    source: str
    at: tuple[int, ...]
    bare: bool = False


def place_of(id_: str) -> Place | None:
    """Read source and position out of a record's id.

    >>> place_of("train/slide1_x0_y256")
    Place(source='slide1', at=(0, 256), bare=False)
    >>> place_of("Abyssinian_12") is None
    True
    """
    name = _within_split(id_)
    for pattern in _PAIRS:
        if match := pattern.match(name):
            at = (int(match["a"]), int(match["b"]))
            # What stands before and behind the coordinates names the source.
            return Place(source=match["source"] + name[match.end() :], at=at)
    if match := _NUMBER.match(name):
        return Place(source=match["source"], at=(int(match["a"]),))
    if match := _SEQUENCE.match(id_):
        # The split's folder stays: train/1 and test/1 may each have been numbered anew.
        return Place(source=match["source"] or match["word"], at=(int(match["a"]),))
    if match := _BARE.match(name):
        return Place(source=match["source"], at=(int(match["a"]), int(match["b"])), bare=True)
    return None


def _within_split(id_: str) -> str:
    """A record's name in its split, where a split's folder begins the id."""
    first, slash, rest = id_.partition("/")
    return rest if slash and parse_split(first) is not None else id_


def is_grid(at_NP: np.ndarray) -> bool:
    """Tell whether a source's bare numbers are coordinates, which lie steps apart."""
    return len(at_NP) >= _LEAST_PLACES and _have_step(_from_smallest(at_NP))


def _from_smallest(at_NP: np.ndarray) -> np.ndarray:
    # Coordinates may begin at 1.
    return np.asarray(at_NP - at_NP.min(axis=0)).astype(np.int64)


def _have_step(away_NP: np.ndarray) -> bool:
    return int(np.gcd.reduce(away_NP, axis=None)) >= _MIN_STEP


def with_groups(
    records: Sequence[Record], config: DataConfig
) -> tuple[tuple[Record, ...], str | None]:
    """Group images of one source that are dealt anew, where names tell and nobody did; say it."""
    if config.group == "none":
        return tuple(records), None
    rows = dealt_anew(records, config.split.method)
    members = _folders(records, rows)
    if config.group == "folder":
        if len(members) < 2:
            why = "the images don't lie in several folders" if rows else "their split is given"
            return tuple(records), f"data.group: folder changes nothing: {why}"
        told = f"each of {len(members)} folders ({name_some(sorted(members))}) stays in one split"
        return _grouped(records, _by_member(members)), told
    if any(record.group is not None or record.page is not None for record in records):
        return tuple(records), None
    if copies := by_copy(records, rows):
        photos = sorted(set(copies.values()))
        told = f"{len(copies)} images are copies of {counted(len(photos), 'photo', 'photos')}"
        some = f"by their names ({name_some(photos)}), which stay in one split each"
        return _grouped(records, copies), f"{told} {some}"
    sizes = [len(rows) for rows in members.values()]
    are_patients = len(sizes) >= LEAST_FOLDERS and 2 <= np.median(sizes) <= MOST_IN_FOLDER
    of_patients = _by_member(members) if are_patients else {}
    of_places = _by_place(records, rows, config.page_group)
    for group_of in (of_places, of_patients, by_case(records, rows)):
        groups = set(group_of.values())
        if 2 <= len(groups) < len(group_of):
            parts = counted(len(groups), "source or part of one", "sources or parts of one")
            told = f"{len(group_of)} images come from {parts} by their names"
            way_on = "which stay in one split each; data.group: none deals images singly"
            return _grouped(records, group_of), f"{told} ({name_some(sorted(groups))}), {way_on}"
    # That folders are torn is right for classes alone.
    sizes = [size for size in sizes if size > 1]
    return tuple(records), None if len(sizes) < 2 else (
        f"{len(sizes)} folders of about {np.median(sizes):.0f} images are split one by one; if "
        "each is a patient or a video, say --set data.group=folder"
    )


def dealt_anew(records: Sequence[Record], method: str) -> list[int]:
    """List the records that get their split from us, of which groups must not be torn."""
    if method in {"ratio", "block"}:
        return list(range(len(records)))
    if method == "file":
        return []
    if method == "kfold":
        return [row for row, record in enumerate(records) if record.split != "test"]
    if any(record.split == "val" for record in records):
        return []
    return [row for row, record in enumerate(records) if record.split in {None, "train"}]


def _grouped(records: Sequence[Record], group_of: Mapping[int, str]) -> tuple[Record, ...]:
    numbered = enumerate(records)
    return tuple(replace(one, group=group_of.get(row, one.group)) for row, one in numbered)


def _by_place(records: Sequence[Record], rows: Sequence[int], in_block: int) -> dict[int, str]:
    """Group patches and slices by their source; of few sources, by parts of them."""
    members: dict[tuple[str, bool, int], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for row in rows:
        place = place_of(records[row].id)
        if place is not None:
            members[place.source, place.bare, len(place.at)].append((row, place.at))
    at_NP_of = {key: np.array([at for _, at in placed]) for key, placed in members.items()}
    # Sources of few patches each show together what none of them shows alone.
    few = [at_NP for (_, bare, _), at_NP in at_NP_of.items() if bare and len(at_NP) < _LEAST_PLACES]
    away_NP = np.concatenate([_from_smallest(at_NP) for at_NP in few] or [np.zeros((0, 2), int)])
    are_few_grids = int(away_NP.any(axis=1).sum()) >= _LEAST_PLACES and _have_step(away_NP)
    sources = [
        (key[0], placed)
        for key, placed in members.items()
        if not key[1] or is_grid(at_NP_of[key]) or (are_few_grids and len(placed) < _LEAST_PLACES)
    ]
    if len(sources) >= FEW_SOURCES:
        return {row: source for source, placed in sources for row, _ in placed}
    parted = [(source, _parts(placed, in_block)) for source, placed in sources]
    return {row: f"{source} {part}" for source, parts in parted for row, part in parts.items()}


def by_case(records: Sequence[Record], rows: Sequence[int]) -> dict[int, str]:
    """Group images of a case, which has a number of its own, where most names have one more."""
    names = {row: _within_split(records[row].id) for row in rows}
    matches = {row: match for row, name in names.items() if (match := _CASE.match(name))}
    sources = {row: match["source"] for row, match in matches.items()}
    cases = {row: one for row, one in sources.items() if re.search(r"\d", one.rpartition("/")[2])}
    sizes = [*Counter(cases.values()).values()]
    are_cases = len(sizes) >= FEW_SOURCES and np.median(sizes) >= 2
    return cases if are_cases and len(cases) >= _MOST_NAMED * len(rows) else {}


def by_copy(records: Sequence[Record], rows: Sequence[int]) -> dict[int, str]:
    """Group copies of one photo, which names tell, with the photo itself."""
    names = {row: _within_split(records[row].id) for row in rows}
    matches = [(row, match) for row, name in names.items() if (match := _COPY.match(name))]
    source_of = {row: match["a"] or match["b"] or match["c"] for row, match in matches}
    photos = set(source_of.values())
    source_of |= {row: name for row, name in names.items() if name in photos}
    num_of = Counter(source_of.values())
    return {row: source for row, source in source_of.items() if num_of[source] > 1}


def _parts(placed: Sequence[tuple[int, tuple[int, ...]]], in_block: int) -> dict[int, str]:
    """Name the part of a source that each patch lies in: a square, or a run of slices."""
    at_NP = np.array([at for _, at in placed])
    if at_NP.shape[1] == 1:
        ranks = np.argsort(np.argsort(at_NP[:, 0], kind="stable"), kind="stable")
        names = [f"block{rank // in_block:04d}" for rank in ranks.tolist()]
    else:
        steps = [np.unique(values, return_inverse=True)[1] // BLOCK_STEPS for values in at_NP.T]
        names = [f"part{first}-{second}" for first, second in zip(*steps, strict=True)]
    return {row: name for (row, _), name in zip(placed, names, strict=True)}


def _folders(records: Sequence[Record], rows: Sequence[int]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if folder := _within_split(records[row].id).rpartition("/")[0]:
            members[folder].append(row)
    return members


def _by_member(members: Mapping[str, Sequence[int]]) -> dict[int, str]:
    return {row: folder for folder, rows in members.items() for row in rows}
