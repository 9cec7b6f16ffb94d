"""Measure how thick and large the objects of a mask are, and what of it survives a resize."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from binseg.transforms.geometry import resize_image

CONNECTED = np.ones((3, 3), np.int64)
"""Pixels that touch at a corner belong to one object."""
MIN_AREA = 4
"""Pixels; smaller specks don't count as objects."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The objects of one mask; all lengths are in pixels of the image."""

    diameters: tuple[float, ...]
    """One per object: the diameter of the disc of the same area."""
    thin: float
    """A tenth of the length of all ridges (middle lines) is thinner than this."""
    thick: float
    """Half of the foreground's area lies where it is thinner than this."""


def measure_shapes(mask_HW: Bool[np.ndarray, "H W"]) -> Shapes | None:
    """Measure the objects of a mask at the image's own size; None if the mask is empty."""
    labels_HW, num = ndimage.label(mask_HW, structure=CONNECTED)
    if num == 0:
        return None
    areas = np.bincount(labels_HW.ravel())[1:]
    areas = areas[areas >= MIN_AREA] if (areas >= MIN_AREA).any() else areas
    thin, thick = thickness_quantiles(mask_HW)
    diameters = np.sqrt(4 * areas / np.pi)
    return Shapes(diameters=tuple(diameters.round(2).tolist()), thin=thin, thick=thick)


def thickness_quantiles(mask_HW: Bool[np.ndarray, "H W"]) -> tuple[float, float]:
    """Measure how thick the foreground is across its middle lines.

    A ridge pixel of the distance map (no neighbour lies farther from the background) is the centre
    of an inscribed disc that touches both sides; the disc's diameter is the thickness there.

    Returns:
        The thickness below which a tenth of the ridges' length lies, and the one below which half
        of the area lies (a ridge pixel stands for as much area as it is thick); pixels.

    >>> line = np.zeros((40, 40), bool)
    >>> line[10:13] = True
    >>> thickness_quantiles(line)
    (3.0, 3.0)
    """
    if not mask_HW.any():
        return 0.0, 0.0
    # Objects are cut off at the image's edge: assume that they go on beyond it.
    padded_HW = np.pad(mask_HW, 1, mode="edge")
    distance_HW = ndimage.distance_transform_edt(padded_HW)[1:-1, 1:-1]
    ridge_HW = mask_HW & (distance_HW >= ndimage.maximum_filter(distance_HW, size=3) - 1e-6)
    width_N = np.sort(2 * distance_HW[ridge_HW] - 1)
    share_N = np.cumsum(width_N) / width_N.sum()
    thick = width_N[np.searchsorted(share_N, 0.5)]
    return round(float(np.quantile(width_N, 0.1)), 2), round(float(thick), 2)


def kept_by_resize(
    mask_HW: Bool[np.ndarray, "H W"], sizes: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "S"]:
    """Return the Dice of a perfect mask made at other sizes and resized back to the image's own.

    A network can only learn masks of its own size; detail lost on the way back is lost for it.

    Args:
        mask_HW: the true mask at the image's own size.
        sizes: (height, width) of the network's masks.

    Returns:
        One Dice per size; 1 if the mask is empty.
    """
    height, width = mask_HW.shape
    soft_HW1 = mask_HW.astype(np.float32)[:, :, None]
    area = int(mask_HW.sum())
    kept = np.ones(len(sizes))
    for row, (small_height, small_width) in enumerate(sizes):
        if area == 0 or (small_height >= height and small_width >= width):
            continue
        small = resize_image(soft_HW1, small_height, small_width) > 0.5
        back_HW = resize_image(small.astype(np.float32), height, width)[:, :, 0] > 0.5
        kept[row] = 2 * int((back_HW & mask_HW).sum()) / (area + int(back_HW.sum()))
    return kept
