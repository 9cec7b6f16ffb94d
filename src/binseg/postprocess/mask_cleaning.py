"""The one place where probabilities become a mask: the threshold, then post-processing.

`segment` does it for an image in memory. `clean_bands` cleans masks that are too large for memory,
exactly, band by band: objects and holes are numbered in each band alone, and where bands meet,
numbers that touch belong together. Areas of whole objects are known after one look at all bands;
a second one cleans them.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from binseg.errors import DataError, UsageError

Bands = Callable[[], Iterator[Bool[np.ndarray, "h W"]]]
"""Gives the bands of a mask from the top down, anew with each call and the same ones each time."""
_MOST_PARTS = 20_000_000
"""Numbered parts of objects in all bands; more would fill the memory, and mean noise."""


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Corrections of a mask; areas are in pixels of the image's own size.

    Raises:
        UsageError: a negative area.
    """

    min_area: int = 0
    """Objects of fewer pixels are removed."""
    fill_holes: int = 0
    """Holes of up to so many pixels are filled."""
    largest_only: bool = False
    """Only the largest object stays; of equal ones the first by row, then column."""

    def __post_init__(self) -> None:
        for name in ("min_area", "fill_holes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} {getattr(self, name)}: give a number of pixels from 0")

    @property
    def is_empty(self) -> bool:
        """True where every mask stays as it is."""
        return self == NOTHING

    def as_dict(self) -> dict[str, int | bool]:
        """The settings as plain data."""
        return asdict(self)

    def describe(self) -> str:
        """The settings as a clause for people.

        >>> PostProcessing(min_area=50, largest_only=True).describe()
        'objects below 50 pixels removed, the largest object alone'
        """
        parts = {
            f"objects below {self.min_area} pixels removed": self.min_area,
            f"holes of up to {self.fill_holes} pixels filled": self.fill_holes,
            "the largest object alone": self.largest_only,
        }
        return ", ".join(text for text, is_on in parts.items() if is_on)


NOTHING = PostProcessing()
"""Post-processing that corrects nothing."""


def above(
    probability: Float32[np.ndarray, "*shape"], threshold: float
) -> Bool[np.ndarray, "*shape"]:
    """Tell where the probability is greater than the threshold; equal is background."""
    return np.asarray(probability > threshold)


def segment(
    probability_HW: Float32[np.ndarray, "H W"], threshold: float, postprocessing: PostProcessing
) -> Bool[np.ndarray, "H W"]:
    """Cut a map of probabilities at the threshold, and clean the mask."""
    return clean(above(probability_HW, threshold), postprocessing)


def clean(
    mask_HW: Bool[np.ndarray, "H W"], postprocessing: PostProcessing
) -> Bool[np.ndarray, "H W"]:
    """Fill small holes, then remove small objects, then keep the largest, in a copy of the mask."""
    if postprocessing.is_empty:
        return mask_HW
    cleaned_HW = mask_HW.copy()
    if postprocessing.fill_holes:
        labels_HW, num = _label(~cleaned_HW, diagonal=False)
        small = np.bincount(labels_HW.ravel(), minlength=num + 1) <= postprocessing.fill_holes
        small[0] = False
        for edge in (labels_HW[0], labels_HW[-1], labels_HW[:, 0], labels_HW[:, -1]):
            small[edge] = False  # what reaches the image's edge is no hole
        cleaned_HW |= small[labels_HW]
    if postprocessing.min_area > 1 or postprocessing.largest_only:
        labels_HW, num = label_objects(cleaned_HW)
        areas = np.bincount(labels_HW.ravel(), minlength=num + 1)
        areas[0] = 0
        kept = areas >= postprocessing.min_area
        kept[0] = False
        if postprocessing.largest_only and num:
            kept &= np.arange(num + 1) == int(np.argmax(areas))
        cleaned_HW = kept[labels_HW]
    return cleaned_HW


def clean_bands(bands: Bands, postprocessing: PostProcessing) -> Bands:
    """Correct a mask, which is looked through several times, as `clean` does.

    Raises:
        DataError: more objects than fit into memory, when the result is looked through.
    """
    if postprocessing.fill_holes:
        bands = _filled(bands, postprocessing.fill_holes)
    if postprocessing.min_area > 1 or postprocessing.largest_only:
        bands = _kept(bands, postprocessing)
    return bands


def label_objects(mask_HW: Bool[np.ndarray, "H W"]) -> tuple[Int32[np.ndarray, "H W"], int]:
    """Number the objects from 1 (0 is background), and tell how many there are."""
    return _label(mask_HW, diagonal=True)


def _label(
    mask_HW: Bool[np.ndarray, "H W"], *, diagonal: bool
) -> tuple[Int32[np.ndarray, "H W"], int]:
    """Number the connected parts from 1, in order of their first pixels."""
    from scipy import ndimage  # its import would slow every start

    structure = np.ones((3, 3), np.bool_) if diagonal else None
    labels_HW = np.empty(mask_HW.shape, np.int32)
    num = ndimage.label(mask_HW, structure=structure, output=labels_HW)
    return labels_HW, int(num)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The numbered parts of all bands, background (0 in each band) left out."""

    starts: list[int]
    """For each band, how many parts are in the bands above."""
    areas: Int64[np.ndarray, " parts"]
    """Pixels of the whole object to which the part belongs."""
    firsts: Int64[np.ndarray, " parts"]
    """The first part of that object."""
    at_edge: Bool[np.ndarray, " parts"]
    """True where that object reaches the image's edge."""


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
    above_W: Int64[np.ndarray, " W"] | None = None
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
        if above_W is None:
            edge[labels_HW[0]] = True
        edges.append(edge[1:])
        top, bottom = (
            np.where(row > 0, row.astype(np.int64) + (total - 1), -1) for row in labels_HW[[0, -1]]
        )
        if above_W is not None:
            pairs.append(_touching(above_W, top, diagonal=diagonal))
        starts.append(total)
        above_W = bottom
        total += num
    if above_W is not None:  # the last row of the last band
        edges[-1][above_W[above_W >= 0] - starts[-1]] = True
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
    above_W: Int64[np.ndarray, " W"], below_W: Int64[np.ndarray, " W"], *, diagonal: bool
) -> Int64[np.ndarray, "pairs 2"]:
    """List the parts of two neighbouring rows (-1 for none) that touch, each pair once."""
    found = [np.stack([above_W, below_W], axis=1)]
    if diagonal:
        found.append(np.stack([above_W[:-1], below_W[1:]], axis=1))
        found.append(np.stack([above_W[1:], below_W[:-1]], axis=1))
    every = np.concatenate(found)
    return np.unique(every[(every >= 0).all(axis=1)], axis=0)
