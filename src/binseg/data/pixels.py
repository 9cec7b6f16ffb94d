"""The pixels of a run: which cache a recipe trains on, and which one it validates on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache, open_cache
from binseg.data.masks import MaskRule
from binseg.data.whole_images import ImageCache, open_images
from binseg.progress import SILENT, Progress
from binseg.types import Record

__all__ = ["open_training_pixels", "open_validation_pixels"]


def open_training_pixels(
    records: Sequence[Record],
    rule: MaskRule,
    recipe: Recipe,
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> PixelCache | ImageCache:
    """Give whole images where the recipe draws patches, else its inputs.

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
    if recipe.draws_patches:
        return open_images(records, rule, preprocessing, progress=progress, folder=folder)
    return open_cache(records, rule, preprocessing, progress=progress, folder=folder)


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
