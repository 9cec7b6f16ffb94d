"""The corrections of `clean` for masks that are too large for memory: exact, band by band.

Objects and holes are numbered in each band alone; where bands meet, numbers that touch belong
together. Areas of whole objects are known after one look at all bands, and the bands are corrected
in a second one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64

from binseg.errors import DataError
from binseg.postprocess.steps import PostProcessing

__all__ = ["Bands", "clean_bands"]

Bands = Callable[[], Iterator[Bool[np.ndarray, "h W"]]]
"""Gives the bands of a mask from the top down, anew with each call and the same ones each time."""
_MOST_PARTS = 20_000_000
"""Numbered parts of objects in all bands; more would fill the memory, and mean noise."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What is known of the numbered parts of all bands, background (0 in each band) left out."""

    starts: list[int]
    """Of each band: how many parts are in the bands above."""
    areas: Int64[np.ndarray, " parts"]
    """Of the whole object to which the part belongs."""
    firsts: Int64[np.ndarray, " parts"]
    """The first part of that object."""
    at_edge: Bool[np.ndarray, " parts"]
    """Whether that object reaches the image's edge."""


def clean_bands(bands: Bands, postprocessing: PostProcessing) -> Bands:
    """Correct a mask as `clean` does: fill small holes, drop small objects, keep the largest.

    Args:
        bands: the mask; looked through several times.
        postprocessing: what to do.

    Raises:
        DataError: more objects than fit into memory, when the result is looked through.
    """
    if postprocessing.fill_holes:
        bands = _filled(bands, postprocessing.fill_holes)
    if postprocessing.min_area > 1 or postprocessing.largest_only:
        bands = _kept(bands, postprocessing)
    return bands


def _filled(bands: Bands, most: int) -> Bands:
    def filled() -> Iterator[Bool[np.ndarray, "h W"]]:
        parts = _survey(lambda: (~one for one in bands()), diagonal=False)
        small = (parts.areas <= most) & ~parts.at_edge
        for mask_HW, start in zip(bands(), parts.starts, strict=True):
            labels_HW, num = _label(~mask_HW, diagonal=False)
            yield mask_HW | np.concatenate([[False], small[start : start + num]])[labels_HW]

    return filled


def _kept(bands: Bands, postprocessing: PostProcessing) -> Bands:
    def kept() -> Iterator[Bool[np.ndarray, "h W"]]:
        parts = _survey(bands, diagonal=True)
        keep = parts.areas >= postprocessing.min_area
        if postprocessing.largest_only and len(keep):
            keep &= parts.firsts == parts.firsts[np.argmax(parts.areas)]
        for mask_HW, start in zip(bands(), parts.starts, strict=True):
            labels_HW, num = _label(mask_HW, diagonal=True)
            yield np.concatenate([[False], keep[start : start + num]])[labels_HW]

    return kept


def _survey(bands: Bands, *, diagonal: bool) -> _Parts:
    """Number the parts of every band, and join those that touch across the borders."""
    starts, areas, edges, pairs = [], [], [], []
    total = 0
    above: Int64[np.ndarray, " W"] | None = None
    for mask_HW in bands():
        labels_HW, num = _label(mask_HW, diagonal=diagonal)
        if total + num > _MOST_PARTS:
            raise DataError(
                f"the mask falls into more than {_MOST_PARTS / 1e6:.0f} million pieces, too many "
                "to clean up; choose another threshold, or leave the post-processing out"
            )
        areas.append(np.bincount(labels_HW.ravel(), minlength=num + 1)[1:])
        edge = np.zeros(num + 1, np.bool_)
        edge[labels_HW[:, 0]] = edge[labels_HW[:, -1]] = True
        if above is None:
            edge[labels_HW[0]] = True
        edges.append(edge[1:])
        top = np.where(labels_HW[0] > 0, labels_HW[0].astype(np.int64) + (total - 1), -1)
        if above is not None:
            pairs.append(_touching(above, top, diagonal=diagonal))
        starts.append(total)
        above = np.where(labels_HW[-1] > 0, labels_HW[-1].astype(np.int64) + (total - 1), -1)
        total += num
    if above is not None:  # the last row of the last band
        edges[-1][above[above >= 0] - starts[-1]] = True
    return _joined(starts, areas, edges, pairs, total)


def _joined(
    starts: list[int],
    areas: list[Int64[np.ndarray, " _"]],
    edges: list[Bool[np.ndarray, " _"]],
    pairs: list[Int64[np.ndarray, "_ 2"]],
    total: int,
) -> _Parts:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if total == 0:
        none = np.zeros(0, np.int64)
        return _Parts(starts=starts, areas=none, firsts=none, at_edge=none > 0)
    every = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = coo_array((np.ones(len(every), np.bool_), (every[:, 0], every[:, 1])), (total, total))
    num, of_part = connected_components(graph, directed=False)
    whole = np.bincount(of_part, np.concatenate([[], *areas]), num).astype(np.int64)
    at_edge = np.bincount(of_part, np.concatenate([[], *edges]), num) > 0
    firsts = np.full(num, total, np.int64)
    np.minimum.at(firsts, of_part, np.arange(total))
    return _Parts(
        starts=starts, areas=whole[of_part], firsts=firsts[of_part], at_edge=at_edge[of_part]
    )


def _touching(
    above: Int64[np.ndarray, " W"], below: Int64[np.ndarray, " W"], *, diagonal: bool
) -> Int64[np.ndarray, "pairs 2"]:
    """Which parts of two neighbouring rows (-1 for none) touch, each pair once."""
    width = len(above)
    found = [np.stack([above, below], axis=1)]
    if diagonal:
        found.append(np.stack([above[: width - 1], below[1:]], axis=1))
        found.append(np.stack([above[1:], below[: width - 1]], axis=1))
    every = np.concatenate(found)
    return np.unique(every[(every >= 0).all(axis=1)], axis=0)


def _label(
    mask_HW: Bool[np.ndarray, "h W"], *, diagonal: bool
) -> tuple[Int32[np.ndarray, "h W"], int]:
    """Number the connected parts from 1, in order of their first pixels."""
    from scipy import ndimage  # its import would slow every start

    structure = np.ones((3, 3), np.bool_) if diagonal else None
    labels_HW = np.empty(mask_HW.shape, np.int32)
    num = ndimage.label(mask_HW, structure=structure, output=labels_HW)
    return labels_HW, int(num)
