"""Find masks that lie beside their object, by the agreement of outlines and edges.

The outline is slid over the image; each place is judged by how strong the image's edges are under
it *and whether they run the same way*. A mask that fits has its best place where it is. Images
without clear edges have no best place at all, and nothing is said about them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex64, Float32
from scipy.fft import fft2, ifft2, next_fast_len
from scipy.ndimage import gaussian_filter

from binseg.data.dataset import spread
from binseg.data.masks import MaskRule
from binseg.data.samples import read_mask
from binseg.datacheck.near_duplicates import reduced
from binseg.errors import ImageError
from binseg.imageio import read_image
from binseg.parallel import map_ordered
from binseg.transforms.geometry import resize_mask
from binseg.types import Mask, Probability, Record

REACH = 24  # pixels of the reduced image that the outline is slid to each side
MIN_OUTLINE = 40  # shorter outlines agree with something somewhere by chance
MIN_PEAK = 3.5  # height of the best place above the usual, in robust standard deviations
MIN_GAIN = 2.4  # advantage that the best place must have over the one where the mask lies now
USUAL_MASKS = 300  # up to as many, that advantage is hardly ever met by chance
MIN_STEP = 5.0  # pixels; hand-drawn outlines are off by less
_WIDTH = 2.5  # pixels over which edges are taken: outlines of objects, rather than fur and grain
_BLUR = 2.0  # pixels: outlines drawn outside the edge all around have their best places in a ring
MIN_IMAGES = 12  # images that must agree before all masks are called shifted

MOST_PAIRED, LEAST_PAIRED = 32, 8
"""Masks that are laid over their neighbours' images, and fewest to judge by."""
PAIRED_FIT, MOST_BETTER = 3.0, 0.8
"""Fit with the neighbour's image that must be reached, and share of masks that fit it better."""


class Shift(NamedTuple):
    """The place where a mask would fit better, in pixels of the reduced image."""

    down: int
    right: int


def agreement(
    small_HWC: Float32[np.ndarray, "H W C"], mask_HW: Mask
) -> Float32[np.ndarray, "R R"] | None:
    """Slide a mask's outline over the edges: agreement in robust deviations; None without."""
    # The outline's length: the steps between foreground and background.
    if sum((np.diff(mask_HW, axis=axis)).sum() for axis in (0, 1)) < MIN_OUTLINE:
        return None
    outline_HW, _ = _directions(mask_HW.astype(np.float32)[:, :, None])
    turned_HW, strength_HW = _directions(small_HWC)
    # Strong edges count little more than weak ones.
    usual = max(2.0 * float(strength_HW.mean()), 1e-6)
    edges_HW = turned_HW / (strength_HW + np.float32(usual))
    # Without the mean, sliding past the image's rim neither gains nor costs anything.
    edges_HW -= edges_HW.mean()
    height, width = mask_HW.shape
    size = (next_fast_len(height + REACH), next_fast_len(width + REACH))
    whole = ifft2(fft2(edges_HW, size) * fft2(outline_HW, size).conj(), overwrite_x=True).real
    slides = np.arange(-REACH, REACH + 1)
    surface = gaussian_filter(whole[np.ix_(slides, slides)], _BLUR)
    middle = np.median(surface)
    spread = 1.4826 * np.median(np.abs(surface - middle))
    if spread <= 0:
        return None
    return np.asarray((surface - middle) / spread, dtype=np.float32)


def _directions(
    values_HWC: Float32[np.ndarray, "H W C"],
) -> tuple[Complex64[np.ndarray, "H W"], Probability]:
    """Give edges as complex numbers of strength and twice their angle, and their strength."""
    size = values_HWC.shape[:2]
    turned_HW, square_HW = np.zeros(size, np.complex64), np.zeros(size, np.float32)
    for channel in range(values_HWC.shape[2]):
        smooth_HW = gaussian_filter(values_HWC[:, :, channel], _WIDTH, truncate=3.0)
        along_HW = np.zeros(size, np.complex64)
        along_HW.real[:, 1:-1] = smooth_HW[:, 2:] - smooth_HW[:, :-2]
        along_HW.imag[1:-1] = smooth_HW[2:] - smooth_HW[:-2]
        turned_HW += along_HW * along_HW
        square_HW += along_HW.real**2 + along_HW.imag**2
    strength_HW = np.sqrt(square_HW)
    return turned_HW / np.maximum(strength_HW, np.float32(1e-6)), strength_HW


def fit_now(surface: Float32[np.ndarray, "R R"]) -> float:
    """Return how well the mask fits where it is, give or take two pixels."""
    return float(surface[REACH - 2 : REACH + 3, REACH - 2 : REACH + 3].max())


def shift_of(surface: Float32[np.ndarray, "R R"], *, num_masks: int = 1) -> Shift | None:
    """Tell whether one of so many masks would clearly fit better elsewhere; None if not clearly.

    Among thousands, more fit better elsewhere by chance, so more is asked of them.
    """
    by_chance = max(0.0, np.log10(num_masks / USUAL_MASKS)) / 2
    shift = _best(surface, peak=MIN_PEAK, gain=MIN_GAIN + by_chance)
    # A best place at the end of the reach is the slope of one beyond it, or of none.
    return shift if shift and max(map(abs, shift)) < REACH else None


def constant_shift(surfaces: list[Float32[np.ndarray, "R R"]]) -> Shift | None:
    """Tell whether all masks of images of one size are shifted alike; None where they aren't."""
    if len(surfaces) < MIN_IMAGES:
        return None
    # Averaging leaves of chance alone 1 / sqrt(images), and of a real shift all of it.
    clear = max(1.0, 4.0 / np.sqrt(len(surfaces)))
    return _best(np.mean(np.stack(surfaces), axis=0), peak=clear, gain=clear)


def _best(surface: Float32[np.ndarray, "R R"], *, peak: float, gain: float) -> Shift | None:
    """Find the best place, if it is far enough and at least so high, and so much better."""
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    height = float(surface[row, column])
    shift = Shift(down=int(row) - REACH, right=int(column) - REACH)
    is_far = np.hypot(shift.down, shift.right) >= MIN_STEP
    return shift if is_far and height >= peak and height - fit_now(surface) >= gain else None


def neighbour_that_fits(records: Sequence[Record], rule: MaskRule) -> str:
    """Say whether masks fit the image "before" or "after" theirs, by number; "" if neither."""
    single = [one for one in records if len(one.mask_paths) == 1]
    ordered = sorted(single, key=lambda one: [*map(_natural, re.split(r"(\d+)", one.id))])
    rows = spread(range(1, len(ordered) - 1), MOST_PAIRED)
    found = [*map_ordered(lambda row: _fits(ordered[row - 1 : row + 2], rule), rows)]
    fits_N3 = np.array([one for one in found if one is not None]).reshape(-1, 3)
    if len(fits_N3) < LEAST_PAIRED:
        return ""
    before, here, after = np.median(fits_N3, axis=0)
    other = 0 if before > after else 2
    is_better = bool((fits_N3[:, other] > fits_N3[:, 1]).mean() > MOST_BETTER)
    if max(before, after) <= max(PAIRED_FIT, 2 * here) or not is_better:
        return ""
    return "before" if other == 0 else "after"


def _natural(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() else (0, part)


def _fits(three: Sequence[Record], rule: MaskRule) -> list[float] | None:
    """Tell how well the middle one's mask fits the image before its own, its own, the one after."""
    try:
        mask_HW, _ = read_mask(three[1], rule)
        images = [read_image(one.image_path, page=one.page) for one in three]
    except ImageError:
        return None  # reading the samples will name it
    if any(image_HWC.shape[:2] != mask_HW.shape for image_HWC in images):
        return None
    small = [reduced(image_HWC) for image_HWC in images]
    small_HW = resize_mask(mask_HW, *small[0].shape[:2])
    slid = [agreement(small_HWC, small_HW) for small_HWC in small]
    return None if any(one is None for one in slid) else [fit_now(s) for s in slid if s is not None]
