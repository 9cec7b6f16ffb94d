"""A folder of images and masks, in any of the layouts that people use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.sources.annotations import missing_note
from binseg.data.sources.layouts import (
    Part,
    find_parts,
    split_of_path,
    unused_folders,
    without_images,
    wrapped,
)
from binseg.data.sources.listing import Findings, ignored_note, list_folder, read_lines, subfolders
from binseg.data.sources.pairs import Named, Pair, pair_up, records_of_pair
from binseg.data.splits import parse_split
from binseg.errors import DataError
from binseg.imageio import IMAGE_SUFFIXES
from binseg.types import Record, Split

ACCEPTED = (
    "images/ + masks/ (also img, labels, ...), train/ + val/ + test/ holding such pairs, "
    "train_images/ + train_masks/ and so on, a folder with images/ + masks/ for each image or "
    "patient, or NAME.png beside NAME_mask.png"
)


def find_folder(root: Path) -> tuple[list[Part], list[str]] | None:
    """Find images with masks, and notes on the folders that hold them."""
    found = find_parts(root) if root.is_dir() else ([], [])
    return found if found[0] else None


def read_folder(
    found: tuple[list[Part], list[str]] | None, root: Path, config: DataConfig
) -> Findings:
    """Pair the folder's images and masks; both ways checked.

    Raises:
        DataError: everything that has no partner or two, named.
    """
    if not root.is_dir():
        raise DataError(f"{root}: data.kind: folder needs a folder; this is a file")
    if found is None:
        raise DataError(nothing_found(root))
    parts, notes = found
    found = [_read_part(part, config) for part in parts]
    records = [record for one in found for record in one.records]
    lone = [image for one in found for image in one.lone]
    notes += [note for one in found for note in one.notes]
    problems = [
        (f"in {part.where}: " if len(parts) > 1 else "") + text
        for part, one in zip(parts, found, strict=True)
        for text in one.problems
    ]
    if problems:
        raise DataError(f"{root}: {'; '.join(problems)}; images and masks pair by file name")
    notes += missing_note([path for _, path, _ in lone], config, root, noun="mask")
    if config.missing == "empty":
        records += [Record(id=i, image_path=one, shapes=(), split=part) for i, one, part in lone]
    lists = next(filter(None, map(_split_lists, wrapped(root))), {})
    if lists and all(part.split is None for part in parts):
        records = _listed(records, lists, root, {name for name, _, _ in lone})
        notes = [*notes, f"split from {', '.join(path.name for path in lists)}"]
    if unused := unused_folders(root, parts):
        notes.append(f"folders of images that are not used: {name_some(unused)}")
    others = [path for part in parts for path in part.others if path not in lists]
    return Findings(
        records=tuple(sorted(records, key=lambda record: record.id)),
        notes=(
            "images and masks from " + ", ".join(part.where for part in parts),
            *notes,
            *_stack_note(records, config.page_group),
            *_pieces_note(records),
            *ignored_note(sorted(set(others)), root),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _OfPart:
    """The pairs of one part of a folder, and what has no partner."""

    records: Sequence[Record] = ()
    lone: Sequence[tuple[str, Path, Split | None]] = ()
    """Images whose masks have yet to be made, with their ids and splits."""
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()


def _read_part(part: Part, config: DataConfig) -> _OfPart:
    pairs, wrong, by_difference = pair_up(part.images, part.masks, in_pieces=part.in_pieces)
    used = {image for _, image, _ in pairs}
    alone = [(name, path) for name, path in part.images if path not in used]
    lone: list[tuple[str, Path, Split | None]] = []
    if config.missing != "refuse" and _only_lack_masks(alone, pairs, wrong, part):
        lone, wrong = [(part.prefix + name, path, part.split) for name, path in alone], []
    if wrong:
        return _OfPart(problems=wrong)
    records = [
        record
        for name, image, masks in pairs
        for record in records_of_pair(
            part.prefix + name, image, masks, split=part.split, page_group=config.page_group
        )
    ]
    notes = []
    if by_difference:
        _, image, masks = pairs[0]
        notes = [f"names pair by what they don't all share: {image.name}, {masks[0].name}"]
    return _OfPart(records=records, lone=lone, notes=notes)


def _only_lack_masks(
    alone: Sequence[Named], pairs: Sequence[Pair], wrong: Sequence[str], part: Part
) -> bool:
    """Tell whether nothing is wrong but that some images' masks have yet to be made."""
    names = tuple(name for name, _, _ in pairs)
    num_masks = sum(len(masks) for _, _, masks in pairs)
    # What begins with a pair's name is its twin, or another mask of it under a strange ending.
    return (
        bool(pairs)
        and bool(alone)
        and len(wrong) == 1
        and num_masks == len(part.masks)
        and not any(name in names or re.match(_twin_of(names), name) for name, _ in alone)
    )


def _twin_of(names: Sequence[str]) -> str:
    return rf"(?:{'|'.join(map(re.escape, names))})[ ._-](?:.*[ ._-])?(?:gt|mask|label|seg|manual)"


def read_patterns(_: object, root: Path, config: DataConfig) -> Findings:
    """Pair images and masks by `data.images` and `data.masks`, wherever in the folder they lie.

    Raises:
        DataError: a pattern that can't be read or matches nothing, masks without an image, or a
            key that two files share.
    """
    assert config.images is not None
    assert config.masks is not None
    listing = list_folder(root)
    images, masks = (
        _matched(pattern, listing.images, root, noun)
        for pattern, noun in ((config.images, "images"), (config.masks, "masks"))
    )
    images = {key: path for key, path in images.items() if path not in set(masks.values())}
    if strays := sorted(masks.keys() - images.keys()):
        raise DataError(
            f"{root}: {counted(len(strays), 'mask has', 'masks have')} no image of the same key "
            f"({name_some(strays)})"
        )
    alone = [images[key] for key in sorted(images.keys() - masks.keys())]
    records = [
        one
        for key in sorted(masks)
        for one in records_of_pair(
            key,
            images[key],
            [masks[key]],
            split=split_of_path(images[key], root),
            page_group=config.page_group,
        )
    ]
    notes = missing_note(alone, config, root, noun="mask")
    if config.missing == "empty":
        records += [
            Record(id=key, image_path=images[key], shapes=())
            for key in sorted(images.keys() - masks.keys())
        ]
    if any(record.split is None for record in records):
        records = [replace(record, split=None) for record in records]
    return Findings(records=tuple(records), notes=notes)


def _matched(pattern: str, paths: Sequence[Path], root: Path, noun: str) -> dict[str, Path]:
    """Give the files whose path in the folder fits a pattern, by the key that it names."""
    try:
        found = re.compile(pattern if "(?P<key>" in pattern else _regex_of(pattern))
    except re.error as error:
        raise DataError(f"data.{noun}: {pattern!r} can't be read: {error}") from None
    path_of: dict[str, Path] = {}
    for path in paths:
        if match := found.fullmatch(path.relative_to(root).as_posix()):
            key = match["key"] if "key" in found.groupindex else "/".join(match.groups())
            if key in path_of:
                raise DataError(
                    f"data.{noun}: {pattern!r} gives {path_of[key].name} and {path.name} one key, "
                    f"{key!r}"
                )
            path_of[key] = path
    if not path_of:
        raise DataError(f"data.{noun}: {pattern!r} fits none of {len(paths)} images in {root}")
    return path_of


def _regex_of(pattern: str) -> str:
    """Turn a glob into a regular expression, in which each single `*` is a part of the key.

    >>> re.fullmatch(_regex_of("**/*_raw.png"), "day 1/7_raw.png").groups()
    ('7',)
    """
    parts = {"**/": "(?:.*/)?", "*": "([^/]*)", "?": "[^/]"}
    return "".join(
        parts.get(one, re.escape(one)) for one in re.split(r"(\*\*/|\*|\?)", pattern) if one
    )


def nothing_found(root: Path) -> str:
    """Say what a folder holds and which layouts are accepted."""
    listing = list_folder(root, deep=False)
    folders = [f"{folder.name}/" for folder in subfolders(root)]
    files = [path.name for path in (*listing.images, *listing.others)]
    there = name_some([*folders, *files], limit=8) or "nothing"
    told = "; ".join([f"it holds {there}", *without_images(root)])
    return f"{root}: no images with masks found; {told}. Accepted: {ACCEPTED}"


def _stack_note(records: Sequence[Record], page_group: int) -> tuple[str, ...]:
    num_pages = sum(record.page is not None for record in records)
    if not num_pages:
        return ()
    return (
        f"{num_pages} pages of stacks, kept together in blocks of {page_group}; pages at the "
        "seam of two blocks still resemble each other (data.split.gap leaves some out)",
    )


def _pieces_note(records: Sequence[Record]) -> tuple[str, ...]:
    several = [record for record in records if record.further_masks]
    if not several:
        return ()
    told = counted(len(several), "image has", "images have")
    example = name_some([path.name for path in several[0].mask_paths])
    return (f"{told} several mask files ({example}): what any of them marks is foreground",)


def _split_lists(root: Path) -> dict[Path, Split]:
    """Find train.txt, val.txt, test.txt: one image's name a line."""
    texts = [path for path in list_folder(root, deep=False).others if path.suffix == ".txt"]
    splits = {path: parse_split(path.stem) for path in texts}
    return {path: split for path, split in splits.items() if split is not None}


def _listed(
    records: Sequence[Record], lists: dict[Path, Split], root: Path, lone: set[str]
) -> list[Record]:
    split_of: dict[str, Split] = {}
    for path, split in lists.items():
        for line in read_lines(path):
            if line.startswith("#"):
                continue
            is_file = Path(line).suffix.lower() in IMAGE_SUFFIXES
            name = str(Path(line).with_suffix("")) if is_file else line
            if split_of.setdefault(name, split) != split:
                raise DataError(f"{path}: {name} is also listed for {split_of[name]}")
    # All pages of a stack go where the stack's own name is listed.
    name_of = {
        record.id: record.id.rpartition("-page")[0] if record.page is not None else record.id
        for record in records
    }
    strange = sorted(split_of.keys() - set(name_of.values()) - lone)
    if strange:
        raise DataError(
            f"{root}: the lists name {len(strange)} images that aren't there ({name_some(strange)})"
        )
    return [replace(record, split=split_of.get(name_of[record.id])) for record in records]
