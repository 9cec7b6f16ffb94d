"""Places of the training patches of an epoch: decided by (seed, epoch) alone."""

import math

import numpy as np
from jaxtyping import Bool, Float, Int64

from binseg.config.recipe import PatchConfig
from binseg.data.whole_images import ImageCache

LEAST_BATCHES = 20
"""Fewest batches of an epoch: below it, validation would cost more than learning."""
PAST_EDGE = 0.5
"""Share of the side by which a place may lie past the edge before it is moved back: the outermost
pixels, which one place of hundreds holds otherwise, come half as often as the middle."""
CENTRAL = 0.5
"""A patch laid around a pixel has it in this central part of its side, not always in the middle:
else the network could learn where in an input the object is."""


def patches_per_epoch(
    config: PatchConfig, sizes_N2: Int64[np.ndarray, "N 2"], *, size: int, batch_size: int
) -> int:
    """Say how many patches an epoch has.

    Args:
        config: the recipe's part.
        sizes_N2: height and width of the training images, at the scale of training.
        size: side of a patch.
        batch_size: patches in a step.

    Returns:
        What the recipe says, or enough to cover all images once, but at least 20 batches.

    >>> patches_per_epoch(PatchConfig(), np.array([[512, 768]] * 100), size=256, batch_size=8)
    600
    """
    if config.per_epoch != "auto":
        return int(config.per_epoch)
    whole = math.ceil(float(_shares(sizes_N2, size).sum()))
    return max(whole, LEAST_BATCHES * batch_size)


def _shares(sizes_N2: Int64[np.ndarray, "N 2"], size: int) -> np.ndarray:
    """Count the patches that cover each image; a small image takes a whole one."""
    shares_N: np.ndarray = np.maximum(sizes_N2.astype(np.float64) / size, 1.0).prod(axis=1)
    return shares_N


def sample_places(
    cache: ImageCache,
    *,
    size: int,
    num: int,
    foreground: float,
    seed: int,
    epoch: int,
) -> Int64[np.ndarray, "num 3"]:
    """Sample the patches of an epoch, in their order.

    Each image gets patches by the square root of its area, to within one: a large image has
    more to show than a small one, but not in proportion, and scores weigh images alike.

    Args:
        cache: the images.
        size: side of a patch.
        num: how many patches.
        foreground: share of patches laid around a pixel of the rarer class, where there is one.
        seed: of the run.
        epoch: from 0.

    Returns:
        InputImage, first row and first column; a patch larger than its image starts below 0.
    """
    random = np.random.default_rng((seed, epoch))
    ends = np.cumsum(np.sqrt(_shares(cache.sizes_N2, size)))
    evenly = (np.arange(num) + random.random()) / num * ends[-1]
    images = np.searchsorted(ends, evenly, side="right").clip(max=len(ends) - 1)
    images = random.permutation(images)
    heights, widths = cache.sizes_N2[images].T
    tops = _anywhere(heights, size, random)
    lefts = _anywhere(widths, size, random)
    seeds = cache.rare
    around = random.random(num) < foreground
    if not (seeds.counts_N > 0).all():
        images = _with_seeds(images, around, np.diff(ends, prepend=0.0), seeds.counts_N, random)
        heights, widths = cache.sizes_N2[images].T
    counts = seeds.counts_N[images]
    around &= counts > 0
    which = seeds.starts_N1[images] + (random.random(num) * counts).astype(np.int64)
    rows, columns = np.divmod(seeds.places_K[which[around]], widths[around])
    tops[around] = _around(rows, heights[around], size, random)
    lefts[around] = _around(columns, widths[around], size, random)
    return np.stack([images, tops, lefts], axis=1).astype(np.int64)


def _with_seeds(
    images: Int64[np.ndarray, "n"],
    around: Bool[np.ndarray, "n"],
    weights_N: Float[np.ndarray, "N"],
    counts_N: Int64[np.ndarray, "N"],
    random: np.random.Generator,
) -> Int64[np.ndarray, "n"]:
    """Sample other images for the patches around a rare pixel whose image has none."""
    lacking = around & (counts_N[images] == 0)
    chances = weights_N * (counts_N > 0)
    if not lacking.any() or not chances.any():
        return images
    chosen = images.copy()
    chosen[lacking] = random.choice(
        len(chances), size=int(lacking.sum()), p=chances / chances.sum()
    )
    return chosen


def _anywhere(
    lengths: Int64[np.ndarray, "n"], size: int, random: np.random.Generator
) -> Int64[np.ndarray, "n"]:
    """Sample first pixels along one axis."""
    margin = PAST_EDGE * size
    starts = random.uniform(-margin, np.maximum(lengths - size, 0) + margin + 1)
    return _inside(np.floor(starts).astype(np.int64), lengths, size)


def _around(
    pixels: Int64[np.ndarray, "n"],
    lengths: Int64[np.ndarray, "n"],
    size: int,
    random: np.random.Generator,
) -> Int64[np.ndarray, "n"]:
    """Sample first pixels of patches that hold a pixel in their central part."""
    low, high = size * (1 - CENTRAL) / 2, size * (1 + CENTRAL) / 2
    before = random.uniform(low, high, len(pixels)).astype(np.int64)
    return _inside(pixels - before, lengths, size)


def _inside(
    starts: Int64[np.ndarray, "n"], lengths: Int64[np.ndarray, "n"], size: int
) -> Int64[np.ndarray, "n"]:
    """Move patches into their images; one that is larger lies around its image's middle."""
    room = lengths - size
    return np.where(room > 0, np.clip(starts, 0, np.maximum(room, 0)), -((-room) // 2))
