"""The one door to data: a table of the kinds of dataset, and the reader that walks it.

A new kind is a row of `SOURCES`: its name, how it is recognised, and the function that reads it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import Dataset, counted, name_some
from binseg.data.masks import detect_rule
from binseg.data.origins import with_groups
from binseg.data.samples import find_stored_poses, looks_inverted, notes_on_images
from binseg.data.sources import standards, tools
from binseg.data.sources.annotations import Annotated, extent_note, read_outlines
from binseg.data.sources.coco import MARKS, find_coco, read_coco
from binseg.data.sources.folder import find_folder, nothing_found, read_folder, read_patterns
from binseg.data.sources.labelled import find_labelled, read_labelled
from binseg.data.sources.listing import Findings, find_files, holds
from binseg.data.sources.standards import download_oxford_pet, find_oxford_pet, read_oxford_pet
from binseg.data.sources.synthetic import is_synthetic, make_synthetic, parse_synthetic
from binseg.data.sources.tables import find_kaggle, find_manifest, read_kaggle, read_manifest
from binseg.errors import DataError, ImageError, UsageError, one_line
from binseg.imageio import read_image
from binseg.progress import SILENT, Progress
from binseg.storage import alike, read_bytes
from binseg.types import Record

NUM_SWAPPED = 4  # Images that tell whether they are the masks
HEAD = 1 << 20  # Bytes of a file that tell what it holds


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of dataset: how it is recognised and read."""

    about: str  # Its look in a few words, for the message that lists what is accepted
    find: Callable[[Path], Any]  # False where it isn't this kind; else what `read` begins with
    read: Callable[[Any, Path, DataConfig], Findings]
    """Finds the records, with the split that the data brings, if any; a `DataError` tells up to 10
    problems at once."""
    needs: str | None = None  # Refusal of a path where `find` finds nothing; None: `read` says it
    is_published: bool = False
    """True if publications or `binseg label` drew its split: copies across it stop nothing."""
    marks: tuple[tuple[str, ...], ...] = ((),)  # The first file found has the words of one row

    def is_here(self, root: Path) -> bool:
        """Tell whether a path holds this kind of dataset."""
        found = self.find(root)
        if not found or self.marks == ((),):
            return bool(found)
        return any(holds(next(iter(found)), *words) for words in self.marks)


def _tool(
    about: str,
    parse: Callable[[Path], Iterable[Annotated]],
    *marks: str,
    suffixes: tuple[str, ...] = (".json",),
    find: Callable[[Path], list[Path]] | None = None,
) -> Source:
    """Make the row of an annotation tool; the words of each of `marks` are parted by commas."""
    words = tuple(tuple(one.split(",")) for one in marks) or ((),)
    finds = find or (lambda path: find_files(path, *suffixes))
    return Source(about=about, find=finds, read=partial(read_outlines, parse), marks=words)


BY_OPTIONS = {"synthetic", "patterns"}
"""Kinds that the options alone name: ./synthetic is a folder."""
SOURCES: Mapping[str, Source] = {
    "synthetic": Source(about="synthetic, the built-in generator", find=find_folder,
        read=read_folder),
    "patterns": Source(
        about="any folder with data.images and data.masks", find=Path.is_dir, read=read_patterns),
    "labelled": Source(about="images labelled with `binseg label`", find=find_labelled,
        read=read_labelled,
        needs="there are no labels of `binseg label` beside these images", is_published=True),
    "oxford-pet": Source(about="the official Oxford-IIIT Pet layout", find=find_oxford_pet,
        read=read_oxford_pet,
        needs="the official layout is images/ and annotations/trimaps/; with --download "
        "(data.download: true) it is fetched", is_published=True),
    "kaggle": Source(about="a .csv of run lengths", find=find_kaggle, read=read_kaggle,
        needs="needs a .csv with the columns ImageId and EncodedPixels"),
    "manifest": Source(about="manifest.csv", find=find_manifest, read=read_manifest),
    "voc": Source(about="JPEGImages/ + SegmentationClass/", find=standards.find_voc,
        read=standards.read_voc,
        needs="needs JPEGImages/ and SegmentationClass/"),
    "nnunet": Source(about="imagesTr/ + labelsTr/", find=standards.find_nnunet,
        read=standards.read_nnunet,
        needs="needs imagesTr/ and labelsTr/"),
    "yolo": Source(about="YOLO's data.yaml", find=standards.find_yolo, read=standards.read_yolo,
        needs="needs a data.yaml with the keys names, train and val"),
    "supervisely": _tool("img/ + ann/", tools.supervisely, find=tools.find_supervisely),
    "folder": Source(about="images and masks", find=find_folder, read=read_folder),
    "label-studio": _tool(
        "Label Studio's .json", tools.label_studio, '"result","from_name","to_name"'),
    "via": _tool("VIA's .json", tools.via, '"shape_attributes","filename"'),
    "coco": Source(about="one COCO .json", find=find_coco, read=read_coco,
        needs="needs exactly one .json file of COCO annotations; name the file", marks=(MARKS,)),
    "labelme": Source(about="labelme .json files", find=tools.find_labelme, read=tools.read_labelme,
        marks=(('"shapes"',),)),
    "cvat": _tool("CVAT's annotations.xml", tools.cvat, "<annotations,<image ", suffixes=(".xml",)),
    "v7": _tool("V7's .json files", tools.v7,
        '"annotations","item","slots"', '"annotations","image","dataset"'),
    "qupath": _tool("QuPath's .geojson files", tools.qupath, '"geometry","coordinates"',
        suffixes=(".geojson", ".json")),
}  # fmt: skip
"""Every kind of dataset by its name in `data.kind`; what is more special is looked for first."""


NOT_READ: tuple[tuple[str, bytes, str], ...] = (
    (".xml", b"<bndbox>", "Pascal VOC's boxes, which are no outlines: export masks or polygons"),
    (".xml", b"<track ", "CVAT's tracks of a video: export `CVAT for images 1.1` or COCO"),
    (".json", b'"segments_info"', "COCO's panoptic lists: export instances with polygons"),
    (".json", b'"[a-z]+labels"', "Label Studio's JSON-MIN: export JSON"),
    (".ndjson", b'"data_row"', "Labelbox's rows: export COCO, or masks as PNG"),
    (".csv", b"region_shape_attributes", "VIA's table: export annotations as JSON"),
    (".txt", rb"\A\d+( [-.\d]+){6}", "YOLO's segments, to which belongs a data.yaml with the keys "
     "names, train and val"),
    (".roi", b"^Iout", "ImageJ's regions: save masks, by Edit > Selection > Create Mask"),
    (".npz", b"", "NumPy's archives: save arrays as .npy, images and masks in folders"),
)  # fmt: skip
"""Annotations that aren't read, by ending and pattern, and the export that works."""


def open_dataset(config: DataConfig, *, progress: Progress = SILENT) -> Dataset:
    """Find the records and what masks mean, told to `progress`; DataError, UsageError."""
    if not config.path:
        raise UsageError("which images? Give --data PATH (or `synthetic`), or data.path")
    if config.kind != "auto" and config.kind not in SOURCES:
        raise UsageError(f"data.kind is {config.kind!r}; give auto, {', '.join(SOURCES)}")
    kind, root = _locate(config, progress)
    source = SOURCES[kind]
    try:
        found = source.find(root)
        if not found and source.needs:
            raise DataError(f"{root}: {source.needs}")
        findings = source.read(found, root, config)
    except OSError as error:  # a name that is too long for the system, say
        named = one_line(str(error.filename or root), limit=100)
        raise DataError(f"{named}: {error.strerror or 'it cannot be read'}") from None
    if not findings.records:
        raise DataError(f"{root}: no images found")
    options = _by_names(config, findings)
    try:
        rule = detect_rule(findings.records, options, progress, is_trimap=findings.is_trimap)
    except ImageError:
        raise
    except DataError as error:
        swapped = "are images and masks swapped? Then exchange them; if not, "
        first = swapped if _look_swapped(findings.records) else ""
        raise DataError(f"{root}: {first}{error}") from None
    records, grouped = with_groups(findings.records, config)
    records, posed = find_stored_poses(records, rule)
    if config.nodata is not None:
        records = tuple(replace(record, nodata=config.nodata) for record in records)
    num = counted(len(records), "image", "images")
    taken = f"{config.path}: {num} (layout: {kind})"
    notes = [taken, *findings.notes, f"masks: {rule.describe()}"]
    inverted, enlarged = looks_inverted(records, rule), extent_note(records)
    notes += filter(None, (grouped, posed, inverted, enlarged, *notes_on_images(records)))
    if config.border != "foreground" and rule.border is None:
        notes.append(f"data.border: {config.border} changes nothing: there is no border class")
    for note in notes:
        progress.say(note)
    return Dataset(kind=kind, root=root, records=records, rule=rule, notes=tuple(notes))


def _look_swapped(records: Sequence[Record]) -> bool:
    """Tell whether the first images hold two values, as masks do."""
    some = [record for record in records if record.mask_path is not None][:NUM_SWAPPED]
    try:
        images = [read_image(record.image_path, page=record.page) for record in some]
    except ImageError:
        return False
    return bool(images) and all(len(np.unique(image_HWC)) == 2 for image_HWC in images)


def _by_names(config: DataConfig, findings: Findings) -> DataConfig:
    """Choose mask values by classes' names, and what the layout leaves out; raises DataError."""
    changes: dict[str, object] = {}
    has_outlines = any(record.shapes is not None for record in findings.records)
    if config.labels is not None and not has_outlines:
        if unknown := [name for name in config.labels if name not in findings.classes]:
            there = ", ".join(findings.classes) or "no names here; data.foreground takes values"
            raise DataError(f"data.labels names {name_some(unknown)}; there are {there}")
        changes["foreground"] = sorted({v for one in config.labels for v in findings.classes[one]})
    elif findings.classes and config.foreground is None and config.threshold is None:
        changes["foreground"] = sorted({v for some in findings.classes.values() for v in some})
    if findings.ignore and config.ignore is None:
        changes["ignore"] = sorted(findings.ignore)
    return config.model_copy(update=changes)


def _locate(config: DataConfig, progress: Progress) -> tuple[str, Path]:
    """Tell the kind, that was asked for or that is there, and where it lies, made or fetched."""
    assert config.path
    if config.kind == "synthetic" or (config.kind == "auto" and is_synthetic(config.path)):
        if not is_synthetic(config.path):
            told = f"data.path: synthetic, not {config.path!r}"
            raise UsageError(f"data.kind: synthetic needs {told}")
        return "synthetic", make_synthetic(parse_synthetic(config.path), progress=progress)
    root, kind = Path(config.path).expanduser(), config.kind
    if config.images is not None and kind == "auto":
        kind = "patterns"
    if config.download:
        if kind not in {"auto", "oxford-pet"}:
            raise UsageError(f"data.download: only oxford-pet can be downloaded, not {kind}")
        if not find_oxford_pet(root) and (kind == "oxford-pet" or not root.exists()):
            download_oxford_pet(root, progress=progress)
    try:
        root.stat()
    except FileNotFoundError:
        raise DataError(f"{root}: there is no such file or folder{alike(root)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: can't be read: {getattr(error, 'strerror', error)}") from None
    return (_kind_of(root) if kind == "auto" else kind), root


def _kind_of(root: Path) -> str:
    """Look at what is there; a `DataError` names what is accepted."""
    kinds = {name: source for name, source in SOURCES.items() if name not in BY_OPTIONS}
    found = next((name for name, source in kinds.items() if source.is_here(root)), None)
    if found is None and root.is_file():
        raise DataError(
            f"{root}: not a dataset; a file must be a manifest (.csv, .tsv) or COCO annotations "
            "(.json); for images, masks or labelme files give their folder"
        )
    if found is None:
        others = [source.about for name, source in kinds.items() if name != "folder"]
        told = nothing_found(root)
        for ending, pattern, what in NOT_READ:
            for file in find_files(root, ending)[:1]:
                if re.search(pattern, read_bytes(file)[:HEAD]):
                    raise DataError(f"{root}: {file.name} isn't read: it holds {what}")
        raise DataError(told if told.endswith("?") else f"{told}, {', '.join(others)}")
    return found
