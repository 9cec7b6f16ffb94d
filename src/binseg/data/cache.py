"""Inputs of one size, decoded once: what the model sees of each image, stretched, padded or tiled.

A cache holds what `preprocess.prepare` gives, as two uint8 files that are mapped into memory
(`store` says how they get there and why they can be trusted).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from binseg.config.recipe import Recipe
from binseg.data.dataset import spread
from binseg.data.masks import MaskRule
from binseg.data.patches import ImageCache, open_images
from binseg.data.store import open_store
from binseg.progress import SILENT, Progress
from binseg.transforms import preprocess
from binseg.types import Preprocessing, Record, Sample

VERSION = "inputs 5"
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

    Arguments and errors are those of `open_store`; the rows are in the records' order.
    """

    def decode(sample: Sample, index: int, name: str) -> dict[str, np.ndarray]:
        del index
        assert sample.mask_HW is not None
        inputs, placements = preprocess.prepare(sample.image_HWC, preprocessing, name=name)
        targets = preprocess.prepare_truth(sample.mask_HW, sample.valid_HW, placements)
        return {"inputs": inputs, "targets": targets}

    stored = open_store(
        *(records, rule, preprocessing, decode), version=VERSION, progress=progress, folder=folder
    )
    return PixelCache(
        inputs_NHWC=stored["inputs"].values,
        targets_NHW=stored["targets"].values,
        record_of_N=np.repeat(np.arange(len(records)), stored["inputs"].counts_N),
    )


def open_training_pixels(
    records: Sequence[Record],
    rule: MaskRule,
    recipe: Recipe,
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> PixelCache | ImageCache:
    """Give whole images where the recipe trains on patches, else its inputs.

    Arguments and errors are those of `open_store`, but that the recipe says how pixels are made.
    """
    preprocessing = recipe.input.preprocessing().as_trained()
    open_pixels = open_images if recipe.draws_patches else open_cache
    cache = open_pixels(records, rule, preprocessing, progress=progress, folder=folder)
    pixels = cache.pixels if isinstance(cache, ImageCache) else cache.inputs_NHWC
    some = pixels[:: max(1, len(pixels) // (NUM_PIXELS if pixels.ndim == 1 else NUM_INPUTS))]
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
