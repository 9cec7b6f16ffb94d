"""Patches of one source: neighbours in two splits share what is at the seam."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from binseg.data.origins import Place, is_grid, place_of
from binseg.types import Record

__all__ = ["Seam", "seams"]


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
    """Every patch at the seam has a group: who made them knew that they touch."""


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
        splits = sorted({str(records[index].split) for index, _ in placed})
        at_NP = np.array([place.at for _, place in placed], dtype=np.float64)
        if len(splits) < 2 or (bare and not is_grid(at_NP)):
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
