"""Whole images at the scale of training, decoded once, from which patches are cut.

All images lie one behind the other in one file, their targets in another (`store` says how they
get there). Beside them is a bounded sample of where the foreground and the background are, so
that a patch can be laid around a rare pixel without looking at the image.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int64, Num, UInt8
from scipy import ndimage

from binseg import storage
from binseg.data.masks import MaskRule
from binseg.data.store import FACTS, INPUTS, TARGETS, map_pixels, open_store, write_header
from binseg.progress import SILENT, Progress
from binseg.transforms import preprocess
from binseg.transforms.geometry import cut, resize_mask
from binseg.types import IGNORE, Box, Preprocessing, Record

FORMAT_VERSION = 4
"""Raise it when what is stored changes, or how images are decoded or resized."""
SEEDS = "seeds.npy"
SEEDS_OF_ALL = 1 << 22
"""Known places of each class in all images together: 32 MB."""
SEEDS_OF_ONE = 1024
"""Known places of each class in an image, at most."""
CONNECTED = np.ones((3, 3), np.int64)
"""Pixels that touch by a corner belong to one object."""


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Some pixels of one class, image by image: row * width + column."""

    places_K: Int64[np.ndarray, "K"]
    starts_N1: Int64[np.ndarray, "N1"]
    """Image i has the places from starts[i] to starts[i + 1]."""

    @property
    def counts_N(self) -> Int64[np.ndarray, "N"]:
        """Number of places that are known in each image."""
        return np.diff(self.starts_N1)


@dataclass(frozen=True, kw_only=True)
class ImageCache:
    """Whole images of a list of records, each of its own size."""

    pixels: UInt8[np.ndarray, "P"]
    """Pixels of all images, one behind the other, channels x height x width: networks and
    resampling want planes, and turning patches at every step would cost more than cutting them."""
    labels: UInt8[np.ndarray, "Q"]
    """Targets of all images: 0 background, 1 foreground, `IGNORE`."""
    sizes_N2: Int64[np.ndarray, "N 2"]
    """Height and width of each image."""
    channels: int
    foreground: Seeds
    background: Seeds
    share: float
    """Foreground among the pixels that count."""

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
    def mapped(self) -> np.ndarray:
        """The array whose life is the use of the files."""
        return self.pixels

    @property
    def rare(self) -> Seeds:
        """Places of the rarer class."""
        return self.foreground if self.share <= 0.5 else self.background

    def holds(self, value: int) -> bool:
        """Tell whether any target has this value."""
        seeds = {0: self.background, 1: self.foreground}.get(value)
        return len(seeds.places_K) > 0 if seeds else bool((self.labels == value).any())


class WholeImages:
    """The images of a cache as arrays, for who cuts many patches.

    Args:
        cache: where they are.
        resident: copy them into memory first.
    """

    def __init__(self, cache: ImageCache, *, resident: bool = False) -> None:
        pixels, labels = cache.pixels, cache.labels
        if resident:
            pixels, labels = np.array(pixels), np.array(labels)
        starts = cache.starts_N1
        self._inputs: list[UInt8[np.ndarray, "C H W"]] = []
        self._targets: list[UInt8[np.ndarray, "1 H W"]] = []
        for (height, width), start, end in zip(
            cache.sizes_N2.tolist(), starts[:-1], starts[1:], strict=True
        ):
            some = pixels[start * cache.channels : end * cache.channels]
            self._inputs.append(some.reshape(cache.channels, height, width))
            self._targets.append(labels[start:end].reshape(1, height, width))

    def patches(
        self, places_B3: Int[np.ndarray, "B 3"], *, size: int
    ) -> tuple[UInt8[np.ndarray, "B C size size"], UInt8[np.ndarray, "B size size"]]:
        """Cut square patches, mirrored past the edges of their images.

        Args:
            places_B3: image, first row and first column (below 0 is past the edge) of each.
            size: side in pixels.
        """
        num, channels = len(places_B3), self._inputs[0].shape[0]
        inputs_BCHW = np.empty((num, channels, size, size), np.uint8)
        targets_B1HW = np.empty((num, 1, size, size), np.uint8)
        for row, (image, top, left) in enumerate(places_B3.tolist()):
            _cut_into(inputs_BCHW[row], self._inputs[image], top, left)
            _cut_into(targets_B1HW[row], self._targets[image], top, left)
        return inputs_BCHW, targets_B1HW[:, 0]


def _cut_into(
    out_CHW: UInt8[np.ndarray, "C size size"],
    planes_CHW: UInt8[np.ndarray, "C H W"],
    top: int,
    left: int,
) -> None:
    """Fill `out` with what `geometry.cut` gives, an order of magnitude faster past the edges.

    What lies inside is copied, and its rims are then mirrored within `out`.
    """
    size, (height, width) = out_CHW.shape[1], planes_CHW.shape[1:]
    above, below = max(0, -top), max(0, top + size - height)
    before, behind = max(0, -left), max(0, left + size - width)
    rows, columns = size - above - below, size - before - behind
    if max(above, below) > rows or max(before, behind) > columns:
        # Mirrored more than once, or wholly outside: rare, and only where images are tiny.
        box = Box(top=top, left=left, height=size, width=size)
        out_CHW[:] = cut(planes_CHW.transpose(1, 2, 0), box).transpose(2, 0, 1)
        return
    inside = planes_CHW[
        :, top + above : top + above + rows, left + before : left + before + columns
    ]
    bottom, right = size - below, size - behind
    out_CHW[:, above:bottom, before:right] = inside
    middle = out_CHW[:, above:bottom]
    middle[:, :, :before] = middle[:, :, before : 2 * before][:, :, ::-1]
    middle[:, :, right:] = middle[:, :, right - behind : right][:, :, ::-1]
    out_CHW[:, :above] = out_CHW[:, above : 2 * above][:, ::-1]
    out_CHW[:, bottom:] = out_CHW[:, bottom - below : bottom][:, ::-1]


def open_images(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> ImageCache:
    """Give the whole images of these records, decoded only if no cache of theirs is whole.

    Args:
        records: what to decode, in order.
        rule: how the values of the masks are read.
        preprocessing: scale, channels and intensity; mean and std are applied later.
        progress: hears of the decoding, and of a broken cache that is built again.
        folder: where caches live; none means `pixels` in the user's cache folder.

    Raises:
        DataError: no records, or records that can't be read (up to ten are named).
        OutputError: the cache can't be written.
        UsageError: BINSEG_CACHE_GB is no number.
    """
    limit = max(16, min(SEEDS_OF_ONE, SEEDS_OF_ALL // max(1, len(records))))
    layout = _Whole(preprocessing, limit)
    return open_store(records, rule, preprocessing, layout, progress=progress, folder=folder)


@dataclass(frozen=True, kw_only=True)
class _InputImage:
    input_HWC: UInt8[np.ndarray, "H W C"]
    target_HW: UInt8[np.ndarray, "H W"]
    foreground: Int64[np.ndarray, "F"]
    background: Int64[np.ndarray, "G"]


class _Whole:
    """The layout: pixels and targets in one flat file each, and the known places in a third."""

    version = f"images {FORMAT_VERSION}"

    def __init__(self, preprocessing: Preprocessing, num_seeds: int) -> None:
        self._preprocessing = preprocessing
        self._num_seeds = num_seeds

    def decode(
        self,
        image_HWC: Num[np.ndarray, "H W C"],
        mask_HW: Bool[np.ndarray, "H W"],
        valid_HW: Bool[np.ndarray, "H W"],
        *,
        index: int,
        name: str,
    ) -> _InputImage:
        input_HWC = preprocess.prepare_image(image_HWC, self._preprocessing, name=name)
        height, width = input_HWC.shape[:2]
        mask_HW, valid_HW = (resize_mask(one, height, width) for one in (mask_HW, valid_HW))
        target_HW = np.where(valid_HW, mask_HW.astype(np.uint8), np.uint8(IGNORE))
        random = np.random.default_rng(index)
        return _InputImage(
            input_HWC=input_HWC,
            target_HW=target_HW,
            foreground=_some_places(target_HW == 1, self._num_seeds, random),
            background=_some_places(target_HW == 0, self._num_seeds, random),
        )

    def write(self, folder: Path, decoded: Iterable[tuple[int, _InputImage]]) -> None:
        channels = self._preprocessing.channels
        sizes: list[tuple[int, int]] = []
        places: tuple[list[np.ndarray], ...] = ([], [])
        num_of = np.zeros(256, np.int64)
        with (folder / INPUTS).open("wb") as inputs, (folder / TARGETS).open("wb") as targets:
            write_header(inputs, (0,))
            write_header(targets, (0,))
            for _, one in decoded:
                inputs.write(np.ascontiguousarray(one.input_HWC.transpose(2, 0, 1)).data)
                targets.write(np.ascontiguousarray(one.target_HW).data)
                sizes.append((one.target_HW.shape[0], one.target_HW.shape[1]))
                num_of += np.bincount(one.target_HW.ravel(), minlength=256)
                places[0].append(one.background)
                places[1].append(one.foreground)
            write_header(inputs, (int(num_of.sum()) * channels,))
            write_header(targets, (int(num_of.sum()),))
            for file in (inputs, targets):
                file.flush()
                os.fsync(file.fileno())
        with (folder / SEEDS).open("wb") as file:
            every = [np.zeros(0, np.int64), *places[0], *places[1]]
            np.save(file, np.concatenate(every), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        facts = {
            "sizes": sizes,
            "num_background_seeds": [len(one) for one in places[0]],
            "num_foreground_seeds": [len(one) for one in places[1]],
            "num_background": int(num_of[0]),
            "num_foreground": int(num_of[1]),
        }
        storage.write_json(folder / FACTS, facts)

    def read(self, folder: Path, num_records: int) -> ImageCache:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        sizes_N2 = np.asarray(facts["sizes"], dtype=np.int64).reshape(-1, 2)
        background, foreground = (
            np.concatenate([[0], np.cumsum(facts[name])]).astype(np.int64)
            for name in ("num_background_seeds", "num_foreground_seeds")
        )
        pixels, labels = map_pixels(folder / INPUTS), map_pixels(folder / TARGETS)
        places = np.load(folder / SEEDS, allow_pickle=False)
        channels = self._preprocessing.channels
        num_pixels = int(sizes_N2.prod(axis=1).sum())
        if len(sizes_N2) != num_records or len(labels) != num_pixels:
            raise ValueError("its files differ in length")
        if len(pixels) != num_pixels * channels or len(places) != background[-1] + foreground[-1]:
            raise ValueError("its files differ in shape")
        counted = facts["num_background"] + facts["num_foreground"]
        return ImageCache(
            pixels=pixels,
            labels=labels,
            sizes_N2=sizes_N2,
            channels=channels,
            background=Seeds(places_K=places[: background[-1]], starts_N1=background),
            foreground=Seeds(places_K=places[background[-1] :], starts_N1=foreground),
            share=facts["num_foreground"] / max(1, counted),
        )


def _some_places(
    chosen_HW: Bool[np.ndarray, "H W"], limit: int, random: np.random.Generator
) -> Int64[np.ndarray, "K"]:
    """Sample pixels where `chosen_HW` is true, as row * width + column.

    Half of them are sampled pixel by pixel and half object by object, so that a small object beside
    large ones is seen too. Where all fit, all are given. What fills most of an image isn't listed,
    which would take many times the image's memory: there any pixel will do.
    """
    if np.count_nonzero(chosen_HW) > max(limit, chosen_HW.size // 2):
        tried = random.integers(0, chosen_HW.size, 8 * limit)
        found: np.ndarray = tried[chosen_HW.ravel()[tried]][:limit]
        return found
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
