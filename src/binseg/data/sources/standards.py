"""Datasets in the layouts of YOLO, Pascal VOC, nnU-Net and Oxford-IIIT Pet."""

import re
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from binseg.config.recipe import DataConfig
from binseg.data.dataset import SPLITS, counted, name_some
from binseg.data.sources.annotations import (
    Annotated,
    findings_of,
    mapping,
    shape_of,
    size_of,
    without_mask,
)
from binseg.data.sources.folder import pages_of
from binseg.data.sources.layouts import wrapped
from binseg.data.sources.listing import (
    Findings,
    composed,
    inside,
    list_folder,
    read_json,
    read_lines,
    stem_of,
    subfolders,
)
from binseg.data.splits import parse_split
from binseg.downloads import download
from binseg.errors import DataError, ImageError, OutputError
from binseg.imageio import read_palette
from binseg.progress import SILENT, Progress
from binseg.storage import locked, read_text
from binseg.types import Record, Shape, Split

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
VOC_VOID, VOC_VOID_COLOUR = 255, 0xE0E0C0
LABEL_MAP = "labelmap.txt"  # Of the colours that CVAT's segmentation masks have
MARGIN = 0.05  # Share of an image by which YOLO's segments may reach past it
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def find_yolo(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find YOLO's description of a dataset, which names its splits and classes."""
    others = list_folder(path, deep=False).others if path.is_dir() else (path,)
    for file in others:
        if file.suffix.lower() in {".yaml", ".yml"}:
            try:
                content = yaml.safe_load(read_text(file))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                continue
            if isinstance(content, dict) and "names" in content and {"train", "val"} & {*content}:
                return file, content
    return None


def read_yolo(found: tuple[Path, dict[str, Any]], _: Path, config: DataConfig) -> Findings:
    """Read YOLO's segments, texts beside images or in `labels/`; an image without has no object."""
    home, content = found[0].parent, found[1]
    listed = content["names"]
    names = dict(enumerate(listed)) if isinstance(listed, list) else mapping(listed)
    names = {str(key): str(name) for key, name in names.items()}
    items: list[Annotated] = []
    problems: list[str] = []
    for split in SPLITS:
        for image in _yolo_images(home, content, split):
            try:
                shapes = _segments(image, names)
            except ValueError as error:
                problems.append(f"{image.name}: {error}")
                continue
            items.append(Annotated(name=image.name, path=image, shapes=shapes, split=split))
    findings = findings_of(items, home, config, problems=problems)
    if {len(one.rings[0]) for item in items for one in item.shapes} != {4}:
        return findings
    note = "all segments have four corners: if they are boxes (OBB), the masks are boxes"
    return replace(findings, notes=(*findings.notes, note))


def _yolo_images(home: Path, content: Mapping[str, Any], split: Split) -> Iterator[Path]:
    """Give a split's images: of folders, or of the lists of names that a key may also name."""
    given = content.get(split)
    for one in given if isinstance(given, list) else [given] if given else []:
        tops = [home / str(content.get("path") or "."), home]
        # Roboflow writes ../train/images for what lies beside the file.
        wanted = [top / str(one) for top in tops] + [home / str(one).removeprefix("../")]
        place = next((each for each in wanted if each.exists()), None)
        if place is None:
            if split == "test":
                continue  # often named and not delivered
            raise DataError(f"{home}: {split}: {one} of the .yaml is not there")
        if place.is_dir():
            yield from list_folder(place).images
        else:
            listed = [(name, inside(home, name)) for name in read_lines(place)]
            if lost := [name for name, image in listed if image is None or not image.is_file()]:
                told = f"{len(lost)} of its images are not there"
                raise DataError(f"{place}: {told}: {name_some(lost)}")
            yield from (image for _, image in listed if image is not None)


def _segments(image: Path, names: Mapping[str, str]) -> tuple[Shape, ...]:
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        parts[at] = "labels"
    file = Path(*parts)
    if not file.is_file():
        return ()
    height, width = size_of(image)
    shapes = []
    for number, line in enumerate(read_lines(file), start=1):
        words = line.split()
        if len(words) == 5:
            raise ValueError(f"line {number} is a box; export segments (YOLO segmentation)")
        try:
            values = np.array([float(word) for word in words[1:]])
            corners = values.reshape(-1, 2) * (width, height)
        except ValueError:
            raise ValueError(f"line {number} holds no pairs of numbers") from None
        if np.abs(values - 0.5).max(initial=0) > 0.5 + MARGIN:
            raise ValueError(f"line {number} is in pixels; YOLO's coordinates are shares, 0 to 1")
        label = names.get(words[0], words[0])
        shapes.append(shape_of([(x, y) for x, y in corners.tolist()], label))
    return tuple(shapes)


def find_voc(path: Path) -> tuple[Path, Path] | None:
    """Find the folder of `JPEGImages/` and of masks beside it, as labelme2voc writes them, too."""
    for home in _homes(path, "JPEGImages"):
        for masks in (home / "SegmentationClassPNG", home / "SegmentationClass"):
            if masks.is_dir() and list_folder(masks).images:
                return home, masks
    return None


def _homes(path: Path, *inside: str) -> list[Path]:
    """Find the folders that hold these: the one given, in which one or two may wrap them."""
    tops = dict.fromkeys([*wrapped(path), *subfolders(path)]) if path.is_dir() else {}
    return [home for home in tops if all((home / name).is_dir() for name in inside)]


def read_voc(found: tuple[Path, Path], _: Path, config: DataConfig) -> Findings:
    """Read Pascal VOC's layout: the lists in `ImageSets/` are the split, 255 doesn't count."""
    home, masks = found
    file = home / "class_names.txt"
    found_masks = _by_stem(masks)
    classes: dict[str, tuple[int, ...]] = {}
    ignore = frozenset[int]()
    if (home / LABEL_MAP).is_file():
        classes, ignore = _colours_of(home / LABEL_MAP), frozenset({VOC_VOID_COLOUR})
    elif file.is_file() or _has_palette(next(iter(found_masks.values()))[0]):
        names = read_lines(file) if file.is_file() else ["_background_", *VOC_CLASSES]
        classes = {name: (index,) for index, name in enumerate(names) if index}
        ignore = frozenset({VOC_VOID})
    split_lists: dict[str, Split] = {}
    lists = [home / "ImageSets" / "Segmentation", home / "ImageSets"]
    folder = next((one for one in lists if one.is_dir()), None)
    for one in list_folder(folder, deep=False).others if folder else ():
        if one.suffix == ".txt" and (split := parse_split(one.stem)) is not None:
            # Lists of a class have 1 or -1 behind the name; other names may have spaces.
            names = [composed(line) for line in read_lines(one)]
            names = [name if name in found_masks else name.split()[0] for name in names]
            split_lists |= dict.fromkeys(names, split)
    given = (_by_stem(home / "JPEGImages"), found_masks, home, config)
    return _paired(*given, classes=classes, ignore=ignore, split_of_name=split_lists)


def _has_palette(path: Path) -> bool:
    with suppress(ImageError):  # the scan of all masks names it
        return read_palette(path) is not None
    return False


def _colours_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the colours (0xRRGGBB) of CVAT's classes but black, from lines `name:r,g,b::`."""
    colours: dict[str, int] = {}
    for line in read_lines(file):
        name, _, rest = line.partition(":")
        if not line.startswith("#"):
            try:
                red, green, blue = map(int, rest.partition(":")[0].split(","))
            except ValueError:
                raise DataError(f"{file}: {line!r} is no name:red,green,blue") from None
            colours[name] = red << 16 | green << 8 | blue
    return {name: (colour,) for name, colour in colours.items() if colour}


def _by_stem(folder: Path) -> dict[str, tuple[Path, ...]]:
    return {stem_of(path): (path,) for path in list_folder(folder).images}


def _paired(
    images: Mapping[str, tuple[Path, ...]],
    masks: Mapping[str, tuple[Path, ...]],
    home: Path,
    config: DataConfig,
    *,
    classes: Mapping[str, tuple[int, ...]],
    ignore: frozenset[int],
    split_of_name: Mapping[str, Split] = MappingProxyType({}),
) -> Findings:
    if strays := sorted(masks.keys() - images.keys()):
        raise DataError(f"{home}: {len(strays)} masks have no image ({name_some(strays)})")
    listed = {name: split for name, split in split_of_name.items() if name in masks}
    rest = sorted(images.keys() - masks.keys())
    alone = [Record(id=name, image_path=images[name][0], shapes=()) for name in rest]
    empty, notes = without_mask(alone, len(masks), config, home, noun="mask")
    if listed and len(listed) < len(masks):
        rest = sorted(masks.keys() - listed.keys())
        told = counted(len(rest), "image", "images")
        notes.append(f"left out: {told} in no list ({name_some(rest)})")
    names = listed or masks
    records = [
        Record(
            id=name,
            image_path=images[name][0],
            further_images=images[name][1:],
            mask_path=masks[name][0],
            split=listed.get(name),
        )
        for name in sorted(names)
    ]
    records += empty
    if listed:
        notes.append("split from the lists of names")
    return Findings(records=tuple(records), notes=tuple(notes), classes=classes, ignore=ignore)


def find_nnunet(path: Path) -> Path | None:
    """Find the folder of a raw dataset of nnU-Net."""
    return next(iter(_homes(path, "imagesTr", "labelsTr")), None)


def read_nnunet(home: Path, _: Path, config: DataConfig) -> Findings:
    """Read nnU-Net's raw layout: `imagesTr/CASE_0000.png`, a file a channel, and `labelsTr/`."""
    if not list_folder(home / "labelsTr").images:
        endings = {"".join(one.suffixes) for one in list_folder(home / "labelsTr").others}
        told = f"labelsTr/ holds no images ({name_some(sorted(endings))})"
        raise DataError(f"{home}: {told}; save volumes as NIfTI, or as slices")
    images, num_channels = _channels_of(home)
    content = read_json(home / "dataset.json") if (home / "dataset.json").is_file() else {}
    values: dict[str, tuple[int, ...]] = {}
    for key, value in mapping(content.get("labels")).items():
        # Numbers by name, as version 2 has them (of regions several), or names by number.
        name, given = (str(value), key) if str(key).isdecimal() else (key, value)
        numbers = [str(one) for one in (given if isinstance(given, list) else [given])]
        if all(one.isdecimal() for one in numbers):
            values[name] = tuple(map(int, numbers))
    classes = {name: some for name, some in values.items() if any(some) and name != "ignore"}
    ignore = frozenset(values.get("ignore", ()))
    given = (images, _by_stem(home / "labelsTr"), home, config)
    found = _paired(*given, classes=classes, ignore=ignore)
    paged = [page for one in found.records for page in pages_of(one, config.page_group)]
    found = replace(found, records=tuple(paged))
    if num_channels == 1:
        return found
    note = f"images of {num_channels} files, whose channels are joined in order"
    return replace(found, notes=(note, *found.notes))


def _channels_of(home: Path) -> tuple[dict[str, tuple[Path, ...]], int]:
    """Give each case's files in the order of their channels, and how many those are."""
    channels: dict[str, dict[str, Path]] = defaultdict(dict)
    for image in list_folder(home / "imagesTr").images:
        stem = stem_of(image)
        match = _CHANNEL.match(stem)
        name, channel = (match["case"], match["channel"]) if match else (stem, "0000")
        channels[name][channel] = image
    usual = set().union(*channels.values())
    if short := sorted(name for name, files in channels.items() if files.keys() != usual):
        raise DataError(f"{home}: cases that lack a channel: {name_some(short)}")
    images = {name: tuple(files[x] for x in sorted(files)) for name, files in channels.items()}
    return images, len(usual)


OXFORD_URL = "https://thor.robots.ox.ac.uk/datasets/pets"
MD5_OF: Mapping[str, str] = {
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
}
_SPECIES = {"1": "cat", "2": "dog"}


def find_oxford_pet(root: Path) -> Path | None:
    """Find the dataset's layout, whole or with one list only; folders may wrap it."""
    for folder in wrapped(root) if root.is_dir() else []:
        if (folder / "annotations" / "trimaps").is_dir() and (folder / "images").is_dir():
            return folder
    return None


def read_oxford_pet(home: Path, *_: object) -> Findings:
    """Read the official lists; every tenth image of `trainval.txt`, from the first, validates."""
    records: list[Record] = []
    lists: list[str] = []
    for name in ("trainval.txt", "test.txt"):
        path = home / "annotations" / name
        if path.is_file():
            lists.append(name)
            lines = [line for line in read_lines(path) if not line.startswith("#")]
            for index, line in enumerate(lines):
                trains: Split = "train" if index % 10 else "val"
                split = trains if name == "trainval.txt" else "test"
                records.append(_record(home, line.split(), split))
    if not lists:
        told = "annotations/ has neither trainval.txt nor test.txt"
        raise DataError(f"{home}: {told}; at least one of the official lists is needed")
    # Two listings instead of a look at each of 14,780 files.
    there = {*list_folder(home / "images").images}
    there |= {*list_folder(home / "annotations" / "trimaps").images}
    wanted = [one.image_path for one in records] + [p for one in records for p in one.mask_paths]
    if missing := [path.relative_to(home).as_posix() for path in wanted if path not in there]:
        told = f"{len(missing)} files that the lists name are missing"
        raise DataError(f"{home}: {told} ({name_some(missing)})")
    notes = [f"Oxford-IIIT Pet: {' and '.join(lists)}, {len(records)} images"]
    if len(lists) == 1:
        only = "train and val" if lists == ["trainval.txt"] else "test"
        notes.append(f"only {lists[0]} is there: the splits are {only}")
    return Findings(records=tuple(records), notes=tuple(notes), is_trimap=True)


def download_oxford_pet(
    root: Path,
    *,
    progress: Progress = SILENT,
    base_url: str = OXFORD_URL,
    md5_of: Mapping[str, str] = MD5_OF,
) -> None:
    """Fetch and unpack the official archives into `root`; what was fetched is resumed."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: the folder can't be made: {error.strerror}") from None
    with locked(root / ".download", tidy=True):
        for name, md5 in md5_of.items():
            folder = root / name.removesuffix(".tar.gz")
            if folder.is_dir():
                continue
            progress.say(f"fetching {base_url}/{name} into {root}")
            archive = download(f"{base_url}/{name}", root / name, md5=md5, progress=progress)
            _unpack(archive, folder)
            archive.unlink()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside the goal and rename, so that a folder that is there is whole."""

    def only_data(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        # The official archive carries a Mac's ._NAME files beside the trimaps.
        is_data = not Path(member.name).name.startswith("._")
        return tarfile.data_filter(member, path) if is_data else None

    try:
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary,
            tarfile.open(archive) as tar,
        ):
            tar.extractall(temporary, filter=only_data)
            unpacked = Path(temporary) / folder.name
            if not unpacked.is_dir():
                raise DataError(f"{archive}: the archive holds no folder {folder.name}/")
            unpacked.rename(folder)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: the archive can't be unpacked: {error}") from None
    except OSError as error:
        raise OutputError(f"{folder}: can't be written: {error.strerror or error}") from None


def _record(root: Path, words: Sequence[str], split: Split) -> Record:
    """Read `NAME CLASS SPECIES BREED`; where only the name is given, cats bear a capital."""
    name = words[0]
    breed = name.rpartition("_")[0] or name
    species = _SPECIES.get(words[2]) if len(words) > 2 else None
    columns = {"breed": breed, "species": species or ("cat" if name[0].isupper() else "dog")}
    image = root / "images" / f"{name}.jpg"
    mask = root / "annotations" / "trimaps" / f"{name}.png"
    return Record(id=name, image_path=image, mask_path=mask, split=split, columns=columns)
