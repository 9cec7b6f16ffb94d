"""The one place where probabilities become a mask: the threshold, then post-processing.

`segment` does it for an image in memory. `clean_bands` cleans masks that are too large for memory,
exactly, band by band: objects and holes are numbered in each band alone, and where bands meet,
numbers that touch belong together. Areas of whole objects are known after one look at all bands;
a second one cleans them.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from binseg.errors import DataError, UsageError, needing
from binseg.transforms.geometry import SmallMap
from binseg.types import Mask, Probability

Bands = Callable[[], Iterator[Bool[np.ndarray, "h W"]]]
"""Gives the bands of a mask from the top down, anew with each call and the same ones each time."""
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Tells of each object, by its area and whether it reaches the image's edge, if it is chosen."""
_LEAST_NECK = 0.75
"""Pixels by which a neck must be narrower, to each side, than both parts that it joins."""
_MOST_PARTS = 20_000_000
"""Numbered parts of objects in all bands; more would fill the memory, and mean noise."""


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Corrections of a mask; areas are in pixels of the image's own size, UsageError below 0."""

    min_area: int = 0  # objects of fewer pixels are removed
    fill_holes: int = 0  # holes of up to so many pixels are filled
    largest_only: bool = False
    """Only the largest object stays; of equal ones the first by row, then column."""
    separate: bool = False
    """Objects that touch are cut apart at their necks, a pixel wide, before small ones go."""

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
            "touching objects cut apart": self.separate,
        }
        return ", ".join(text for text, is_on in parts.items() if is_on)


NOTHING = PostProcessing()  # post-processing that corrects nothing


def above(
    probability: Float32[np.ndarray, "*shape"], threshold: float
) -> Bool[np.ndarray, "*shape"]:
    """Tell where the probability is greater than the threshold; equal is background."""
    return np.asarray(probability > threshold)


def segment(
    probability: Probability | SmallMap, threshold: float, postprocessing: PostProcessing
) -> Mask:
    """Cut a map of probabilities at the threshold, and clean the mask."""
    if isinstance(probability, SmallMap):
        return clean(probability.above(threshold), postprocessing)
    return clean(above(probability, threshold), postprocessing)


def clean(mask_HW: Mask, postprocessing: PostProcessing) -> Mask:
    """Fill small holes, cut touching objects apart, remove small ones, keep the largest; a copy."""
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
    if postprocessing.separate:
        cleaned_HW = _separated(cleaned_HW)
    if postprocessing.min_area > 1 or postprocessing.largest_only:
        labels_HW, num = label_objects(cleaned_HW)
        areas = np.bincount(labels_HW.ravel(), minlength=num + 1)[1:]
        kept = np.concatenate([[False], _is_kept(areas, postprocessing)])
        cleaned_HW = kept[labels_HW]
    return cleaned_HW


def _separated(mask_HW: Mask) -> Mask:
    """Cut touching objects apart by a watershed of the distances; raises MissingExtraError."""
    with needing("scikit-image", extra="objects", purpose="cutting touching objects apart"):
        from skimage.morphology import h_maxima
        from skimage.segmentation import watershed
    from scipy import ndimage

    depth_HW = ndimage.distance_transform_edt(mask_HW)
    middles_HW, _ = label_objects(h_maxima(depth_HW, _LEAST_NECK) > 0)  # type: ignore[no-untyped-call]
    parts_HW = watershed(-depth_HW, middles_HW, mask=mask_HW)  # type: ignore[no-untyped-call]
    # Across a cut the pixels of the later part go, so that parts don't even touch at corners.
    ranks_HW = np.where(parts_HW == 0, np.iinfo(parts_HW.dtype).max, parts_HW)
    return np.asarray(mask_HW & (ranks_HW == ndimage.minimum_filter(ranks_HW, 3, mode="nearest")))


def _is_kept(
    areas: Int64[np.ndarray, " objects"], postprocessing: PostProcessing
) -> Bool[np.ndarray, " objects"]:
    """Choose the objects that stay; they come in the order of their first pixels."""
    kept = areas >= postprocessing.min_area
    if postprocessing.largest_only and len(areas):
        kept &= np.arange(len(areas)) == np.argmax(areas)
    return kept


def clean_bands(bands: Bands, postprocessing: PostProcessing) -> Bands:
    """Correct a mask in bands as `clean` does; DataError for more objects than fit into memory."""
    if postprocessing.fill_holes:
        bands = partial(_filled, bands, postprocessing.fill_holes)
    if postprocessing.min_area > 1 or postprocessing.largest_only:
        bands = partial(
            _chosen, bands, lambda areas, _: _is_kept(areas, postprocessing), diagonal=True
        )
    return bands


def _filled(bands: Bands, most: int) -> Iterator[Bool[np.ndarray, "h W"]]:
    holes = _chosen(
        lambda: (~one for one in bands()),
        lambda areas, at_edge: (areas <= most) & ~at_edge,
        diagonal=False,
    )
    return (mask_HW | hole_HW for mask_HW, hole_HW in zip(bands(), holes, strict=True))


def label_objects(mask_HW: Mask) -> tuple[Int32[np.ndarray, "H W"], int]:
    """Number the objects from 1 (0 is background), and tell how many there are."""
    return _label(mask_HW, diagonal=True)


def _label(mask_HW: Mask, *, diagonal: bool) -> tuple[Int32[np.ndarray, "H W"], int]:
    """Number the connected parts from 1, in order of their first pixels."""
    from scipy import ndimage  # its import would slow every start

    structure = np.ones((3, 3), np.bool_) if diagonal else None
    labels_HW = np.empty(mask_HW.shape, np.int32)
    num = ndimage.label(mask_HW, structure=structure, output=labels_HW)
    return labels_HW, int(num)


def _chosen(bands: Bands, choose: Choose, *, diagonal: bool) -> Iterator[Bool[np.ndarray, "h W"]]:
    """Give the bands again with the chosen objects alone, joined across borders."""
    areas: list[np.ndarray] = []

    def measure(labels_HW: Int32[np.ndarray, "h W"], num: int) -> None:
        areas.append(np.bincount(labels_HW.ravel(), minlength=num + 1)[1:])

    joined = join_parts(bands(), measure, diagonal=diagonal)
    if len(joined.of_part) == 0:
        yield from bands()
        return
    area_of = np.bincount(joined.of_part, np.concatenate(areas)).astype(np.int64)
    at_edge = np.bincount(joined.of_part, joined.at_edge) > 0
    chosen = choose(area_of, at_edge)[joined.of_part]
    for mask_HW, start, end in zip(bands(), joined.starts, joined.starts[1:], strict=False):
        labels_HW, _ = _label(mask_HW, diagonal=diagonal)
        yield np.concatenate([[False], chosen[start:end]])[labels_HW]


@dataclass(frozen=True, kw_only=True)
class JoinedParts:
    """The parts of a mask's objects that its bands hold, numbered through all bands."""

    starts: list[int]  # The number of each band's first part, and of all parts at the end
    of_part: Int32[np.ndarray, " parts"]  # Each part's object, in the order of first pixels
    at_edge: Bool[np.ndarray, " parts"]  # True where a part reaches the image's edge


def join_parts(
    bands: Iterator[Bool[np.ndarray, "h W"]],
    measure: Callable[[Int32[np.ndarray, "h W"], int], None],
    *,
    diagonal: bool = True,
) -> JoinedParts:
    """Number the parts of objects in each band, and join those that touch across borders.

    `measure` gets each band's numbers, from 1, and how many there are. DataError for too many.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    starts, edges, pairs = [0], [], []
    above_W: Int64[np.ndarray, " W"] | None = None
    for mask_HW in bands:
        labels_HW, num = _label(mask_HW, diagonal=diagonal)
        start = starts[-1]
        if start + num > _MOST_PARTS:
            raise DataError(
                f"the mask falls into more than {_MOST_PARTS / 1e6:.0f} million pieces, too many "
                "to clean up or list; choose another threshold, or leave that out"
            )
        measure(labels_HW, num)
        edge = np.zeros(num + 1, np.bool_)
        edge[labels_HW[:, [0, -1]]] = True
        # The parts in the first and the last row, numbered through all bands; -1 for none.
        top_W, bottom_W = (np.where(row > 0, row + np.int64(start - 1), -1)
                           for row in labels_HW[[0, -1]])  # fmt: skip
        if above_W is None:
            edge[labels_HW[0]] = True
        else:
            pairs.append(_touching(above_W, top_W, diagonal=diagonal))
        edges.append(edge[1:])
        above_W = bottom_W
        starts.append(start + num)
    if above_W is not None:  # the last row of the last band
        edges[-1][above_W[above_W >= 0] - starts[-2]] = True
    total = starts[-1]
    every = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = coo_array((np.ones(len(every), np.bool_), (every[:, 0], every[:, 1])), (total, total))
    # Objects are numbered in the order of their first parts.
    of_part = connected_components(graph, directed=False)[1] if total else np.zeros(0, np.int32)
    at_edge = np.concatenate([np.zeros(0, np.bool_), *edges])
    return JoinedParts(starts=starts, of_part=of_part, at_edge=at_edge)


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
