"""Layouts of images and masks in a folder that people use."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from binseg.data.dataset import name_some
from binseg.data.sources.listing import Listing, composed, list_folder, real_path, subfolders
from binseg.data.splits import parse_split
from binseg.errors import DataError, ImageError
from binseg.imageio.formats import known_other
from binseg.types import Split

_IMAGE_FOLDERS = (
    {
        *("images", "image", "img", "imgs", "imgdir", "pictures", "photos", "jpegimages"),
        *("original", "originals"),
    },
    {"input", "inputs", "raw", "rgb", "sat", "satellite", "data"},
)
_MASK_FOLDERS = (
    {
        *("masks", "mask", "labels", "label", "annotations", "annotation", "anndir", "gt", "gts"),
        *("groundtruth", "segmentation", "segmentations", "segmentationclass"),
        *("manual", "1stmanual", "manual1", "vessels", "vesselsegmentations"),
    },
    {
        *("seg", "truth", "target", "targets", "output", "outputs", "map", "maps"),
        *("anno", "annos", "lab", "labs"),
    },
)
"""Names in small letters, without spaces, lines or dots; the second ones only where none of the
first is there, since they also stand for other things."""
_MANUAL = {"manual", "1stmanual", "manual1", "vessels", "vesselsegmentations", "groundtruth", "gt"}
_FIELD = {"mask", "masks"}  # Beside the former: a retina's field of view
_LEAST_CASES = 3  # Fewer folders with a pair in each may as well be datasets, or versions of one
_WORDS = (
    r"(?:masks?|labels?|lab|gt|ground[ _-]?truth|annotations?|anno|segmentations?|seg|vessels?"
    r"|manual\d?)"
)
_MASK_SUFFIX = re.compile(rf"^(?P<name>.+?)[ ._-]{_WORDS}$", re.IGNORECASE)
_MASK_PREFIX = re.compile(rf"^{_WORDS}[ ._-](?P<name>.+)$", re.IGNORECASE)

_PIECE = re.compile(r"^(?P<mask>.+?[ ._-]masks?)[ ._-]\d{1,3}$", re.IGNORECASE)
Named = tuple[str, Path]  # Path in its folder without ending, and the whole path


@dataclass(frozen=True)
class Part:
    """Images and masks that belong together: the whole folder, or one split of it."""

    where: str  # Folders that were taken for it, as the user reads them: `images/ + masks/`
    images: tuple[Named, ...]
    masks: tuple[Named, ...]
    others: tuple[Path, ...]
    split: Split | None = None
    prefix: str = ""  # Before each name, so that train/001 and test/001 are two images
    in_pieces: frozenset[str] = frozenset()  # Images whose mask is in all files of that name


def find_parts(root: Path) -> tuple[list[Part], list[str]]:
    """Look for images with masks; give parts, and notes on folders of a split without masks."""
    for folder in wrapped(root):
        parts, notes = _arranged(folder)
        if parts:
            return parts, notes
    # Last, since it looks into all folders and would mix the splits that they are.
    beside = _beside(root, root=root)
    return [beside] if beside else [], []


def folder_of_images(root: Path) -> Path | None:
    """Find the folder in a folder that is called as images are; None where it has none."""
    for names in _IMAGE_FOLDERS:
        found = [one for one in subfolders(root) if _plain(one.name) in names]
        found = [one for one in found if list_folder(one).images]
        if len(found) > 1:
            raise DataError(_doubtful(root, found, "images"))
        if found:
            return found[0]
    return None


def _arranged(root: Path) -> tuple[list[Part], list[str]]:
    """Parts that folders of their own tell."""
    if pair := _named_pair(root):
        return _parts_of_pair(*pair, root=root)
    for look in (_splits_of_pairs, _pairs_of_splits):
        parts, notes = look(root, subfolders(root))
        if parts:
            return parts, notes
    cases = _cases(root, root=root, least=_LEAST_CASES)
    return [cases] if cases else [], []


def wrapped(root: Path) -> list[Path]:
    """Give a folder, and those in it that it only wraps, as archives are unpacked."""
    found = {real_path(root): root}
    here = root
    while len(folders := subfolders(here)) == 1 and real_path(folders[0]) not in found:
        if list_folder(here, deep=False).images:
            break
        here = found[real_path(folders[0])] = folders[0]
    return [*found.values()]


def holds_pair(root: Path) -> bool:
    """Tell whether a folder of images and one of masks lie in this one, by their names."""
    with suppress(DataError):
        return _named_pair(root) is not None
    return True


def unused_folders(root: Path, parts: Sequence[Part]) -> list[str]:
    """Name the folders with images that are in no part, with how many they hold."""
    used = {path for part in parts for _, path in (*part.images, *part.masks)}
    holding = {parent for path in used for parent in path.parents}
    unused: dict[Path, int] = defaultdict(int)
    for path in list_folder(root).images:
        if path not in used:
            # The topmost folder that holds nothing that is used.
            apart = [one for one in path.parents if one not in holding and one != root]
            if apart:
                unused[apart[-1]] += 1
    return [f"{_short(folder, root)} ({num})" for folder, num in sorted(unused.items())]


def without_images(root: Path) -> list[str]:
    """Say which folders of images or masks, by their names, hold other files alone."""
    inner = wrapped(root)[-1]
    folders = subfolders(inner)
    of_splits = [folder for folder in folders if parse_split(folder.name) is not None]
    told: list[str] = []
    for folder in [*folders, *(one for split in of_splits for one in subfolders(split))]:
        listing = list_folder(folder)
        if _split_and_kind(folder.name)[1] and listing.others and not listing.images:
            endings = Counter(path.suffix or "other" for path in listing.others).most_common(3)
            held = ", ".join(f"{num} {ending}" for ending, num in endings)
            with suppress(ImageError):
                other = known_other(listing.others[0])
                held += f": {other}" if other else ""
            told.append(f"{_short(folder, root)} holds no images ({held})")
    return told


def _splits_of_pairs(root: Path, folders: Sequence[Path]) -> tuple[list[Part], list[str]]:
    """`train/`, `val/` and `test/`, each holding a pair of folders, or images beside masks."""
    notes: list[str] = []
    parts: list[Part] = []
    of_splits = [folder for folder in folders if parse_split(folder.name) is not None]
    pairs = {folder: _named_pair(folder) for folder in of_splits}
    by_hand = {_plain(pair[1].name) for pair in pairs.values() if pair} & _MANUAL
    for folder, pair in pairs.items():
        split, prefix = parse_split(folder.name), f"{folder.name}/"
        if pair and by_hand and _plain(pair[1].name) in _FIELD:
            told = "is something else than the masks that the other splits have"
            notes.append(f"{prefix} is left out: its {pair[1].name}/ {told}")
            continue
        part = _pair_part(*pair, root=root) if pair else _cases(folder, root=root, least=1)
        part = part or _beside(folder, root=root)
        if part:
            parts.append(replace(part, split=split, prefix=prefix))
        else:
            notes.append(f"{prefix} holds no images with masks: left out")
    return parts, notes


def _pairs_of_splits(root: Path, folders: Sequence[Path]) -> tuple[list[Part], list[str]]:
    """`train_images/` and `train_masks/`, or `train/` and `train_labels/`, and so on."""
    found: dict[Split, dict[str, list[Path]]] = defaultdict(lambda: {"images": [], "masks": []})
    for folder in folders:
        split, kind = _split_and_kind(folder.name)
        if split is not None and kind is not None and list_folder(folder).images:
            found[split][kind].append(folder)
    whole = {split: kinds for split, kinds in found.items() if all(kinds.values())}
    for kinds in whole.values():
        for kind, several in kinds.items():
            if len(several) > 1:
                raise DataError(_doubtful(root, several, kind))
    parts = []
    for split, kinds in whole.items():
        part = _pair_part(kinds["images"][0], kinds["masks"][0], root=root)
        parts.append(replace(part, split=split, prefix=f"{split}/"))
    notes = [
        f"{folder.name}/ has no folder of masks beside it: left out"
        for split in sorted(found.keys() - whole.keys())
        for folder in found[split]["images"]
    ]
    return parts, notes


def mask_name_of(stem: str, *, leading: bool = False) -> str | None:
    """Give the image's name out of a mask's, without ending; None where it bears no mask's word.

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


def split_of(name: str) -> Split | None:
    """Read the one split that a folder's or file's name tells, if there is one.

    >>> split_of("instances_train2017"), split_of("valid"), split_of("images")
    ('train', 'val', None)
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    splits = {split for word in words if (split := parse_split(word)) is not None}
    return splits.pop() if len(splits) == 1 else None


def split_of_path(path: Path, root: Path) -> Split | None:
    """Give the split that the first folder of a path is called by."""
    parts = path.relative_to(root).parts
    return split_of(parts[0]) if len(parts) > 1 else None


def _split_and_kind(name: str) -> tuple[Split | None, str | None]:
    """Read a folder's name that tells its split and what lies in it.

    >>> _split_and_kind("train_masks"), _split_and_kind("ISIC-2017_Test_v2_Part1_GroundTruth")
    (('train', 'masks'), ('test', 'masks'))
    >>> _split_and_kind("val"), _split_and_kind("images")
    (('val', 'images'), (None, 'images'))
    """
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    splits = [split for word in words if (split := parse_split(word)) is not None]
    rest = [word for word in words if parse_split(word) is None]
    split = splits[0] if len(splits) == 1 else None
    if not rest:
        return split, "images"
    for kind, tiers in (("masks", _MASK_FOLDERS), ("images", _IMAGE_FOLDERS)):
        if any(end in names for names in tiers for end in (rest[-1], "".join(rest[-2:]))):
            return split, kind
    return split, None


def _named_pair(root: Path) -> tuple[Path, Path] | None:
    folders, found = subfolders(root), list[Path]()
    for noun, tiers in (("images", _IMAGE_FOLDERS), ("masks", _MASK_FOLDERS)):
        every = ([one for one in folders if _plain(one.name) in names] for names in tiers)
        full = ([one for one in some if list_folder(one).images] for some in every)
        fitting = next((some for some in full if some), [])
        by_hand = [one for one in fitting if _plain(one.name) in _MANUAL]
        rest = {_plain(one.name) for one in fitting if one not in by_hand}
        if len(by_hand) == 1 and rest <= _FIELD:
            fitting = by_hand
        if len(fitting) > 1:
            raise DataError(_doubtful(root, fitting, noun))
        found += fitting
    return (found[0], found[1]) if len(found) == 2 and found[0] != found[1] else None


def _doubtful(root: Path, folders: Sequence[Path], noun: str) -> str:
    both = " and ".join(f"{path.name}/" for path in folders)
    return f"{root}: {both} could each be the folder of {noun}; keep one of them there"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _parts_of_pair(images: Path, masks: Path, *, root: Path) -> tuple[list[Part], list[str]]:
    """One part, or one a split where the images lie in images/train and so on."""
    inner = [(parse_split(folder.name), folder) for folder in subfolders(images)]
    odd = [f"{folder.name}/" for split, folder in inner if split is None]
    odd += [path.name for path in list_folder(images, deep=False).images]
    if odd or not inner:
        named = [f"{folder.name}/" for split, folder in inner if split is not None]
        note = (
            f"not taken for splits: {name_some(named)} in {_short(images, root)}, because of "
            f"{name_some(odd)} there; keep only folders named train, val, test in it"
        )
        part = _pair_part(images, masks, root=root)
        others = (*list_folder(root, deep=False).others, *part.others)
        return [replace(part, others=others)], [note] if named else []
    pairs = [_pair_part(folder, masks / folder.name, root=root) for _, folder in inner]
    parts = [
        replace(part, split=split, prefix=f"{folder.name}/")
        for part, (split, folder) in zip(pairs, inner, strict=True)
    ]
    whole = [part for part in parts if part.masks]
    notes = [f"{part.where}: there are no masks: left out" for part in parts if not part.masks]
    return (whole, notes) if whole else (parts, [])


def _pair_part(images: Path, masks: Path, *, root: Path) -> Part:
    of_images = list_folder(images)
    of_masks = list_folder(masks) if masks.is_dir() else Listing(images=(), others=())
    where, others = f"{_short(images, root)} + {_short(masks, root)}", of_images.others
    named = _named(of_images.images, images), _named(of_masks.images, masks)
    return Part(where, *named, (*others, *of_masks.others))


def _cases(folder: Path, *, root: Path, least: int) -> Part | None:
    """A folder for each image or patient, with `images/` and `masks/` (one for each object)."""
    cases = [case for case in subfolders(folder) if parse_split(case.name) is None]
    whole = {case: pair for case in cases if (pair := _named_pair(case))}
    if len(whole) < least or not 2 * len(whole) > len(cases):
        return None
    images, masks, others, in_pieces = list[Named](), list[Named](), list[Path](), set[str]()
    for case, pair in whole.items():
        of_images, of_masks = map(list_folder, pair)
        others += [*of_images.others, *of_masks.others]
        if len(of_images.images) == 1:
            images.append((case.name, of_images.images[0]))
            masks += [(case.name, path) for path in of_masks.images]
            in_pieces.add(case.name)
        else:
            # Names begin with the case's folder.
            images += [(f"{case.name}/{n}", p) for n, p in _named(of_images.images, pair[0])]
            masks += [(f"{case.name}/{n}", p) for n, p in _named(of_masks.images, pair[1])]
    first_images, first_masks = next(iter(whole.values()))
    here = "" if folder == root else _short(folder, root)
    where = f"{here}*/{first_images.name}/ + {here}*/{first_masks.name}/"
    found = (tuple(images), tuple(masks), tuple(others))
    return Part(where, *found, in_pieces=frozenset(in_pieces))


def _beside(folder: Path, *, root: Path) -> Part | None:
    """Images and masks in one folder, told apart by the masks' endings."""
    listing = list_folder(folder)
    named = _named(listing.images, folder)
    masks: tuple[Named, ...] = ()
    for leading in (False, True):
        masks = masks or tuple(one for one in named if mask_name_of(one[0], leading=leading))
    by_hand = {name for name, _ in masks}
    masks += tuple(o for o in named if o not in masks and mask_of_piece(o[0]) in by_hand)
    images = tuple(one for one in named if one not in masks)
    if not masks or not images:
        return None
    where = f"{_short(folder, root)} (NAME beside {masks[0][1].name})"
    return Part(where, images, masks, listing.others)


def _named(files: Sequence[Path], folder: Path) -> tuple[tuple[str, Path], ...]:
    return tuple(
        (composed(path.relative_to(folder).with_suffix("").as_posix()), path) for path in files
    )


def _short(folder: Path, root: Path) -> str:
    return f"{folder.relative_to(root).as_posix()}/"
