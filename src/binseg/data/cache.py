"""Inputs of one size, decoded once: what the model sees of each image, stretched, padded or tiled.

A cache holds what `preprocess.prepare` gives, as two uint8 files that are mapped into memory
(`store` says how they get there and why they can be trusted).
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Num, UInt8

from binseg import storage
from binseg.config.recipe import Recipe
from binseg.data.dataset import spread
from binseg.data.masks import MaskRule
from binseg.data.store import FACTS, INPUTS, TARGETS, map_pixels, open_store, write_header
from binseg.data.whole_images import ImageCache, open_images
from binseg.progress import SILENT, Progress
from binseg.transforms import preprocess
from binseg.types import Preprocessing, Record

FORMAT_VERSION = 4
"""Raise it when what is stored changes, or how images are decoded or resized."""
NUM_INPUTS, NUM_PIXELS, FEW_LEVELS = 64, 1 << 17, 32
"""Inputs, or pixels, that tell how many grey levels there are; so few that the user is told."""


@dataclass(frozen=True, kw_only=True)
class PixelCache:
    """Model inputs of a list of records, ready to be batched; N counts inputs, not records."""

    inputs_NHWC: UInt8[np.ndarray, "N H W C"]
    targets_NHW: UInt8[np.ndarray, "N H W"]
    """0 background, 1 foreground, `IGNORE` (no truth, or padding)."""
    record_of_N: Int[np.ndarray, "N"]
    """The index of the record that each input shows; tiles of one image share it."""
    is_partial: bool = False
    """True if some images are here without all of their tiles."""

    def __post_init__(self) -> None:
        assert len(self.inputs_NHWC) == len(self.targets_NHW) == len(self.record_of_N)

    def __len__(self) -> int:
        return len(self.record_of_N)

    @property
    def num_bytes(self) -> int:
        """Memory that inputs and targets take when they are loaded whole."""
        return int(self.inputs_NHWC.nbytes + self.targets_NHW.nbytes)

    @property
    def mapped(self) -> np.ndarray:
        """The array whose life is the use of the files."""
        return self.inputs_NHWC

    def holds(self, value: int) -> bool:
        """Tell whether any target has this value."""
        return any(bool((target_HW == value).any()) for target_HW in self.targets_NHW)

    def thinned(self, limit: int) -> "PixelCache":
        """Keep at most so many inputs, evenly spread over the images; those are copied.

        Half of them hold foreground, where so many do: few of a large image's tiles show a small
        thing, and without it a sample couldn't tell a good prediction from none.
        """
        if len(self) <= limit:
            return self
        holds = np.array([bool((target_HW == 1).any()) for target_HW in self.targets_NHW])
        num_holding = min(int(holds.sum()), max(limit // 2, round(holds.mean() * limit)))
        parts = ((holds, num_holding), (~holds, limit - num_holding))
        rows = np.array(
            sorted(row for some, num in parts for row in spread(np.flatnonzero(some).tolist(), num))
        )
        end = int(self.record_of_N.max()) + 1
        whole, kept = (
            np.bincount(part, minlength=end) for part in (self.record_of_N, self.record_of_N[rows])
        )
        return PixelCache(
            inputs_NHWC=np.array(self.inputs_NHWC[rows]),
            targets_NHW=np.array(self.targets_NHW[rows]),
            record_of_N=self.record_of_N[rows],
            is_partial=bool(((kept > 0) & (kept < whole)).any()),
        )


def open_cache(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> PixelCache:
    """Give the inputs of these records, decoding them only if no cache of theirs is whole.

    Args:
        records: what to decode, in the order of the rows.
        rule: how the values of the masks are read.
        preprocessing: size, fit, channels and intensity; mean and std are applied later.
        progress: hears of the decoding, and of a broken cache that is built again.
        folder: where caches live; none means `pixels` in the user's cache folder.

    Raises:
        DataError: no records, or records that can't be read (up to ten are named).
        OutputError: the cache can't be written.
        UsageError: BINSEG_CACHE_GB is no number.
    """
    layout = _Inputs(preprocessing)
    return open_store(records, rule, preprocessing, layout, progress=progress, folder=folder)


Rows = tuple[UInt8[np.ndarray, "n H W C"], UInt8[np.ndarray, "n H W"]]


class _Inputs:
    """The layout: all inputs in one file, all targets in another, and whose each row is."""

    version = FORMAT_VERSION

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def decode(
        self,
        image_HWC: Num[np.ndarray, "H W C"],
        mask_HW: Bool[np.ndarray, "H W"],
        valid_HW: Bool[np.ndarray, "H W"],
        *,
        index: int,
        name: str,
    ) -> Rows:
        del index
        inputs, placements = preprocess.prepare(image_HWC, self._preprocessing, name=name)
        return inputs, preprocess.prepare_truth(mask_HW, valid_HW, placements)

    def write(self, folder: Path, decoded: Iterable[tuple[int, Rows]]) -> None:
        shape = (self._preprocessing.height, self._preprocessing.width)
        channels = self._preprocessing.channels
        record_of: list[int] = []
        with (folder / INPUTS).open("wb") as inputs, (folder / TARGETS).open("wb") as targets:
            write_header(inputs, (0, *shape, channels))
            write_header(targets, (0, *shape))
            for index, (inputs_NHWC, targets_NHW) in decoded:
                inputs.write(np.ascontiguousarray(inputs_NHWC).data)
                targets.write(np.ascontiguousarray(targets_NHW).data)
                record_of.extend([index] * len(inputs_NHWC))
            write_header(inputs, (len(record_of), *shape, channels))
            write_header(targets, (len(record_of), *shape))
            for file in (inputs, targets):
                file.flush()
                os.fsync(file.fileno())
        storage.write_json(folder / FACTS, {"format": FORMAT_VERSION, "record_of": record_of})

    def read(self, folder: Path, num_records: int) -> PixelCache:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        record_of_N = np.asarray(facts["record_of"], dtype=np.int64)
        inputs, targets = map_pixels(folder / INPUTS), map_pixels(folder / TARGETS)
        if not (0 < len(inputs) == len(targets) == len(record_of_N)):
            raise ValueError("its files differ in length")
        if inputs.shape[:3] != targets.shape or record_of_N[-1] != num_records - 1:
            raise ValueError("its files differ in shape")
        return PixelCache(inputs_NHWC=inputs, targets_NHW=targets, record_of_N=record_of_N)


def open_training_pixels(
    records: Sequence[Record],
    rule: MaskRule,
    recipe: Recipe,
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> PixelCache | ImageCache:
    """Give whole images where the recipe trains on patches, else its inputs.

    Args:
        records: what to learn from.
        rule: how the values of the masks are read.
        recipe: its input and patches are used.
        progress: hears of the decoding.
        folder: where caches live; none means `pixels` in the user's cache folder.

    Raises:
        DataError: no records, or records that can't be read.
        OutputError: the cache can't be written.
    """
    preprocessing = recipe.input.preprocessing().as_trained()
    cache: PixelCache | ImageCache
    if recipe.draws_patches:
        cache = open_images(records, rule, preprocessing, progress=progress, folder=folder)
    else:
        cache = open_cache(records, rule, preprocessing, progress=progress, folder=folder)
    num = NUM_INPUTS if isinstance(cache, PixelCache) else NUM_PIXELS
    some = cache.mapped[:: max(1, len(cache.mapped) // num)]
    if preprocessing.intensity == "dtype" and some.max() < FEW_LEVELS:
        progress.say(
            f"the network sees {int(some.max()) + 1} of 256 grey levels: the images use little of "
            "their type's range; input.intensity=percentile stretches each image"
        )
    return cache


def open_validation_pixels(
    records: Sequence[Record],
    rule: MaskRule,
    recipe: Recipe,
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> PixelCache:
    """Give the inputs that choose the best epoch; arguments and errors as above.

    Tiles touch instead of overlapping, as far as whole tiles can: overlaps, which prediction
    blends, would here only be paid and counted twice.
    """
    preprocessing = replace(recipe.input.preprocessing().as_trained(), overlap=0.0)
    return open_cache(records, rule, preprocessing, progress=progress, folder=folder)
