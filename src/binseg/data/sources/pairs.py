"""Pictures and masks find each other by name, and whatever has no partner is named."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from binseg.data.dataset import counted, name_some
from binseg.errors import DataError, PictureError
from binseg.imageio import probe
from binseg.structures import Record, Split

__all__ = ["mask_name_of", "pair_by_name", "records_of_pair"]

_TIFF_SUFFIXES = {".tif", ".tiff"}
_MASK_SUFFIX = re.compile(
    r"^(?P<name>.+?)[ ._-](?:masks?|labels?|gt|ground[ _-]?truth|segmentations?|seg)$",
    re.IGNORECASE,
)


def mask_name_of(stem: str) -> str | None:
    """Give the picture's name out of a mask's file name; None where it bears no mask's ending.

    >>> mask_name_of("cat_mask"), mask_name_of("training_groundtruth"), mask_name_of("cat")
    ('cat', 'training', None)
    """
    match = _MASK_SUFFIX.match(stem)
    return match["name"] if match else None


def pair_by_name(
    images: Iterable[tuple[str, Path]], masks: Iterable[tuple[str, Path]]
) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """Pair pictures and masks.

    Args:
        images: (name, path); the name is the path in its folder without the file's ending.
        masks: likewise; a mask's name equals its picture's, or adds `_mask`, `-gt` and the like.

    Returns:
        (name, image path, mask path) sorted by name, and what is wrong, as sentences.
    """
    images_of = _by_name(images)
    masks_of: dict[str, list[Path]] = defaultdict(list)
    for name, path in masks:
        stripped = mask_name_of(name)
        masks_of[stripped if name not in images_of and stripped else name].append(path)
    problems = [
        *_doubles("picture", images_of),
        *_doubles("mask", masks_of),
        *_partnerless("picture", "mask", images_of, masks_of),
        *_partnerless("mask", "picture", masks_of, images_of),
    ]
    names = sorted(images_of.keys() & masks_of.keys())
    return [(name, images_of[name][0], masks_of[name][0]) for name in names], problems


def records_of_pair(
    name: str, image: Path, mask: Path, *, split: Split | None, page_group: int
) -> list[Record]:
    """Give one record for a picture, or one a page for a stack, grouped in blocks of pages.

    Raises:
        DataError: a stack whose mask has another number of pages.
    """
    num_pages, num_masks = _num_pages(image), _num_pages(mask)
    if num_pages != num_masks:
        raise DataError(
            f"{image} has {num_pages} pages, but its mask {mask.name} has {num_masks}; "
            "each page needs its mask"
        )
    if num_pages == 1:
        return [Record(id=name, image_path=image, mask_path=mask, split=split)]
    return [
        Record(
            id=f"{name}-page{page:04d}",
            image_path=image,
            mask_path=mask,
            page=page,
            group=f"{name}-block{page // page_group:04d}",
            split=split,
        )
        for page in range(num_pages)
    ]


def _num_pages(path: Path) -> int:
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        return 1
    try:
        return probe(path).num_pages
    except PictureError:
        # Reading it will say what is wrong with it, and `check` names all such files at once.
        return 1


def _by_name(files: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    paths_of: dict[str, list[Path]] = defaultdict(list)
    for name, path in files:
        paths_of[name].append(path)
    return paths_of


def _doubles(noun: str, paths_of: Mapping[str, list[Path]]) -> list[str]:
    doubles = [
        " and ".join(path.name for path in paths)
        for _, paths in sorted(paths_of.items())
        if len(paths) > 1
    ]
    if not doubles:
        return []
    told = counted(len(doubles), "name stands", "names stand")
    return [f"{told} for two {noun}s ({name_some(doubles)})"]


def _partnerless(
    noun: str, partner: str, these: Mapping[str, list[Path]], those: Mapping[str, list[Path]]
) -> list[str]:
    alone = [these[name][0].name for name in sorted(these.keys() - those.keys())]
    if not alone:
        return []
    told = counted(len(alone), f"{noun} has", f"{noun}s have")
    return [f"{told} no {partner} ({name_some(alone)})"]
