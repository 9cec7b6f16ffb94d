"""Images and masks find each other by name, and whatever has no partner is named."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from os.path import commonprefix
from pathlib import Path, PurePosixPath

from binseg.data.dataset import counted, name_some
from binseg.errors import DataError, ImageError
from binseg.imageio import TIFF_SUFFIXES, probe
from binseg.types import Record, Split

_WORDS = (
    r"(?:masks?|labels?|lab|gt|ground[ _-]?truth|annotations?|anno|segmentations?|seg|vessels?"
    r"|manual\d?)"
)
_MASK_SUFFIX = re.compile(rf"^(?P<name>.+?)[ ._-]{_WORDS}$", re.IGNORECASE)
_MASK_PREFIX = re.compile(rf"^{_WORDS}[ ._-](?P<name>.+)$", re.IGNORECASE)

_PIECE = re.compile(r"^(?P<mask>.+?[ ._-]masks?)[ ._-]\d{1,3}$", re.IGNORECASE)
MOST_CHANNELS = 16
_MOST_AGREE = 0.9
"""Share of names that must pair when they differ by common parts; the rest are lost files."""

Named = tuple[str, Path]
"""A name, which is the path in its folder without the file's ending, and the whole path."""
Pair = tuple[str, Path, tuple[Path, ...]]
"""An image's name, its path, and the files of its mask: several where each holds an object."""


def mask_name_of(stem: str, *, leading: bool = False) -> str | None:
    """Give the image's name out of a mask's file name; None where it bears no mask's word.

    Args:
        stem: the name without the file's ending.
        leading: whether the word stands before the name, and not after it.

    >>> mask_name_of("cat_mask"), mask_name_of("training_groundtruth"), mask_name_of("cat")
    ('cat', 'training', None)
    >>> mask_name_of("mask_cat"), mask_name_of("mask_cat", leading=True)
    (None, 'cat')
    """
    match = (_MASK_PREFIX if leading else _MASK_SUFFIX).match(stem)
    return match["name"] if match else None


def mask_of_piece(stem: str) -> str | None:
    """Give the name of the mask of which a numbered file is a further piece.

    Of other words than mask the number may count readers (`_gt_1`), or planes of classes.

    >>> mask_of_piece("benign (4)_mask_1"), mask_of_piece("cat_gt_1"), mask_of_piece("cat_mask")
    ('benign (4)_mask', None, None)
    """
    match = _PIECE.match(stem)
    return match["mask"] if match else None


def pair_up(
    images: Sequence[Named], masks: Sequence[Named], *, in_pieces: Collection[str] = ()
) -> tuple[list[Pair], list[str], bool]:
    """Pair images and masks by name, or else by what their names don't all share.

    Args:
        images: the images.
        masks: the masks.
        in_pieces: names whose mask is in all files of that name.

    Returns:
        Pairs sorted by name, what is wrong, as sentences, and whether the difference told.
    """
    pairs, wrong = pair_by_name(images, masks, in_pieces=in_pieces)
    if wrong and (found := _pair_by_difference(images, masks)):
        also, lacking = found
        if not lacking or len(also) > len(pairs):
            return also, lacking, True
    return pairs, wrong, False


def pair_by_name(
    images: Sequence[Named], masks: Sequence[Named], *, in_pieces: Collection[str] = ()
) -> tuple[list[Pair], list[str]]:
    """Pair images and masks.

    Args:
        images: the images.
        masks: a mask's name equals its image's, or adds `_mask`, `-gt` and the like; where there
            is `NAME_mask`, `NAME_mask_1` is a further piece of it.
        in_pieces: names whose mask is in all files of that name.

    Returns:
        Pairs sorted by name, and what is wrong, as sentences.
    """
    images_of = _by_name(images)
    masks_of: dict[str, list[Path]] = defaultdict(list)
    pieces_of: dict[str, list[Path]] = defaultdict(list)
    mask_names = {name for name, _ in masks}
    for name, path in masks:
        whole = mask_of_piece(name)
        if name in images_of:
            (pieces_of if name in in_pieces else masks_of)[name].append(path)
        elif whole and whole in mask_names:
            pieces_of[mask_name_of(whole) or whole].append(path)
        else:
            masks_of[mask_name_of(name) or name].append(path)
    masks_by_name = {name: [*masks_of[name], *pieces_of[name]] for name in {*masks_of, *pieces_of}}
    problems = [
        *_doubles("image", images_of),
        *_doubles("mask", masks_of),
        *_partnerless("image", "mask", images_of, masks_by_name),
        *_partnerless("mask", "image", masks_by_name, images_of),
    ]
    names = sorted(images_of.keys() & masks_by_name.keys())
    return [(name, images_of[name][0], tuple(masks_by_name[name])) for name in names], problems


def _pair_by_difference(
    images: Sequence[Named], masks: Sequence[Named]
) -> tuple[list[Pair], list[str]] | None:
    """Pair images and masks whose names differ by parts that all of each kind share.

    `7_sat.jpg` and `7_mask.png`, `21_training.tif` and `21_manual1.gif`: without the beginning and
    the ending that all images share, and those that all masks share, both are called alike. It
    must work out for nearly every file, or nothing is paired.

    Returns:
        Pairs sorted by name, and what has no partner; None where names don't tell.
    """
    if len(images) == len(masks) == 1:
        return [(*images[0], (masks[0][1],))], []
    by_word = [mask_name_of(name) or name for name, _ in masks]
    best: tuple[list[Pair], list[str]] | None = None
    most = _MOST_AGREE * max(len(images), len(masks))
    for image_cores in ([name for name, _ in images], _cores(images)):
        for mask_cores in (_cores(masks), by_word):
            image_of = dict(zip(image_cores, images, strict=True))
            mask_of = dict(zip(mask_cores, masks, strict=True))
            both = image_of.keys() & mask_of.keys()
            is_plain = len(image_of) == len(images) and len(mask_of) == len(masks)
            if not is_plain or "" in both or len(both) < most or (best and len(both) == most):
                continue
            most = len(both)
            images_of, masks_of = (
                {core: [path] for core, (_, path) in of.items()} for of in (image_of, mask_of)
            )
            best = (
                sorted((*image_of[core], (mask_of[core][1],)) for core in both),
                [
                    *_partnerless("image", "mask", images_of, masks_of),
                    *_partnerless("mask", "image", masks_of, images_of),
                ],
            )
    return best


def _cores(named: Sequence[Named]) -> list[str]:
    """Strip each file's name of the beginning and ending that all share."""
    files = [PurePosixPath(name) for name, _ in named]
    names = [file.name for file in files]
    # Digits are counted, not shared: of 21 and 22 the 2 belongs to the number.
    head = re.sub(r"\d+$", "", commonprefix(names))  # noqa: RUF071 - letters are meant
    backwards = [name[::-1] for name in names]
    tail = re.sub(r"\d+$", "", commonprefix(backwards))  # noqa: RUF071
    cores = [name[len(head) : len(name) - len(tail)] for name in names]
    return [
        (file.parent / core).as_posix() if core else ""
        for file, core in zip(files, cores, strict=True)
    ]


def records_of_pair(
    name: str, image: Path, masks: Sequence[Path], *, split: Split | None, page_group: int
) -> list[Record]:
    """Give one record for an image, or one a page for a stack, grouped in blocks of pages.

    Raises:
        DataError: a stack whose mask has another number of pages, or is in several files.
    """
    mask, *further = masks
    num_pages, num_masks = _num_pages(image), _num_pages(mask)
    if further and (num_pages > 1 or any(_num_pages(path) > 1 for path in masks)):
        raise DataError(
            f"{image} has {len(masks)} masks ({name_some([path.name for path in masks])}); masks "
            "in several files are for single images, not for stacks of pages"
        )
    if num_pages != num_masks:
        way_on = (
            "; if they are channels, save it with its axes named (C Y X, OME-TIFF or ImageJ)"
            if num_masks == 1 and num_pages <= MOST_CHANNELS
            else ""
        )
        raise DataError(
            f"{image} has {num_pages} pages, but its mask {mask.name} has {num_masks}; "
            f"each page needs its mask{way_on}"
        )
    if num_pages == 1:
        return [
            Record(
                id=name,
                image_path=image,
                mask_path=mask,
                further_masks=tuple(further),
                split=split,
            )
        ]
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
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return 1
    try:
        return probe(path).num_pages
    except ImageError:
        # Reading it will say what is wrong with it, and `check` names all such files at once.
        return 1


def _by_name(files: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    paths_of: dict[str, list[Path]] = defaultdict(list)
    for name, path in files:
        paths_of[name].append(path)
    return paths_of


def _doubles(noun: str, paths_of: Mapping[str, list[Path]]) -> list[str]:
    doubles = [
        " and ".join(_shown(name, path) for path in paths)
        for name, paths in sorted(paths_of.items())
        if len(paths) > 1
    ]
    if not doubles:
        return []
    told = counted(len(doubles), "name stands", "names stand")
    return [f"{told} for two {noun}s ({name_some(doubles)})"]


def _partnerless(
    noun: str, partner: str, these: Mapping[str, list[Path]], those: Mapping[str, list[Path]]
) -> list[str]:
    alone = [_shown(name, these[name][0]) for name in sorted(these.keys() - those.keys())]
    if not alone:
        return []
    told = counted(len(alone), f"{noun} has", f"{noun}s have")
    return [f"{told} no {partner} ({name_some(alone)})"]


def _shown(name: str, path: Path) -> str:
    """A file's name, with the folders that are part of the name."""
    return (PurePosixPath(name).parent / path.name).as_posix()
