"""The one door to data: a table of the kinds of dataset, and the reader that walks it.

A new kind is a row of `SOURCES`: its name, how it is recognised, and the function that reads it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from binseg.config.recipe import DataConfig
from binseg.data.dataset import Dataset, counted, name_some
from binseg.data.masks import detect_rule
from binseg.data.origins import with_groups
from binseg.data.samples import looks_inverted, notes_on_images
from binseg.data.sources.coco import is_coco, read_coco
from binseg.data.sources.folder import nothing_found, read_folder, read_patterns
from binseg.data.sources.labelled import is_labelled, read_labelled
from binseg.data.sources.labelme import is_labelme, read_labelme
from binseg.data.sources.layouts import find_parts
from binseg.data.sources.listing import Findings
from binseg.data.sources.manifest import is_manifest, read_manifest
from binseg.data.sources.oxford_pet import download_oxford_pet, is_oxford_pet, read_oxford_pet
from binseg.data.sources.standards import (
    is_kaggle,
    is_nnunet,
    is_voc,
    is_yolo,
    read_kaggle,
    read_nnunet,
    read_voc,
    read_yolo,
)
from binseg.data.sources.synthetic import is_synthetic, make_synthetic, parse_synthetic
from binseg.data.sources.tools import (
    is_cvat,
    is_label_studio,
    is_qupath,
    is_supervisely,
    is_v7,
    is_via,
    read_cvat,
    read_label_studio,
    read_qupath,
    read_supervisely,
    read_v7,
    read_via,
)
from binseg.errors import DataError, ImageError, UsageError
from binseg.progress import SILENT, Progress

__all__ = ["SOURCES", "Source", "open_dataset"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of dataset: how it is recognised and read."""

    about: str
    """Its look in a few words, for the message that lists what is accepted."""
    is_here: Callable[[Path], bool]
    """Tells by names and the beginnings of files whether a path holds it."""
    read: Callable[[Path, DataConfig], Findings]
    """Finds the records, with the split that the data brings, if any."""


SOURCES: Mapping[str, Source] = {
    "synthetic": Source(
        about="synthetic, the built-in generator",
        is_here=lambda root: False,  # told by `data.path` alone: ./synthetic is a folder
        read=read_folder,
    ),
    "patterns": Source(
        about="any folder with data.images and data.masks",
        is_here=lambda root: False,  # told by the options alone
        read=read_patterns,
    ),
    "labelled": Source(
        about="images labelled with `binseg label`", is_here=is_labelled, read=read_labelled
    ),
    "oxford-pet": Source(
        about="the official Oxford-IIIT Pet layout", is_here=is_oxford_pet, read=read_oxford_pet
    ),
    "kaggle": Source(about="a .csv of run lengths", is_here=is_kaggle, read=read_kaggle),
    "manifest": Source(about="manifest.csv", is_here=is_manifest, read=read_manifest),
    "voc": Source(about="JPEGImages/ + SegmentationClass/", is_here=is_voc, read=read_voc),
    "nnunet": Source(about="imagesTr/ + labelsTr/", is_here=is_nnunet, read=read_nnunet),
    "yolo": Source(about="YOLO's data.yaml", is_here=is_yolo, read=read_yolo),
    "supervisely": Source(about="img/ + ann/", is_here=is_supervisely, read=read_supervisely),
    "folder": Source(
        about="images and masks",
        is_here=lambda root: root.is_dir() and bool(find_parts(root)[0]),
        read=read_folder,
    ),
    "label-studio": Source(
        about="Label Studio's .json", is_here=is_label_studio, read=read_label_studio
    ),
    "via": Source(about="VIA's .json", is_here=is_via, read=read_via),
    "coco": Source(about="one COCO .json", is_here=is_coco, read=read_coco),
    "labelme": Source(about="labelme .json files", is_here=is_labelme, read=read_labelme),
    "cvat": Source(about="CVAT's annotations.xml", is_here=is_cvat, read=read_cvat),
    "v7": Source(about="V7's .json files", is_here=is_v7, read=read_v7),
    "qupath": Source(about="QuPath's .geojson files", is_here=is_qupath, read=read_qupath),
}
"""Every kind of dataset by its name in `data.kind`; what is more special is looked for first."""


def open_dataset(config: DataConfig, *, progress: Progress = SILENT) -> Dataset:
    """Find the records and read off what the masks' values mean; nothing is decoded but that.

    Args:
        config: where the data is, and the options that settle what is ambiguous.
        progress: told which kind was taken, what was ignored, how masks are read.

    Returns:
        A dataset whose records have a split only where the data brings one; `assign_splits`
        fills in the rest.

    Raises:
        DataError: data that isn't there, isn't whole, or could be read in two ways.
        UsageError: options that contradict each other.
    """
    if not config.path:
        raise UsageError(
            "data.path is not set: give a folder, a manifest.csv, a COCO .json or `synthetic`"
        )
    if config.kind != "auto" and config.kind not in SOURCES:
        raise UsageError(f"data.kind is {config.kind!r}; give auto, {', '.join(SOURCES)}")
    kind, root = _locate(config, progress)
    findings = SOURCES[kind].read(root, config)
    if not findings.records:
        raise DataError(f"{root}: no images found")
    options = _by_names(config, findings)
    try:
        rule = detect_rule(findings.records, options, progress, is_trimap=findings.is_trimap)
    except ImageError:
        raise
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    records, grouped = with_groups(findings.records, config)
    num = counted(len(records), "image", "images")
    taken = f"{config.path}: taken as {kind}, {num}"
    notes = [taken, *findings.notes, f"masks: {rule.describe()}"]
    notes += filter(None, (grouped, looks_inverted(records, rule), *notes_on_images(records)))
    if config.border != "foreground" and rule.border is None:
        notes.append(f"data.border: {config.border} changes nothing: there is no border class")
    for note in notes:
        progress.say(note)
    return Dataset(kind=kind, root=root, records=records, rule=rule, notes=tuple(notes))


def _by_names(config: DataConfig, findings: Findings) -> DataConfig:
    """Choose mask values by the names of classes, and leave out what the layout says.

    Raises:
        DataError: `data.labels` for data without names, or with other ones.
    """
    changes: dict[str, object] = {}
    has_outlines = any(record.shapes is not None for record in findings.records)
    if config.labels is not None and not has_outlines:
        if unknown := [name for name in config.labels if name not in findings.classes]:
            there = ", ".join(findings.classes) or "no names here; data.foreground takes values"
            raise DataError(f"data.labels names {name_some(unknown)}; there are {there}")
        changes["foreground"] = [findings.classes[name] for name in config.labels]
    elif findings.classes and config.foreground is None and config.threshold is None:
        changes["foreground"] = sorted(findings.classes.values())
    if findings.ignore and config.ignore is None:
        changes["ignore"] = sorted(findings.ignore)
    return config.model_copy(update=changes)


def _locate(config: DataConfig, progress: Progress) -> tuple[str, Path]:
    """Tell the kind, that was asked for or that is there, and where it lies, made or fetched."""
    assert config.path
    if config.kind == "synthetic" or (config.kind == "auto" and is_synthetic(config.path)):
        if not is_synthetic(config.path):
            raise UsageError(
                f"data.kind: synthetic needs data.path: synthetic, not {config.path!r}"
            )
        return "synthetic", make_synthetic(parse_synthetic(config.path), progress=progress)
    root, kind = Path(config.path).expanduser(), config.kind
    if config.images is not None and kind == "auto":
        kind = "patterns"
    if config.download:
        if kind not in {"auto", "oxford-pet"}:
            raise UsageError(f"data.download: only oxford-pet can be downloaded, not {kind}")
        if not is_oxford_pet(root) and (kind == "oxford-pet" or not root.exists()):
            download_oxford_pet(root, progress=progress)
    _refuse_unreachable(root)
    return (_kind_of(root) if kind == "auto" else kind), root


def _refuse_unreachable(root: Path) -> None:
    try:
        root.stat()
    except FileNotFoundError:
        raise DataError(f"{root}: there is no such file or folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: can't be read: {getattr(error, 'strerror', error)}") from None


def _kind_of(root: Path) -> str:
    """Look at what is there; a `DataError` names what is accepted."""
    found = next((name for name, source in SOURCES.items() if source.is_here(root)), None)
    if found is None and root.is_file():
        raise DataError(
            f"{root}: not a dataset; a file must be a manifest (.csv, .tsv) or COCO annotations "
            "(.json); for images, masks or labelme files give their folder"
        )
    if found is None:
        others = [
            one.about
            for name, one in SOURCES.items()
            if name not in {"synthetic", "patterns", "folder"}
        ]
        raise DataError(f"{nothing_found(root)}, {', '.join(others)}")
    return found
