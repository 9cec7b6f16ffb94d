"""The one door to data: tells the kinds apart by what lies there, and says which it took."""

from collections.abc import Callable, Mapping
from pathlib import Path

from binseg.config.recipe import DataConfig, DataKind
from binseg.data.dataset import Dataset, counted
from binseg.data.masks import detect_rule
from binseg.data.origins import with_groups
from binseg.data.sources.coco import is_coco, read_coco
from binseg.data.sources.folder import nothing_found, read_folder
from binseg.data.sources.labelme import is_labelme, read_labelme
from binseg.data.sources.layouts import find_parts
from binseg.data.sources.listing import Findings
from binseg.data.sources.manifest import is_manifest, read_manifest
from binseg.data.sources.oxford_pet import download_oxford_pet, is_oxford_pet, read_oxford_pet
from binseg.data.sources.synthetic import is_synthetic, make_synthetic, parse_synthetic
from binseg.errors import DataError, ImageError, UsageError
from binseg.progress import SILENT, Progress

__all__ = ["open_dataset"]


def open_dataset(config: DataConfig, *, progress: Progress = SILENT) -> Dataset:
    """Find the records and read off what the masks' values mean; nothing is decoded but that.

    Args:
        config: where the data is, and the options that settle what is ambiguous.
        progress: told which kind was taken, what was ignored, how masks are read.

    Returns:
        A data set whose records have a split only where the data brings one; `assign_splits`
        fills in the rest.

    Raises:
        DataError: data that isn't there, isn't whole, or could be read in two ways.
        UsageError: options that contradict each other.
    """
    if not config.path:
        raise UsageError(
            "data.path is not set: give a folder, a manifest.csv, a COCO .json or `synthetic`"
        )
    if config.kind == "synthetic" or (config.kind == "auto" and is_synthetic(config.path)):
        kind: DataKind = "synthetic"
        spec = parse_synthetic(
            config.path if is_synthetic(config.path) else _not_synthetic(config.path)
        )
        root = make_synthetic(spec, progress=progress)
        findings = read_folder(root, config)
    else:
        root = Path(config.path).expanduser()
        kind = _kind_of(root, config, progress)
        findings = _READERS[kind](root, config)
    if not findings.records:
        raise DataError(f"{root}: no images found")
    try:
        rule = detect_rule(findings.records, config, progress, kind=kind)
    except ImageError:
        raise
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    records, grouped = with_groups(findings.records, config)
    num = counted(len(records), "image", "images")
    taken = f"{config.path}: taken as {kind}, {num}"
    notes = [taken, *findings.notes, f"masks: {rule.describe()}"]
    if grouped:
        notes.append(grouped)
    if config.border != "foreground" and rule.border is None:
        notes.append(f"data.border: {config.border} changes nothing: there is no border class")
    for note in notes:
        progress.say(note)
    return Dataset(kind=kind, root=root, records=records, rule=rule, notes=tuple(notes))


_READERS: Mapping[DataKind, Callable[[Path, DataConfig], Findings]] = {
    "folder": read_folder,
    "oxford-pet": lambda root, config: read_oxford_pet(root),
    "manifest": read_manifest,
    "coco": read_coco,
    "labelme": read_labelme,
}


def _not_synthetic(path: str) -> str:
    raise UsageError(f"data.kind: synthetic needs data.path: synthetic, not {path!r}")


def _kind_of(root: Path, config: DataConfig, progress: Progress) -> DataKind:
    """Give the kind that was asked for, checked, or look at what is there."""
    kind = config.kind
    if config.download:
        if kind not in {"auto", "oxford-pet"}:
            raise UsageError(f"data.download: only oxford-pet can be downloaded, not {kind}")
        if not is_oxford_pet(root) and (kind == "oxford-pet" or not root.exists()):
            download_oxford_pet(root, progress=progress)
    _refuse_unreachable(root)
    if kind == "auto":
        return _kind_of_file(root) if root.is_file() else _kind_of_folder(root)
    if kind in {"folder", "oxford-pet"} and not root.is_dir():
        raise DataError(f"{root}: data.kind: {kind} needs a folder; this is a file")
    if kind == "oxford-pet" and not is_oxford_pet(root):
        raise DataError(
            f"{root}: the official layout is images/ and annotations/trimaps/; with "
            "--download (data.download: true) it is fetched"
        )
    return kind


def _refuse_unreachable(root: Path) -> None:
    try:
        root.stat()
    except FileNotFoundError:
        raise DataError(f"{root}: there is no such file or folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: can't be read: {getattr(error, 'strerror', error)}") from None


def _kind_of_file(path: Path) -> DataKind:
    if is_manifest(path):
        return "manifest"
    if is_coco(path):
        return "coco"
    if is_labelme(path):
        return "labelme"
    raise DataError(
        f"{path}: not a data set; a file must be a manifest (.csv, .tsv) or COCO annotations "
        "(.json); for images, masks or labelme files give their folder"
    )


def _kind_of_folder(root: Path) -> DataKind:
    if is_oxford_pet(root):
        return "oxford-pet"
    if is_manifest(root):
        return "manifest"
    if find_parts(root)[0]:
        return "folder"
    if is_coco(root):
        return "coco"
    if is_labelme(root):
        return "labelme"
    raise DataError(
        nothing_found(root) + ", the official Oxford-IIIT Pet layout, manifest.csv, one COCO "
        ".json, labelme .json files"
    )
