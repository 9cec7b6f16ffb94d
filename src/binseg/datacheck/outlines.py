"""What a mask looks like in a few numbers, and which mask is unlike all others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.ndimage import label
from scipy.spatial import ConvexHull, QhullError

__all__ = ["MIN_MASKS", "Outline", "measure", "unlike_others"]

FAR = 4.0
"""Robust standard deviations from the middle at which a mask is unlike the others."""
MIN_MASKS = 20
"""Fewer masks have no usual."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The looks of one mask that has foreground and background."""

    share: float
    """Of foreground in all pixels."""
    num_objects: int
    solidity: float
    """Area of the largest object over that of its convex hull: 1 for a disc, low for scribbles."""
    rim: float
    """Share of the image's rim that is foreground; close to 1 for exchanged masks."""


def measure(mask_HW: Bool[np.ndarray, "H W"]) -> Outline | None:
    """Measure a (reduced) mask; None where it is empty or full."""
    if not mask_HW.any() or mask_HW.all():
        return None
    labels_HW, num = label(mask_HW)
    areas_N = np.bincount(labels_HW.ravel())[1:]
    # Specks of one or two pixels are what reducing leaves; they are no objects.
    num_objects = max(1, int((areas_N > 2).sum()))
    largest_HW = labels_HW == int(areas_N.argmax()) + 1
    rim = np.concatenate([mask_HW[0], mask_HW[-1], mask_HW[1:-1, 0], mask_HW[1:-1, -1]])
    assert num > 0
    return Outline(
        share=float(mask_HW.mean()),
        num_objects=num_objects,
        solidity=_solidity(largest_HW),
        rim=float(rim.mean()),
    )


def _solidity(object_HW: Bool[np.ndarray, "H W"]) -> float:
    rows = np.flatnonzero(object_HW.any(axis=1))
    first = object_HW.argmax(axis=1)[rows]
    last = object_HW.shape[1] - object_HW[:, ::-1].argmax(axis=1)[rows]
    # Corners of the first and last pixel of each row: the hull needs no others.
    corners = np.concatenate(
        [np.stack([rows + y, x], axis=1) for y in (0, 1) for x in (first, last)]
    )
    try:
        hull_area = float(ConvexHull(corners).volume)
    except QhullError:
        return 1.0
    return min(1.0, float(object_HW.sum()) / hull_area)


def unlike_others(outlines: Sequence[Outline | None]) -> Mapping[int, str]:
    """Find masks that are far from the usual in one of their measures.

    Returns:
        Index of each such mask and in what it differs, in words.
    """
    known = [index for index, outline in enumerate(outlines) if outline is not None]
    measured = [outline for outline in outlines if outline is not None]
    if len(measured) < MIN_MASKS:
        return {}
    tables: dict[str, tuple[Float64[np.ndarray, N], float]] = {
        "foreground share": (np.array([_logit(x.share) for x in measured]), 0.5),
        "number of objects": (np.log([x.num_objects for x in measured]), 0.35),
        "solidity": (np.array([x.solidity for x in measured]), 0.06),
        "foreground along the rim": (np.array([x.rim for x in measured]), 0.1),
    }
    told = {
        "foreground share": [f"{x.share:.1%}" for x in measured],
        "number of objects": [str(x.num_objects) for x in measured],
        "solidity": [f"{x.solidity:.2f}" for x in measured],
        "foreground along the rim": [f"{x.rim:.0%}" for x in measured],
    }
    found: dict[int, str] = {}
    for name, (values_N, least) in tables.items():
        middle = float(np.median(values_N))
        # The floor: where most masks are exactly alike, the spread says nothing.
        spread = max(1.4826 * float(np.median(np.abs(values_N - middle))), least)
        usual = told[name][int(np.abs(values_N - middle).argmin())]
        for at in np.flatnonzero(np.abs(values_N - middle) > FAR * spread):
            found.setdefault(known[at], f"{name} {told[name][at]}, usually {usual}")
    return found


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))
