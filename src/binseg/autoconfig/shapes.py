"""What a mask's shapes ask for: how thick things are, how large, and what survives a resize."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from binseg.transforms.geometry import resize_image

__all__ = ["Shapes", "kept_by_resize", "measure_shapes", "thickness_quantiles"]

CONNECTED = np.ones((3, 3), np.int64)
"""Pixels that touch by a corner belong to one object."""
LEAST_AREA = 4
"""Smaller specks are no objects."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The objects of one mask, in pixels of the image."""

    diameters: tuple[float, ...]
    """Of circles with the objects' areas, one each."""
    thin: float
    """A tenth of the length of all ridges (middle lines) is thinner than this."""
    thick: float
    """Half of the foreground's area is where it is thinner than this."""


def measure_shapes(mask_HW: Bool[np.ndarray, "H W"]) -> Shapes | None:
    """Measure the objects of a mask; None where there is none.

    Args:
        mask_HW: the truth at the image's own size.
    """
    labels_HW, num = ndimage.label(mask_HW, structure=CONNECTED)
    if num == 0:
        return None
    areas = np.bincount(labels_HW.ravel())[1:]
    areas = areas[areas >= LEAST_AREA] if (areas >= LEAST_AREA).any() else areas
    thin, thick = thickness_quantiles(mask_HW)
    diameters = np.sqrt(4 * areas / np.pi)
    return Shapes(diameters=tuple(diameters.round(2).tolist()), thin=thin, thick=thick)


def thickness_quantiles(mask_HW: Bool[np.ndarray, "H W"]) -> tuple[float, float]:
    """How thick the foreground is, measured across its middle lines.

    A pixel on a ridge of the distance map (no neighbour is farther from the background) is where
    an inscribed disc touches both sides; its diameter is the thickness there.

    Returns:
        The thickness below which a tenth of the ridges' length is, and the one below which half of
        the area is (a ridge pixel stands for as much area as its thickness).

    >>> line = np.zeros((40, 40), bool)
    >>> line[10:13] = True
    >>> thickness_quantiles(line)
    (3.0, 3.0)
    """
    # The image's edge cuts things off; what is beyond it is more of the same.
    padded_HW = np.pad(mask_HW, 1, mode="edge")
    distance_HW = ndimage.distance_transform_edt(padded_HW)[1:-1, 1:-1]
    if not mask_HW.any():
        return 0.0, 0.0
    ridge_HW = mask_HW & (distance_HW >= ndimage.maximum_filter(distance_HW, size=3) - 1e-6)
    width_N = 2 * distance_HW[ridge_HW] - 1
    # A disc's ridge is a point, a line's its whole length: weighing by the disc's area, cut down
    # to its share among ridge pixels that share the disc, is beyond need; its thickness will do.
    order = np.argsort(width_N)
    share_N = np.cumsum(width_N[order]) / width_N.sum()
    thick = width_N[order][np.searchsorted(share_N, 0.5)]
    return round(float(np.quantile(width_N, 0.1)), 2), round(float(thick), 2)


def kept_by_resize(
    mask_HW: Bool[np.ndarray, "H W"], sizes: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "S"]:
    """The Dice of a perfect mask made at other sizes and brought back to the image's own.

    A network can only learn masks of its own size; what they lose on the way back is lost for it.

    Args:
        mask_HW: the truth at the image's own size.
        sizes: height and width of the answers.

    Returns:
        One Dice a size; 1 where the mask is empty.
    """
    height, width = mask_HW.shape
    soft_HW1 = mask_HW.astype(np.float32)[:, :, None]
    total = 2 * int(mask_HW.sum())
    kept = np.ones(len(sizes))
    for row, (small_height, small_width) in enumerate(sizes):
        if total == 0 or (small_height >= height and small_width >= width):
            continue
        small = resize_image(soft_HW1, small_height, small_width) > 0.5
        back_HW = resize_image(small.astype(np.float32), height, width)[:, :, 0] > 0.5
        kept[row] = 2 * int((back_HW & mask_HW).sum()) / max(1, total // 2 + int(back_HW.sum()))
    return kept
