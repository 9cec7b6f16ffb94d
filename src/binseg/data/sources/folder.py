"""A folder of pictures and masks, in any of the layouts that people use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from binseg.config.recipe import DataConfig
from binseg.data.dataset import name_some
from binseg.data.sources.listing import Findings, Listing, ignored_note, list_folder, subfolders
from binseg.data.sources.pairs import (
    mask_name_of,
    pair_by_difference,
    pair_by_name,
    records_of_pair,
)
from binseg.data.splits import parse_split
from binseg.errors import DataError
from binseg.imageio import PICTURE_SUFFIXES
from binseg.structures import Record, Split

__all__ = ["ACCEPTED", "Part", "find_parts", "read_folder"]

ACCEPTED = (
    "images/ + masks/ (also img, labels, ...), train/ + val/ + test/ holding such pairs, or "
    "NAME.png beside NAME_mask.png"
)
_IMAGE_FOLDERS = (
    {"images", "image", "img", "imgs", "pictures", "photos", "jpegimages", "original", "originals"},
    {"input", "inputs", "raw", "rgb", "sat", "satellite"},
)
_MASK_FOLDERS = (
    {
        *("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "gts"),
        *("groundtruth", "segmentation", "segmentations", "segmentationclass"),
        *("manual", "1stmanual"),
    },
    {"seg", "truth", "target", "targets", "output", "outputs", "map", "maps"},
)
"""Names in small letters, without spaces, lines or dots; the second ones only where none of the
first is there, since they also stand for other things."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pictures and masks that belong together: the whole folder, or one split of it."""

    where: str
    """What was taken for it, for the user: `images/ + masks/`."""
    split: Split | None
    prefix: str
    """Before each name, so that train/001 and test/001 are two pictures."""
    images: tuple[tuple[str, Path], ...]
    masks: tuple[tuple[str, Path], ...]
    others: tuple[Path, ...]


def find_parts(root: Path) -> tuple[list[Part], list[str]]:
    """Look for pictures with masks; no part where the folder has none of the known layouts.

    Returns:
        The parts, and notes on folders that look like a split but have no masks.

    Raises:
        DataError: an unreadable folder, or two folders that could each be the pictures or masks.
    """
    folders = subfolders(root)
    pair = _named_pair(root, folders)
    if pair:
        return _parts_of_pair(*pair, root=root), []
    notes: list[str] = []
    parts: list[Part] = []
    for folder in folders:
        split = parse_split(folder.name)
        if split is None:
            continue
        inner = _named_pair(folder, subfolders(folder))
        if inner:
            parts.append(_pair_part(*inner, root=root, split=split, prefix=f"{folder.name}/"))
        elif beside := _beside(folder, root=root, split=split, prefix=f"{folder.name}/"):
            parts.append(beside)
        else:
            notes.append(f"{folder.name}/ holds no pictures with masks: left out")
    if parts:
        return parts, notes
    beside = _beside(root, root=root, split=None, prefix="")
    return [beside] if beside else [], []


def read_folder(root: Path, config: DataConfig) -> Findings:
    """Pair the folder's pictures and masks; both ways checked.

    Raises:
        DataError: everything that has no partner or two, named.
    """
    parts, notes = find_parts(root)
    if not parts:
        raise DataError(nothing_found(root))
    records: list[Record] = []
    problems: list[str] = []
    for part in parts:
        pairs, wrong = pair_by_name(part.images, part.masks)
        if wrong and (found := pair_by_difference(part.images, part.masks)):
            pairs, wrong = found, []
            _, image, mask = pairs[0]
            notes.append(f"names pair by what they don't all share: {image.name}, {mask.name}")
        place = f"in {part.where}: " if len(parts) > 1 else ""
        problems += [place + text for text in wrong]
        if not wrong:
            for name, image, mask in pairs:
                records += records_of_pair(
                    part.prefix + name,
                    image,
                    mask,
                    split=part.split,
                    page_group=config.page_group,
                )
    if problems:
        raise DataError(f"{root}: {'; '.join(problems)}; pictures and masks pair by file name")
    lists = _split_lists(root)
    if lists and all(part.split is None for part in parts):
        records = _listed(records, lists, root)
        notes = [*notes, f"split from {', '.join(path.name for path in lists)}"]
    others = [path for part in parts for path in part.others if path not in lists]
    return Findings(
        records=tuple(sorted(records, key=lambda record: record.id)),
        notes=(
            "pictures and masks from " + ", ".join(part.where for part in parts),
            *notes,
            *_stack_note(records, config.page_group),
            *ignored_note(sorted(set(others)), root),
        ),
    )


def nothing_found(root: Path) -> str:
    """Say what a folder holds and which layouts are accepted."""
    listing = list_folder(root, deep=False)
    folders = [f"{folder.name}/" for folder in subfolders(root)]
    files = [path.name for path in (*listing.pictures, *listing.others)]
    there = name_some([*folders, *files], limit=8) or "nothing"
    return f"{root}: no pictures with masks found; it holds {there}. Accepted: {ACCEPTED}"


def _named_pair(root: Path, folders: Sequence[Path]) -> tuple[Path, Path] | None:
    found: list[Path] = []
    for noun, tiers in (("pictures", _IMAGE_FOLDERS), ("masks", _MASK_FOLDERS)):
        every = ([one for one in folders if _plain(one.name) in names] for names in tiers)
        full = ([one for one in some if list_folder(one).pictures] for some in every)
        fitting = next((some for some in full if some), [])
        if len(fitting) > 1:
            both = " and ".join(f"{path.name}/" for path in fitting)
            raise DataError(
                f"{root}: {both} could each be the folder of {noun}; keep one of them there"
            )
        found += fitting
    return (found[0], found[1]) if len(found) == 2 and found[0] != found[1] else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _parts_of_pair(images: Path, masks: Path, *, root: Path) -> list[Part]:
    """One part, or one a split where the pictures lie in images/train and so on."""
    inner = {parse_split(folder.name): folder for folder in subfolders(images)}
    is_split = inner and None not in inner and not list_folder(images, deep=False).pictures
    if not is_split:
        return [_pair_part(images, masks, root=root, split=None, prefix="")]
    return [
        _pair_part(folder, masks / folder.name, root=root, split=split, prefix=f"{folder.name}/")
        for split, folder in inner.items()
    ]


def _pair_part(images: Path, masks: Path, *, root: Path, split: Split | None, prefix: str) -> Part:
    of_images = list_folder(images)
    of_masks = list_folder(masks) if masks.is_dir() else Listing(pictures=(), others=())
    top = list_folder(root, deep=False).others if split is None else ()
    return Part(
        where=f"{_short(images, root)} + {_short(masks, root)}",
        split=split,
        prefix=prefix,
        images=_named(of_images.pictures, images),
        masks=_named(of_masks.pictures, masks),
        others=(*top, *of_images.others, *of_masks.others),
    )


def _beside(folder: Path, *, root: Path, split: Split | None, prefix: str) -> Part | None:
    """Pictures and masks in one folder, told apart by the masks' endings."""
    listing = list_folder(folder)
    named = _named(listing.pictures, folder)
    for leading in (False, True):
        masks = tuple(one for one in named if mask_name_of(one[0], leading=leading))
        if masks:
            break
    images = tuple(one for one in named if one not in masks)
    if not masks or not images:
        return None
    return Part(
        where=f"{_short(folder, root)} (NAME beside {masks[0][1].name})",
        split=split,
        prefix=prefix,
        images=images,
        masks=masks,
        others=listing.others,
    )


def _named(files: Sequence[Path], folder: Path) -> tuple[tuple[str, Path], ...]:
    return tuple((path.relative_to(folder).with_suffix("").as_posix(), path) for path in files)


def _short(folder: Path, root: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/"


def _stack_note(records: Sequence[Record], page_group: int) -> tuple[str, ...]:
    num_pages = sum(record.page is not None for record in records)
    if not num_pages:
        return ()
    return (
        f"{num_pages} pages of stacks, kept together in blocks of {page_group}; pages at the "
        "seam of two blocks still resemble each other (data.split.gap leaves some out)",
    )


def _split_lists(root: Path) -> dict[Path, Split]:
    """Find train.txt, val.txt, test.txt: one picture's name a line."""
    texts = [path for path in list_folder(root, deep=False).others if path.suffix == ".txt"]
    splits = {path: parse_split(path.stem) for path in texts}
    return {path: split for path, split in splits.items() if split is not None}


def _listed(records: Sequence[Record], lists: dict[Path, Split], root: Path) -> list[Record]:
    split_of: dict[str, Split] = {}
    for path, split in lists.items():
        for name in _names_in(path):
            if split_of.setdefault(name, split) != split:
                raise DataError(f"{path}: {name} is also listed for {split_of[name]}")
    # All pages of a stack go where the stack's own name is listed.
    name_of = {
        record.id: record.id.rpartition("-page")[0] if record.page is not None else record.id
        for record in records
    }
    strange = sorted(split_of.keys() - set(name_of.values()))
    if strange:
        raise DataError(
            f"{root}: the lists name {len(strange)} pictures that aren't there "
            f"({name_some(strange)})"
        )
    return [replace(record, split=split_of.get(name_of[record.id])) for record in records]


def _names_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: the list can't be read as UTF-8 text") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [
        str(Path(name).with_suffix("")) if Path(name).suffix.lower() in PICTURE_SUFFIXES else name
        for name in names
    ]
