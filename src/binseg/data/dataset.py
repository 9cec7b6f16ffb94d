"""A dataset: its records, how its masks are read, and what was found out on the way."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from binseg.data.masks import MaskRule
from binseg.errors import DataError
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.storage import sha256_of
from binseg.types import Record, Split

T = TypeVar("T")
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def name_some(names: Iterable[object], *, limit: int = 5) -> str:
    """Write the first few names and how many more there are, for a one-line message.

    >>> name_some(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    known = [str(name) for name in names]
    rest = len(known) - limit
    shown = ", ".join(known[:limit])
    return f"{shown} and {rest} more" if rest > 0 else shown


def spread(items: Sequence[T], num: int) -> list[T]:
    """Take up to `num` items, evenly over the list.

    >>> spread("abcdefg", 3), spread([], 3), spread([1, 2], -1)
    (['a', 'd', 'g'], [], [])
    """
    places = np.linspace(0, len(items) - 1, max(0, min(num, len(items)))).round().astype(int)
    return [items[place] for place in places]


def counted(num: int, one: str, several: str) -> str:
    """Write a number with the words that agree with it.

    >>> counted(1, "mask has", "masks have"), counted(2, "mask has", "masks have")
    ('1 mask has', '2 masks have')
    """
    return f"{num} {one if num == 1 else several}"


def hash_files(paths: Iterable[Path], progress: Progress = SILENT) -> dict[Path, str]:
    """Give the SHA-256 of each file, read once in a process; DataError if it can't be read."""
    ordered = sorted({*paths})
    hashed = map_ordered(_hash, ordered)
    watched = track(hashed, progress=progress, label="looking at files", total=len(ordered))
    return dict(zip(ordered, watched, strict=True))


def _hash(path: Path) -> str:
    with suppress(OSError):
        facts = path.stat()
        return _hash_of_version(path, facts.st_mtime_ns, facts.st_size)
    return sha256_of(path)  # says what is wrong


@cache
def _hash_of_version(path: Path, *_: int) -> str:
    return sha256_of(path)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All records of one place, with the one rule that reads their masks."""

    kind: str  # a key of `SOURCES`
    root: Path
    records: tuple[Record, ...]
    rule: MaskRule
    notes: tuple[str, ...] = ()  # sentences for the user: what was taken for what, what was ignored

    def __post_init__(self) -> None:
        num_of = Counter(record.id for record in self.records)
        twice = [id_ for id_, num in num_of.items() if num > 1]
        if twice:
            told = f"{counted(len(twice), 'name stands', 'names stand')} for more than one image"
            raise DataError(
                f"{self.root}: {told} ({name_some(twice)}); give each image a name of its own"
            )

    def of_split(self, split: str) -> tuple[Record, ...]:
        """Give the records of a split, in their order; DataError if none, naming those that are."""
        chosen = tuple(record for record in self.records if record.split == split)
        if not chosen:
            sizes = {name: sum(r.split == name for r in self.records) for name in SPLITS}
            there = ", ".join(f"{name} ({num})" for name, num in sizes.items() if num)
            raise DataError(
                f"{self.root}: there is no split {split!r}; "
                + (f"there are {there}" if there else "the images have not been split yet")
            )
        return chosen

    def only(self, split: str) -> "Dataset":
        """Leave out the other splits; raises as `of_split`."""
        return replace(self, records=self.of_split(split))

    def with_splits(self, split_of: Mapping[str, Split | None]) -> "Dataset":
        """Put the records named into other splits."""
        records = (replace(one, split=split_of.get(one.id, one.split)) for one in self.records)
        return replace(self, records=tuple(records))

    def with_truth(self) -> "Dataset":
        """Leave out the images that have no mask: they can neither teach nor judge."""
        kept = tuple(r for r in self.records if r.mask_path is not None or r.shapes is not None)
        return self if len(kept) == len(self.records) else replace(self, records=kept)

    def fingerprint(self) -> str:
        """Hash ids and file contents (SHA-256): equal for equal data, wherever and in any order."""
        content_of = hash_files(path for record in self.records for path in record.paths)
        whole = hashlib.sha256()
        for record in sorted(self.records, key=lambda r: r.id):
            mask = "+".join(content_of[path] for path in record.mask_paths)
            rings = [shape.rings for shape in record.shapes] if record.shapes is not None else None
            image = "+".join(content_of[one] for one in (record.image_path, *record.further_images))
            facts = (record.id, image, mask, record.page, rings)
            whole.update(repr(facts).encode())
        return whole.hexdigest()

    def contents(self) -> dict[str, str]:
        """Tell each image by its file's SHA-256 (and page), whatever it is called, by id."""
        hash_of = hash_files(record.image_path for record in self.records)
        return {
            record.id: hash_of[record.image_path]
            + ("" if record.page is None else f"#{record.page}")
            for record in self.records
        }
