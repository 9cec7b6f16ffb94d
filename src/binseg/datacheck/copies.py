"""Images that are the same or nearly so: linked once a process, and kept in one split."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import SPLITS, Dataset, counted, name_some
from binseg.data.origins import dealt_anew
from binseg.datacheck.near_duplicates import clusters_of, near_pairs, reduced, squares_of
from binseg.errors import ImageError
from binseg.imageio import read_image
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.types import Record

Pairs = list[tuple[int, int]]
MOST_ALIKE = 0.5
"""Share of the images above which one cluster of them is a video, which can't be dealt whole."""
_Version = tuple[Path, int | None, int, int]
_linked: dict[tuple[_Version, ...], Pairs] = {}
"""The pairs of the latest data set: planning, training and each of its folds ask for them."""


class _Glance(NamedTuple):
    digest: bytes
    thumb_SS: np.ndarray
    core_TT: np.ndarray


def pairs_of(records: Sequence[Record], *, progress: Progress = SILENT) -> Pairs:
    """Find pairs of images that are the same or nearly the same, by their index; all are decoded.

    Two that belong together anyway (pages of a stack, members of a group) are left out, as are
    images that can't be read or show a single grey level.
    """
    versions = tuple(map(_version, records))
    if versions not in _linked:
        glances = [*track(map_ordered(_glance_at, records), progress=progress,
                          label="looking for copies", total=len(records))]  # fmt: skip
        rows = [row for row, one in enumerate(glances) if one is not None and np.ptp(one.thumb_SS)]
        seen = [one for row in rows if (one := glances[row]) is not None]
        found = _equal([one.digest for one in seen])
        if seen:
            thumbs_NSS = np.stack([one.thumb_SS for one in seen])
            cores_NTT = np.stack([one.core_TT for one in seen])
            found += near_pairs(thumbs_NSS, cores_NTT, progress=progress)
        _linked.clear()
        _linked[versions] = [(rows[first], rows[second]) for first, second in sorted({*found})]
    return [(a, b) for a, b in _linked[versions] if not _belong(records[a], records[b])]


def _version(record: Record) -> _Version:
    try:
        facts = record.image_path.stat()
    except OSError:
        return record.image_path, record.page, 0, 0
    return record.image_path, record.page, facts.st_mtime_ns, facts.st_size


def _glance_at(record: Record) -> _Glance | None:
    try:
        image_HWC = read_image(record.image_path, page=record.page)
    except ImageError:
        return None  # reading the samples will say what is wrong with it
    digest = blake2b(f"{image_HWC.shape} {image_HWC.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image_HWC).data)
    return _Glance(digest.digest(), *squares_of(reduced(image_HWC)))


def _equal(digests: Sequence[bytes]) -> Pairs:
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        rows_of[digest].append(row)
    return [pair for rows in rows_of.values() for pair in pairwise(rows)]


def _belong(first: Record, second: Record) -> bool:
    """Tell whether two may look alike: pages of a stack, or a group."""
    if first.page is not None and first.image_path == second.image_path:
        return True
    return first.group is not None and first.group == second.group


def keep_together(dataset: Dataset, config: DataConfig, *, progress: Progress = SILENT) -> Dataset:
    """Group images that are nearly the same where binseg draws the split, and say so.

    Groups that share such images become one, unless most images would be in it.
    """
    rows = dealt_anew(dataset.records, config.split.method)
    if config.group == "none" or len(rows) < 2:
        return dataset
    records = [dataset.records[row] for row in rows]
    if not (pairs := pairs_of(records, progress=progress)):
        return dataset
    alike = clusters_of(len(rows), pairs)
    num, few = sum(map(len, alike)), name_some([records[one].id for one in alike[0]], limit=3)
    told = f"{num} images are the same as others, or nearly so ({few})"
    members = clusters_of(len(rows), [*pairs, *_chains(records)])
    num_apart = len(rows) - sum(map(len, members)) + len(members)
    if max(map(len, members)) > MOST_ALIKE * len(rows) or num_apart < len(SPLITS):
        note = f"{told}, too many for one split: is it a video? Then take data.split.method=block"
    else:
        note = f"{told}: {counted(len(alike), 'group', 'groups')}, each in one split"
        linked = {row for pair in pairs for row in pair}
        group_of = {
            rows[row]: f"like {records[cluster[0]].id}"
            for cluster in members
            if linked & {*cluster}
            for row in cluster
        }
        grouped = (
            replace(one, group=group_of.get(row, one.group))
            for row, one in enumerate(dataset.records)
        )
        dataset = replace(dataset, records=tuple(grouped))
    progress.say(note)
    return replace(dataset, notes=(*dataset.notes, note))


def _chains(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Link the members of each group, one to the next."""
    last: dict[str, int] = {}
    for row, record in enumerate(records):
        if record.group is not None:
            if record.group in last:
                yield last[record.group], row
            last[record.group] = row
