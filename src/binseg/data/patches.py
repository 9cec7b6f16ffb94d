"""Whole images at the scale of training, decoded once, and the patches that are cut from them.

Beside them is a bounded sample of where the foreground and the background are, so that a patch can
be laid around a rare pixel without looking at the image. The places of an epoch's patches are
decided by (seed, epoch) alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
from jaxtyping import Int, Int64, UInt, UInt8
from scipy import ndimage

from binseg.config.recipe import PatchConfig, Recipe
from binseg.data.cache import PixelCache, Where, open_cache, open_store
from binseg.data.masks import MaskRule
from binseg.progress import SILENT
from binseg.transforms import preprocess
from binseg.transforms.geometry import cut, resize_mask
from binseg.types import IGNORE, Box, Mask, Preprocessing, Record, Sample

VERSION = "images 5"  # raise it when what is stored changes, or how images are decoded or resized
SEEDS_OF_ALL = 1 << 22  # known places of each class in all images together: 32 MB
SEEDS_OF_ONE = 1024  # known places of each class in an image, at most
CONNECTED = np.ones((3, 3), np.int64)  # pixels that touch by a corner belong to one object
LEAST_BATCHES = 20  # fewest batches of an epoch: below it, validation would cost more than learning
PAST_EDGE = 0.5
"""Share of the side by which a place may lie past the edge before it is moved back: the outermost
pixels, which one place of hundreds holds otherwise, come half as often as the middle."""
CENTRAL = 0.5
"""A patch laid around a pixel has it in this central part of its side, not always in the middle:
else the network could learn where in an input the object is."""
NUM_INPUTS, NUM_PIXELS, FEW_LEVELS = 64, 1 << 17, 32
"""Inputs, or pixels, that tell how many grey levels there are; so few that a line says so."""


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Some pixels of one class (row * width + column): image i has those of starts[i:i + 2]."""

    places_K: Int64[np.ndarray, "K"]
    starts_N1: Int64[np.ndarray, "N1"]

    @property
    def counts_N(self) -> Int64[np.ndarray, "N"]:
        """Number of places that are known in each image."""
        return np.diff(self.starts_N1)


@dataclass(frozen=True, kw_only=True)
class ImageCache:
    """Whole images (C x H x W) and targets (0, 1, `IGNORE`), one behind the other."""

    pixels: UInt[np.ndarray, "P"]
    labels: UInt8[np.ndarray, "Q"]
    sizes_N2: Int64[np.ndarray, "N 2"]
    channels: int
    foreground: Seeds
    background: Seeds
    share: float

    def __post_init__(self) -> None:
        assert len(self.pixels) == len(self.labels) * self.channels
        assert len(self.labels) == self.starts_N1[-1]

    def __len__(self) -> int:
        return len(self.sizes_N2)

    @property
    def starts_N1(self) -> Int64[np.ndarray, "N1"]:
        """Start of each image's targets, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.sizes_N2.prod(axis=1))])

    @property
    def num_bytes(self) -> int:
        """Memory that images and targets take when they are loaded whole."""
        return int(self.pixels.nbytes + self.labels.nbytes)

    @property
    def rare(self) -> Seeds:
        """Places of the rarer class."""
        return self.foreground if self.share <= 0.5 else self.background

    def holds(self, value: int) -> bool:
        """Tell whether any target has this value."""
        seeds = {0: self.background, 1: self.foreground}.get(value)
        return len(seeds.places_K) > 0 if seeds else bool((self.labels == value).any())


class WholeImages:
    """The images of a cache as arrays, copied into memory if `resident`, to cut many patches."""

    def __init__(self, cache: ImageCache, *, resident: bool = False) -> None:
        pixels, labels = cache.pixels, cache.labels
        if resident:
            pixels, labels = np.array(pixels), np.array(labels)
        starts = cache.starts_N1
        self._inputs: list[UInt[np.ndarray, "C H W"]] = []
        self._targets: list[UInt8[np.ndarray, "1 H W"]] = []
        for (height, width), start, end in zip(
            cache.sizes_N2.tolist(), starts[:-1], starts[1:], strict=True
        ):
            some = pixels[start * cache.channels : end * cache.channels]
            self._inputs.append(some.reshape(cache.channels, height, width))
            self._targets.append(labels[start:end].reshape(1, height, width))

    def patches(
        self, places_B3: Int[np.ndarray, "B 3"], *, size: int
    ) -> tuple[UInt[np.ndarray, "B C size size"], UInt8[np.ndarray, "B size size"]]:
        """Cut squares at places (image, first row and column), mirrored past the edges."""
        num, channels = len(places_B3), self._inputs[0].shape[0]
        inputs_BCHW = np.empty((num, channels, size, size), self._inputs[0].dtype)
        targets_B1HW = np.empty((num, 1, size, size), np.uint8)
        for row, (image, top, left) in enumerate(places_B3.tolist()):
            _cut_into(inputs_BCHW[row], self._inputs[image], top, left)
            _cut_into(targets_B1HW[row], self._targets[image], top, left)
        return inputs_BCHW, targets_B1HW[:, 0]


def _cut_into(
    out_CHW: UInt[np.ndarray, "C size size"],
    planes_CHW: UInt[np.ndarray, "C H W"],
    top: int,
    left: int,
) -> None:
    """Fill `out` with what `geometry.cut` gives, an order of magnitude faster past the edges."""
    size, (height, width) = out_CHW.shape[1], planes_CHW.shape[1:]
    above, below = max(0, -top), max(0, top + size - height)
    before, behind = max(0, -left), max(0, left + size - width)
    rows, columns = size - above - below, size - before - behind
    if max(above, below) > rows or max(before, behind) > columns:
        # Mirrored more than once, or wholly outside: rare, and only where images are tiny.
        box = Box(top=top, left=left, height=size, width=size)
        out_CHW[:] = cut(planes_CHW.transpose(1, 2, 0), box).transpose(2, 0, 1)
        return
    inside_CHW = planes_CHW[:, max(0, top) :, max(0, left) :][:, :rows, :columns]
    around = ((0, 0), (above, below), (before, behind))
    out_CHW[:] = np.pad(inside_CHW, around, mode="symmetric")


def open_images(
    records: Sequence[Record], rule: MaskRule, preprocessing: Preprocessing, **where: Unpack[Where]
) -> ImageCache:
    """Give the whole images of these records; arguments and errors are those of `open_store`."""
    limit = max(16, min(SEEDS_OF_ONE, SEEDS_OF_ALL // max(1, len(records))))

    def decode(sample: Sample, index: int, name: str) -> dict[str, np.ndarray]:
        assert sample.mask_HW is not None
        input_HWC = preprocess.prepare_image(sample.image_HWC, preprocessing, name=name)
        mask_HW, valid_HW = (
            resize_mask(one, *input_HWC.shape[:2]) for one in (sample.mask_HW, sample.valid_HW)
        )
        target_HW = np.where(valid_HW, mask_HW.astype(np.uint8), np.uint8(IGNORE))
        numbers = np.bincount(target_HW.ravel(), minlength=2)[:2]
        random = np.random.default_rng(index)
        return {
            "inputs": input_HWC.transpose(2, 0, 1).ravel(),
            "targets": target_HW.ravel(),
            "facts": np.array([[*target_HW.shape, *numbers]], np.int64),
            "foreground": _some_places(target_HW == 1, limit, random),
            "background": _some_places(target_HW == 0, limit, random),
        }

    stored = open_store(*(records, rule, preprocessing, decode), version=VERSION, **where)
    facts_N4 = stored["facts"].values
    num_background, num_foreground = facts_N4[:, 2:].sum(axis=0).tolist()
    foreground, background = (
        Seeds(places_K=np.array(values), starts_N1=np.concatenate([[0], np.cumsum(counts_N)]))
        for values, counts_N in (stored["foreground"], stored["background"])
    )
    return ImageCache(
        pixels=stored["inputs"].values,
        labels=stored["targets"].values,
        sizes_N2=np.array(facts_N4[:, :2]),
        channels=preprocessing.channels,
        foreground=foreground,
        background=background,
        share=num_foreground / max(1, num_background + num_foreground),
    )


def _some_places(
    chosen_HW: Mask, limit: int, random: np.random.Generator
) -> Int64[np.ndarray, "K"]:
    """Sample chosen pixels, half of them object by object; none where most are chosen."""
    if np.count_nonzero(chosen_HW) > max(limit, chosen_HW.size // 2):
        tried = random.integers(0, chosen_HW.size, 8 * limit)
        return np.asarray(tried[chosen_HW.ravel()[tried]][:limit])
    places = np.flatnonzero(chosen_HW)
    if len(places) <= limit:
        return places.astype(np.int64)
    by_pixel = random.choice(places, limit // 2, replace=False)
    labels_HW, num_objects = ndimage.label(chosen_HW, structure=CONNECTED)
    labels = labels_HW.ravel()[places]
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels, minlength=num_objects + 1)[1:]
    objects = random.integers(0, num_objects, limit - limit // 2)
    inside = (random.random(len(objects)) * sizes[objects]).astype(np.int64)
    by_object = places[order[(np.cumsum(sizes) - sizes)[objects] + inside]]
    return np.concatenate([by_pixel, by_object]).astype(np.int64)


def patches_per_epoch(
    config: PatchConfig, sizes_N2: Int64[np.ndarray, "N 2"], *, size: int, batch_size: int
) -> int:
    """Say how many patches an epoch has: as the recipe says, or enough to cover all images once.

    Heights and widths are at the scale of training; there are at least 20 batches.

    >>> patches_per_epoch(PatchConfig(), np.array([[512, 768]] * 100), size=256, batch_size=8)
    600
    """
    if config.per_epoch != "auto":
        return int(config.per_epoch)
    whole = math.ceil(float(_shares(sizes_N2, size).sum()))
    return max(whole, LEAST_BATCHES * batch_size)


def _shares(sizes_N2: Int64[np.ndarray, "N 2"], size: int) -> np.ndarray:
    """Count the patches that cover each image; a small image takes a whole one."""
    return np.asarray(np.maximum(sizes_N2.astype(np.float64) / size, 1.0).prod(axis=1))


def sample_places(
    cache: ImageCache, *, size: int, num: int, foreground: float, seed: int, epoch: int
) -> Int64[np.ndarray, "num 3"]:
    """Sample an epoch's patches by (seed, epoch): image, first row, first column, in order."""
    random = np.random.default_rng((seed, epoch))
    ends = np.cumsum(np.sqrt(_shares(cache.sizes_N2, size)))
    evenly = (np.arange(num) + random.random()) / num * ends[-1]
    images = random.permutation(np.searchsorted(ends, evenly, side="right").clip(max=len(ends) - 1))
    sizes_n2 = cache.sizes_N2[images]
    margin = PAST_EDGE * size
    starts_n2 = np.empty((num, 2), np.int64)
    for axis in (0, 1):
        most = np.maximum(sizes_n2[:, axis] - size, 0) + margin + 1
        starts_n2[:, axis] = np.floor(random.uniform(-margin, most))
    starts_n2 = _inside(starts_n2, sizes_n2, size)
    seeds = cache.rare
    around = random.random(num) < foreground
    chances_N = np.diff(ends, prepend=0.0) * (seeds.counts_N > 0)
    lacking = around & (seeds.counts_N[images] == 0)
    if lacking.any() and chances_N.any():
        # Other images take the place of those that have no rare pixel.
        chances_N /= chances_N.sum()
        images[lacking] = random.choice(len(ends), size=int(lacking.sum()), p=chances_N)
        sizes_n2 = cache.sizes_N2[images]
    counts = seeds.counts_N[images]
    around &= counts > 0
    which = seeds.starts_N1[images] + (random.random(num) * counts).astype(np.int64)
    sizes_n2 = sizes_n2[around]
    pixels_n2 = np.stack(np.divmod(seeds.places_K[which[around]], sizes_n2[:, 1]), axis=1)
    low, high = size * (1 - CENTRAL) / 2, size * (1 + CENTRAL) / 2
    for axis in (0, 1):
        pixels_n2[:, axis] -= random.uniform(low, high, len(pixels_n2)).astype(np.int64)
    starts_n2[around] = _inside(pixels_n2, sizes_n2, size)
    return np.column_stack([images, starts_n2]).astype(np.int64)


def _inside(
    starts_n2: Int64[np.ndarray, "n 2"], sizes_n2: Int64[np.ndarray, "n 2"], size: int
) -> Int64[np.ndarray, "n 2"]:
    """Move patches into their images; one that is larger lies around its image's middle."""
    room = sizes_n2 - size
    return np.where(room > 0, np.clip(starts_n2, 0, np.maximum(room, 0)), -((-room) // 2))


def open_training_pixels(
    records: Sequence[Record], rule: MaskRule, recipe: Recipe, **where: Unpack[Where]
) -> PixelCache | ImageCache:
    """Give whole images where the recipe trains on patches, else its inputs; as `open_store`."""
    preprocessing = recipe.preprocessing().as_trained()
    open_pixels = open_images if recipe.draws_patches else open_cache
    cache = open_pixels(records, rule, preprocessing, **where)
    pixels = cache.pixels if isinstance(cache, ImageCache) else cache.inputs_NHWC
    some = pixels[:: max(1, len(pixels) // (NUM_PIXELS if pixels.ndim == 1 else NUM_INPUTS))]
    if preprocessing.intensity == "dtype" and some.max() < FEW_LEVELS * preprocessing.top / 255:
        where.get("progress", SILENT).say(
            f"the network sees {int(some.max()) + 1} of 256 grey levels: the images use little of "
            "their type's range; input.intensity=percentile stretches each image"
        )
    return cache


def open_validation_pixels(
    records: Sequence[Record], rule: MaskRule, recipe: Recipe, **where: Unpack[Where]
) -> PixelCache:
    """Give the inputs that choose the best epoch; tiles touch, since overlaps would count twice."""
    preprocessing = replace(recipe.preprocessing().as_trained(), overlap=0.0)
    return open_cache(records, rule, preprocessing, **where)
