"""A folder of images and masks, in any of the layouts that people use."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.sources.layouts import (
    find_parts,
    unused_folders,
    without_images,
    wrapped,
)
from binseg.data.sources.listing import Findings, ignored_note, list_folder, subfolders
from binseg.data.sources.pairs import pair_up, records_of_pair
from binseg.data.splits import parse_split
from binseg.errors import DataError
from binseg.imageio import IMAGE_SUFFIXES
from binseg.types import Record, Split

__all__ = ["ACCEPTED", "nothing_found", "read_folder"]

ACCEPTED = (
    "images/ + masks/ (also img, labels, ...), train/ + val/ + test/ holding such pairs, "
    "train_images/ + train_masks/ and so on, a folder with images/ + masks/ for each image or "
    "patient, or NAME.png beside NAME_mask.png"
)


def read_folder(root: Path, config: DataConfig) -> Findings:
    """Pair the folder's images and masks; both ways checked.

    Raises:
        DataError: everything that has no partner or two, named.
    """
    if not root.is_dir():
        raise DataError(f"{root}: data.kind: folder needs a folder; this is a file")
    parts, notes = find_parts(root)
    if not parts:
        raise DataError(nothing_found(root))
    records: list[Record] = []
    problems: list[str] = []
    for part in parts:
        pairs, wrong, by_difference = pair_up(part.images, part.masks, in_pieces=part.in_pieces)
        if by_difference and not wrong:
            _, image, masks = pairs[0]
            notes.append(f"names pair by what they don't all share: {image.name}, {masks[0].name}")
        place = f"in {part.where}: " if len(parts) > 1 else ""
        problems += [place + text for text in wrong]
        if not wrong:
            for name, image, masks in pairs:
                records += records_of_pair(
                    part.prefix + name,
                    image,
                    masks,
                    split=part.split,
                    page_group=config.page_group,
                )
    if problems:
        raise DataError(f"{root}: {'; '.join(problems)}; images and masks pair by file name")
    lists = next(filter(None, map(_split_lists, wrapped(root))), {})
    if lists and all(part.split is None for part in parts):
        records = _listed(records, lists, root)
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
            f"{root}: the lists name {len(strange)} images that aren't there ({name_some(strange)})"
        )
    return [replace(record, split=split_of.get(name_of[record.id])) for record in records]


def _names_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: the list can't be read as UTF-8 text") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [
        str(Path(name).with_suffix("")) if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
        for name in names
    ]
