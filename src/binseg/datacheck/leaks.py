"""The same content in two places: copies, torn groups, neighbouring patches, shared masks.

Each finder takes the `Evidence` and yields hits: the records concerned, and one sentence.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from binseg.data.dataset import name_some
from binseg.data.origins import Place, is_grid, place_of
from binseg.datacheck.looks import Evidence, Look
from binseg.datacheck.near_duplicates import alike, clusters_of
from binseg.errors import DataError
from binseg.imageio import read_image
from binseg.parallel import map_ordered
from binseg.types import Record

Hit = tuple[Sequence[Record], str]
"""The records that a finding names, and what is wrong with them."""
Finder = Callable[[Evidence], Iterable[Hit]]


def copies(code: str) -> Finder:
    """Make a finder of images with equal pixels: `leak`, `contradiction` or `duplicate`."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        same: dict[str, list[Look]] = defaultdict(list)
        for look in evidence.looks:
            same[look.image_hash].append(look)
        for twins in same.values():
            # Tiles of one colour (no data, blank glass) are alike without being copies.
            if len(twins) < 2 or (_is_blank(twins[0].thumb_SS) and _shows_nothing(twins[0].record)):
                continue
            records = [look.record for look in twins]
            splits = _splits(records)
            often = "twice" if len(twins) == 2 else f"{len(twins)} times"
            kind, text = "duplicate", f"one image is there {often}"
            if len(splits) > 1:
                kind, text = "leak", _leak_text(splits)
            elif len({look.mask_hash for look in twins}) > 1:
                kind, text = "contradiction", "one image has different masks under different names"
            if kind == code:
                yield records, text

    return find


def near_copies(*, across: bool) -> Finder:
    """Make a finder of images that differ in size, encoding, a flip or a quarter turn alone.

    Args:
        across: whether images in several splits are meant, or those within one.
    """

    def find(evidence: Evidence) -> Iterator[Hit]:
        for members in evidence.near_copies:
            records = [look.record for look in members]
            splits = _splits(records)
            if (len(splits) > 1) == across:
                where = f" in {' and '.join(splits)}: scores on them flatter" if across else ""
                yield records, f"{len(records)} images are nearly the same{where}"

    return find


def torn_groups(evidence: Evidence) -> Iterator[Hit]:
    """Find groups, which must stay whole, that are in more than one split."""
    members: dict[str, list[Record]] = defaultdict(list)
    for record in evidence.dataset.records:
        if record.group is not None:
            members[record.group].append(record)
    for group, torn in members.items():
        splits = _splits(torn)
        if len(splits) > 1:
            yield torn, f"group {group} is in {' and '.join(splits)}"


def at_seams(kind: str) -> Finder:
    """Make a finder of patches beside a patch of the same source in another split.

    Args:
        kind: `pages` of a stack, `patches` by their names, or such patches that are `grouped`: each
            has a group, so that whoever made them knew that they touch.
    """

    def find(evidence: Evidence) -> Iterator[Hit]:
        records = evidence.dataset.records
        found = [seam for seam in seams(records) if seam.kind == kind]
        at_seam = [records[index] for seam in found for index in seam.indices]
        num, sources = len(at_seam), name_some((seam.source for seam in found), limit=3)
        text = f"{num} patches of {sources} touch a patch of the same source in another split"
        if kind == "pages":
            text = f"{num} pages lie next to a page in another split, which looks the same"
        if at_seam:
            yield at_seam, text

    return find


def shared_masks(evidence: Evidence) -> Iterator[Hit]:
    """Find one mask under several images: paired by mistake, or copied instead of drawn."""
    same: dict[str, list[Look]] = defaultdict(list)
    for look in evidence.looks:
        if look.mask_hash is not None and look.foreground not in (None, 0.0, 1.0):
            same[look.mask_hash].append(look)
    for sharers in same.values():
        if len({look.image_hash for look in sharers}) > 1 and not _look_alike(sharers):
            text = f"{len(sharers)} different images have exactly the same mask"
            yield [look.record for look in sharers], text


def _look_alike(looks: Sequence[Look]) -> bool:
    """Tell whether these are one image: a re-encoded copy rightly has the same mask."""
    pairs = alike(np.stack([look.thumb_SS for look in looks]))
    return clusters_of(len(looks), pairs) == [tuple(range(len(looks)))]


def identical_files(evidence: Evidence) -> Iterator[Hit]:
    """Find image files equal byte by byte in two splits; only files of one length are read."""
    by_size: dict[int, list[Record]] = defaultdict(list)
    for record in evidence.dataset.records:
        if record.page is None and record.split is not None and record.image_path.is_file():
            by_size[record.image_path.stat().st_size].append(record)
    doubtful = [one for alike in by_size.values() if len(_splits(alike)) > 1 for one in alike]
    same: dict[str, list[Record]] = defaultdict(list)
    hashes = map_ordered(_hash_file, [record.image_path for record in doubtful])
    for record, digest in zip(doubtful, hashes, strict=True):
        same[digest].append(record)
    for twins in same.values():
        splits = _splits(twins)
        if len(splits) > 1 and not _shows_nothing(twins[0]):
            yield twins, _leak_text(splits)


def _leak_text(splits: Sequence[str]) -> str:
    return f"one image is in {' and '.join(splits)}: scores on it mean nothing"


def _splits(records: Iterable[Record]) -> list[str]:
    return sorted({record.split for record in records if record.split is not None})


def _is_blank(pixels: np.ndarray) -> bool:
    return bool(pixels.min() == pixels.max())


def _shows_nothing(record: Record) -> bool:
    """Tell whether an image has a single colour."""
    try:
        image_HWC = read_image(record.image_path, page=record.page)
    except DataError:
        return False  # reading the samples will say what is wrong with it
    return all(_is_blank(channel) for channel in np.moveaxis(image_HWC, 2, 0))


def _hash_file(path: Path) -> str:
    try:
        return blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return str(path)  # equal to nothing; reading the samples will say what is wrong with it


class Seam(NamedTuple):
    """One source whose patches lie in more than one split."""

    source: str
    indices: tuple[int, ...]
    """The records that have a neighbour in another split."""
    kind: str
    """pages, patches or grouped, as `at_seams` takes it."""


def seams(records: Sequence[Record]) -> Iterator[Seam]:
    """Find the sources that are in more than one split, with the patches that touch across."""
    members: dict[tuple[str, bool, int], list[tuple[int, Place]]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.page is not None:
            place: Place | None = Place(source=str(record.image_path), at=(record.page,))
        else:
            place = place_of(record.id)
        if place is not None and record.split is not None:
            members[place.source, place.bare, len(place.at)].append((index, place))
    for (source, bare, _), placed in members.items():
        at_NP = np.array([place.at for _, place in placed], dtype=np.float64)
        if len(_splits(records[index] for index, _ in placed)) < 2 or (bare and not is_grid(at_NP)):
            continue
        indices = tuple(placed[n][0] for n in _touching(at_NP, placed, records))
        if indices:
            is_grouped = all(records[index].group is not None for index in indices)
            kind = "grouped" if is_grouped else "patches"
            yield Seam(source, indices, "pages" if records[indices[0]].page is not None else kind)


def _touching(
    at_NP: np.ndarray, placed: Sequence[tuple[int, Place]], records: Sequence[Record]
) -> list[int]:
    """List the patches that are one step or less from a patch in another split."""
    steps = np.array([_step(values) for values in at_NP.T])
    found: set[int] = set()
    for first, second in cKDTree(at_NP / steps).query_pairs(1.01, p=np.inf):
        if records[placed[first][0]].split != records[placed[second][0]].split:
            found |= {first, second}
    return sorted(found)


def _step(values: np.ndarray) -> float:
    """Return the smallest distance of two positions on one axis; 1 where there is only one."""
    distances = np.diff(np.unique(values))
    return float(distances.min()) if distances.size else 1.0
