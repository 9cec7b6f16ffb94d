"""A folder of images and masks, in any of the layouts that people use.

Images and masks find each other by name, and whatever has no partner is named.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from os.path import commonprefix
from pathlib import Path, PurePosixPath

from binseg.config.recipe import DataConfig
from binseg.data.dataset import counted, name_some
from binseg.data.sources import layouts
from binseg.data.sources.annotations import without_mask
from binseg.data.sources.listing import Findings, ignored_note, list_folder, read_lines, subfolders
from binseg.data.splits import parse_split
from binseg.errors import DataError, ImageError
from binseg.imageio import IMAGE_SUFFIXES, STACK_SUFFIXES, probe
from binseg.imageio.formats import FORMATS
from binseg.types import Record, Split

MOST_CHANNELS = 16
NIFTI_SUFFIXES = FORMATS["NIFTI"].suffixes
_MOST_AGREE = 0.9  # Share of names that must pair when they differ by common parts; others are lost

Pair = tuple[str, Path, tuple[Path, ...]]  # An image's name, its path, and the files of its mask


def pair_up(
    images: Sequence[layouts.Named],
    masks: Sequence[layouts.Named],
    *,
    in_pieces: Collection[str] = (),
) -> tuple[list[Pair], list[str], bool]:
    """Pair images and masks; give pairs by name, what is wrong, and if differences told."""
    pairs, wrong = _pair_by_name(images, masks, in_pieces=in_pieces)
    if wrong and (found := _pair_by_difference(images, masks)):
        also, lacking = found
        if not lacking or len(also) > len(pairs):
            return also, lacking, True
    return pairs, wrong, False


def _pair_by_name(
    images: Sequence[layouts.Named], masks: Sequence[layouts.Named], *, in_pieces: Collection[str]
) -> tuple[list[Pair], list[str]]:
    """Pair each image with the mask of its name, which may add `_mask`, `-gt` and the like."""
    images_of, masks_of, pieces_of = (defaultdict[str, list[Path]](list) for _ in range(3))
    for name, path in images:
        images_of[name].append(path)
    mask_names = {name for name, _ in masks}
    for name, path in masks:
        whole = layouts.mask_of_piece(name)
        if name in images_of:
            (pieces_of if name in in_pieces else masks_of)[name].append(path)
        elif whole and whole in mask_names:
            pieces_of[layouts.mask_name_of(whole) or whole].append(path)
        else:
            masks_of[layouts.mask_name_of(name) or name].append(path)
    doubles = [*_doubles("image", images_of), *_doubles("mask", masks_of)]
    files_of = {name: (*masks_of[name], *pieces_of[name]) for name in {*masks_of, *pieces_of}}
    first_images = {name: paths[0] for name, paths in images_of.items()}
    first_masks = {name: paths[0] for name, paths in files_of.items()}
    both = sorted(first_images.keys() & files_of.keys())
    pairs = [(name, first_images[name], files_of[name]) for name in both]
    return pairs, [*doubles, *_partnerless(first_images, first_masks)]


def _pair_by_difference(
    images: Sequence[layouts.Named], masks: Sequence[layouts.Named]
) -> tuple[list[Pair], list[str]] | None:
    """Pair `7_sat.jpg` and `7_mask.png`: names differ by parts that all images, all masks share."""
    if len(images) == len(masks) == 1:
        return [(*images[0], (masks[0][1],))], []
    by_word = [layouts.mask_name_of(name) or name for name, _ in masks]
    most = _MOST_AGREE * max(len(images), len(masks))
    found: list[tuple[dict[str, layouts.Named], dict[str, layouts.Named], set[str]]] = []
    for image_cores in ([name for name, _ in images], _cores(images)):
        for mask_cores in (_cores(masks), by_word):
            image_of = dict(zip(image_cores, images, strict=True))
            mask_of = dict(zip(mask_cores, masks, strict=True))
            both = image_of.keys() & mask_of.keys()
            is_plain = len(image_of) == len(images) and len(mask_of) == len(masks)
            if is_plain and "" not in both and len(both) >= most:
                found.append((image_of, mask_of, both))
    if not found:
        return None
    image_of, mask_of, both = max(found, key=lambda one: len(one[2]))
    pairs: list[Pair] = sorted((*image_of[core], (mask_of[core][1],)) for core in both)
    paths = ({core: path for core, (_, path) in of.items()} for of in (image_of, mask_of))
    return pairs, _partnerless(*paths)


def _cores(named: Sequence[layouts.Named]) -> list[str]:
    """Strip each file's name of the beginning and ending that all share."""
    files = [PurePosixPath(name) for name, _ in named]
    names = [file.name for file in files]
    # Digits are counted, not shared: of 21 and 22 the 2 belongs to the number.
    head = re.sub(r"\d+$", "", commonprefix(names))  # noqa: RUF071 - letters are meant
    backwards = [name[::-1] for name in names]
    tail = re.sub(r"\d+$", "", commonprefix(backwards))  # noqa: RUF071
    cores = [name[len(head) : len(name) - len(tail)] for name in names]
    both = zip(files, cores, strict=True)
    return [(file.parent / core).as_posix() if core else "" for file, core in both]


def records_of_pair(
    name: str, image: Path, masks: Sequence[Path], *, split: Split | None, page_group: int
) -> list[Record]:
    """Give one record for an image, or one a page for a stack, grouped in blocks of pages."""
    mask, *further = masks
    num_pages, num_masks = _num_pages(image), _num_pages(mask)
    if further and (num_pages > 1 or any(_num_pages(path) > 1 for path in masks)):
        told = f"{image} has {len(masks)} masks ({name_some([path.name for path in masks])})"
        why = "masks in several files are for single images, not for stacks of pages"
        raise DataError(f"{told}; {why}")
    if num_pages != num_masks:
        told = f"{image} has {num_pages} pages, but its mask {mask.name} has {num_masks}"
        way_on = "each page needs its mask"
        if num_masks == 1 and num_pages <= MOST_CHANNELS:
            way_on += (
                "; if they are channels, save it with its axes named (C Y X, OME-TIFF or ImageJ)"
            )
        raise DataError(f"{told}; {way_on}")
    record = Record(id=name, image_path=image, mask_path=mask, split=split)
    return pages_of(replace(record, further_masks=tuple(further)), page_group)


def pages_of(record: Record, page_group: int) -> list[Record]:
    """Give one record for each page of a stack, grouped in blocks; others stay as they are."""
    num_pages, name = _num_pages(record.image_path), record.id
    _check_axes(record)
    if num_pages == 1:
        return [record]
    groups = {page: f"{name}-block{page // page_group:04d}" for page in range(num_pages)}
    return [
        replace(record, id=f"{name}-page{page:04d}", page=page, group=group)
        for page, group in groups.items()
    ]


def _check_axes(record: Record) -> None:
    """Refuse a volume and a mask whose headers say that their axes run another way."""
    ways = dict.fromkeys((record.image_path, *record.further_images, *record.mask_paths), "")
    for path in ways:
        if path.suffix.lower() in NIFTI_SUFFIXES:
            with suppress(ImageError):  # reading it will say what is wrong with it
                ways[path] = probe(path).axes
    said = {axes: path for path, axes in ways.items() if axes}
    if len(said) > 1:
        told = ", ".join(f"{path.name} ({axes})" for axes, path in said.items())
        way_on = "save both alike, for example by nibabel.as_closest_canonical"
        odd = f"the axes of volume and mask run in other ways: {told}"
        raise DataError(f"{record.image_path}: {odd}; {way_on}")


def _num_pages(path: Path) -> int:
    if path.suffix.lower() not in STACK_SUFFIXES:
        return 1
    try:
        return probe(path).num_pages
    except ImageError:
        # Reading it will say what is wrong with it, and `check` names all such files at once.
        return 1


def _doubles(noun: str, paths_of: Mapping[str, list[Path]]) -> list[str]:
    several = {name: paths for name, paths in sorted(paths_of.items()) if len(paths) > 1}
    doubles = [" and ".join(_shown(name, one) for one in x) for name, x in several.items()]
    told = counted(len(doubles), "name stands", "names stand")
    return [f"{told} for two {noun}s ({name_some(doubles)})"] if doubles else []


def _partnerless(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[str]:
    told = []
    ways = (("image", "mask", images, masks), ("mask", "image", masks, images))
    for noun, partner, these, those in ways:
        if alone := [_shown(name, these[name]) for name in sorted(these.keys() - those.keys())]:
            num = counted(len(alone), f"{noun} has", f"{noun}s have")
            told.append(f"{num} no {partner} ({name_some(alone)})")
    return told


def _shown(name: str, path: Path) -> str:
    return (PurePosixPath(name).parent / path.name).as_posix()


ACCEPTED = (
    "images/ + masks/ (also img, labels, ...), train/ + val/ + test/ holding such pairs, "
    "train_images/ + train_masks/ and so on, a folder with images/ + masks/ for each image or "
    "patient, or NAME.png beside NAME_mask.png"
)


def find_folder(root: Path) -> tuple[list[layouts.Part], list[str]] | None:
    """Find images with masks, and notes on the folders that hold them."""
    found = layouts.find_parts(root) if root.is_dir() else ([], [])
    return found if found[0] else None


def read_folder(
    found: tuple[list[layouts.Part], list[str]] | None, root: Path, config: DataConfig
) -> Findings:
    """Pair the folder's images and masks; both ways checked."""
    if not root.is_dir():
        raise DataError(f"{root}: data.kind: folder needs a folder; this is a file")
    if found is None:
        raise DataError(nothing_found(root))
    parts, notes = found
    records: list[Record] = []
    lone: list[Record] = []
    problems: list[str] = []
    for part in parts:
        pairs, wrong, by_difference = pair_up(part.images, part.masks, in_pieces=part.in_pieces)
        used = {image for _, image, _ in pairs}
        alone = [(name, path) for name, path in part.images if path not in used]
        if config.missing != "refuse" and _only_lack_masks(alone, pairs, wrong, part):
            lone += [
                Record(id=part.prefix + name, image_path=path, shapes=(), split=part.split)
                for name, path in alone
            ]
        elif wrong:
            where = f"in {part.where}: " if len(parts) > 1 else ""
            problems += [where + text for text in wrong]
            continue
        for name, image, masks in pairs:
            given = (part.prefix + name, image, masks)
            records += records_of_pair(*given, split=part.split, page_group=config.page_group)
        if by_difference:
            example = f"{pairs[0][1].name}, {pairs[0][2][0].name}"
            notes.append(f"names pair by what they don't all share: {example}")
    if problems:
        raise DataError(f"{root}: {'; '.join(problems)}; images and masks pair by file name")
    empty, told = without_mask(lone, len(records), config, root, noun="mask")
    records += [page for one in empty for page in pages_of(one, config.page_group)]
    notes = [*notes, *told]
    lists = next(filter(None, map(split_lists, layouts.wrapped(root))), {})
    if lists and all(part.split is None for part in parts):
        records = _listed(records, lists, root, {one.id for one in lone})
        notes.append(f"split from {', '.join(path.name for path in lists)}")
    if unused := layouts.unused_folders(root, parts):
        notes.append(f"folders of images that are not used: {name_some(unused)}")
    others = {path for part in parts for path in part.others if path not in lists}
    return Findings(
        records=tuple(sorted(records, key=lambda record: record.id)),
        notes=(
            "images and masks from " + ", ".join(part.where for part in parts),
            *notes,
            *_notes_on(records, config.page_group),
            *ignored_note(sorted(others), root),
        ),
    )


def _only_lack_masks(
    alone: Sequence[layouts.Named], pairs: Sequence[Pair], wrong: Sequence[str], part: layouts.Part
) -> bool:
    """Tell whether nothing is wrong but that some images' masks have yet to be made."""
    names = {name for name, _, _ in pairs}
    # What begins with a pair's name is its twin, or another mask of it under a strange ending.
    any_name = "|".join(map(re.escape, names))
    twin = re.compile(rf"(?:{any_name})[ ._-](?:.*[ ._-])?(?:gt|mask|label|seg|manual)")
    return (
        bool(pairs)
        and bool(alone)
        and len(wrong) == 1
        and sum(len(masks) for _, _, masks in pairs) == len(part.masks)
        and not any(name in names or twin.match(name) for name, _ in alone)
    )


def read_patterns(_: object, root: Path, config: DataConfig) -> Findings:
    """Pair images and masks by `data.images` and `data.masks`, wherever in the folder they lie."""
    assert config.images is not None
    assert config.masks is not None
    listing = list_folder(root)
    images, masks = (
        _matched(pattern, listing.images, root, noun)
        for pattern, noun in ((config.images, "images"), (config.masks, "masks"))
    )
    images = {key: path for key, path in images.items() if path not in set(masks.values())}
    if strays := sorted(masks.keys() - images.keys()):
        told = f"{counted(len(strays), 'mask has', 'masks have')} no image of the same key"
        raise DataError(f"{root}: {told} ({name_some(strays)})")
    rest = sorted(images.keys() - masks.keys())
    alone = [Record(id=key, image_path=images[key], shapes=()) for key in rest]
    records: list[Record] = []
    for key, mask in sorted(masks.items()):
        image = images[key]
        split, group = layouts.split_of_path(image, root), config.page_group
        records += records_of_pair(key, image, [mask], split=split, page_group=group)
    empty, notes = without_mask(alone, len(records), config, root, noun="mask")
    records += [page for one in empty for page in pages_of(one, config.page_group)]
    if any(record.split is None for record in records):
        records = [replace(record, split=None) for record in records]
    return Findings(records=tuple(records), notes=tuple(notes))


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
                two = f"{path_of[key].name} and {path.name}"
                raise DataError(f"data.{noun}: {pattern!r} gives {two} one key, {key!r}")
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
    """Say what a folder holds, and the folder that was meant, or which layouts are accepted."""
    listing = list_folder(root, deep=False)
    folders = [f"{folder.name}/" for folder in subfolders(root)]
    files = [path.name for path in (*listing.images, *listing.others)]
    there = name_some([*folders, *files], limit=8) or "nothing"
    near = [one for one in (root.resolve().parent, *subfolders(root)) if layouts.holds_pair(one)]
    if near:
        meant = " or ".join(str(one) for one in near[:3])
        return f"{root}: no images with masks found; it holds {there}; did you mean {meant}?"
    told = "; ".join([f"it holds {there}", *layouts.without_images(root)])
    return f"{root}: no images with masks found; {told}. Accepted: {ACCEPTED}"


def _notes_on(records: Sequence[Record], page_group: int) -> list[str]:
    notes = []
    if num_pages := sum(record.page is not None for record in records):
        notes.append(
            f"{num_pages} pages of stacks, kept together in blocks of {page_group}; pages at the "
            "seam of two blocks still resemble each other (data.split.gap leaves some out)"
        )
    if several := [record for record in records if record.further_masks]:
        told = counted(len(several), "image has", "images have")
        example = name_some([path.name for path in several[0].mask_paths])
        notes.append(f"{told} several mask files ({example}): what any of them marks is foreground")
    return notes


def split_lists(root: Path) -> dict[Path, Split]:
    """Find train.txt, val.txt, test.txt: one image's name a line."""
    texts = [path for path in list_folder(root, deep=False).others if path.suffix == ".txt"]
    splits = {path: parse_split(path.stem) for path in texts}
    return {path: split for path, split in splits.items() if split is not None}


def names_of(path: Path) -> list[str]:
    """Read the names that a list holds, without the endings of images."""
    names = (Path(line) for line in read_lines(path) if not line.startswith("#"))
    endings = ("", *IMAGE_SUFFIXES)
    return [str(one.with_suffix("") if one.suffix.lower() in endings else one) for one in names]


def _listed(
    records: Sequence[Record], lists: dict[Path, Split], root: Path, lone: set[str]
) -> list[Record]:
    split_of: dict[str, Split] = {}
    for path, split in lists.items():
        for name in names_of(path):
            if split_of.setdefault(name, split) != split:
                raise DataError(f"{path}: {name} is also listed for {split_of[name]}")
    # All pages of a stack go where the stack's own name is listed.
    name_of = {x.id: x.id if x.page is None else x.id.rpartition("-page")[0] for x in records}
    if strange := sorted(split_of.keys() - set(name_of.values()) - lone):
        told = f"{len(strange)} images that aren't there ({name_some(strange)})"
        raise DataError(f"{root}: the lists name {told}")
    return [replace(record, split=split_of.get(name_of[record.id])) for record in records]
