"""Open data that is partly wrong: what can be used is used, the rest becomes findings.

`open_dataset` refuses a folder for one missing mask, and rightly so before a training. Here the
complete pairs are taken, the values that most masks hold decide the rule, and torn splits stay.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from binseg.config.recipe import DataConfig
from binseg.data.dataset import Dataset, counted
from binseg.data.masks import MaskRule, detect_rule
from binseg.data.origins import with_groups
from binseg.data.samples import looks_inverted
from binseg.data.sources import open_dataset
from binseg.data.sources.folder import names_of, pair_up, records_of_pair, split_lists
from binseg.data.sources.layouts import find_parts
from binseg.data.splits import assign_splits, read_split
from binseg.datacheck.checks import make_finding
from binseg.datacheck.near_duplicates import keep_together
from binseg.errors import DataError, ImageError
from binseg.imageio import read_labels
from binseg.progress import SILENT, Progress
from binseg.types import Finding, Record

_NUM_SCANNED = 256


@dataclass(frozen=True, kw_only=True)
class Intake:
    """The data as far as it could be opened, and what stood in the way."""

    dataset: Dataset | None
    findings: tuple[Finding, ...]
    knows_masks: bool = True
    """False where the masks' values have no meaning yet, so that images alone are compared."""


def take_in(config: DataConfig, *, progress: Progress = SILENT) -> Intake:
    """Open and split a data set as training would, or as much of it as there is."""
    knows_masks = True
    try:
        dataset = open_dataset(config, progress=progress)
        findings = _left_out(dataset, config)
    except DataError as error:
        refusal = make_finding("unusable", str(error))
        rescued = _rescue(config, progress)
        if rescued is None:
            return Intake(dataset=None, findings=(refusal,))
        # Every cause should have a finding of its own; where none has, the refusal is one.
        dataset, findings, knows_masks = rescued[0], rescued[1] or [refusal], rescued[2]
    if told := looks_inverted(dataset.records, dataset.rule):
        findings.append(make_finding("inverted", told))
    dataset, of_splits = _split(dataset, config, progress)
    return Intake(dataset=dataset, findings=(*findings, *of_splits), knows_masks=knows_masks)


def _left_out(dataset: Dataset, config: DataConfig) -> list[Finding]:
    if dataset.kind != "folder" or config.missing != "skip":
        return []
    _, findings = _pairs(dataset.root, config)
    return [replace(one, severity="warning") for one in findings if one.code == "no-mask-file"]


def _rescue(config: DataConfig, progress: Progress) -> tuple[Dataset, list[Finding], bool] | None:
    """Take from a folder what pairs up (else None), and tell if its values have a meaning."""
    root = Path(config.path or "").expanduser()
    if config.kind not in {"auto", "folder"} or not root.is_dir():
        return None
    try:
        records, findings = _pairs(root, config)
        if not records:
            return None
        rule, wrong = _rule(records, config, root, progress)
    except DataError:
        return None
    records = list(with_groups(records, config)[0])
    knows_masks = rule is not None
    if rule is None:
        # Images can be compared without their masks.
        records = [replace(record, mask_path=None, further_masks=()) for record in records]
        rule = MaskRule(kind="polygons")
    dataset = Dataset(kind="folder", root=root, records=tuple(records), rule=rule)
    return dataset, findings + wrong, knows_masks


def _pairs(root: Path, config: DataConfig) -> tuple[list[Record], list[Finding]]:
    parts, _ = find_parts(root)
    lists = split_lists(root)  # lines about absent images do no harm here
    split_of = {name: split for path, split in lists.items() for name in names_of(path)}
    records: list[Record] = []
    alone: dict[str, list[Path]] = defaultdict(list)
    findings: list[Finding] = []

    def add(code: str, text: str, paths: Sequence[Path]) -> None:
        names = [path.relative_to(root).as_posix() for path in paths]
        findings.append(make_finding(code, text, ids=names, files=names))

    for part in parts:
        pairs, _, _ = pair_up(part.images, part.masks, in_pieces=part.in_pieces)
        used = {path for _, image, masks in pairs for path in (image, *masks)}
        alone["image"] += [path for _, path in part.images if path not in used]
        alone["mask"] += [path for _, path in part.masks if path not in used]
        for name, image, masks in pairs:
            split = part.split or split_of.get(name)
            given = (part.prefix + name, image, masks)
            try:
                records += records_of_pair(*given, split=split, page_group=config.page_group)
            except DataError as error:
                add("pages", str(error), (image, *masks))
    for noun, partner in (("image", "mask"), ("mask", "image")):
        if paths := alone[noun]:
            text = f"{counted(len(paths), f'{noun} has', f'{noun}s have')} no {partner}"
            add(f"no-{partner}-file", text, paths)
    return sorted(records, key=lambda record: record.id), findings


def _rule(
    records: Sequence[Record], config: DataConfig, root: Path, progress: Progress
) -> tuple[MaskRule | None, list[Finding]]:
    """Detect the rule, if need be from the masks that hold what most masks hold."""
    try:
        return detect_rule(records, config, progress), []
    except DataError as error:
        try:
            # Masks that hold something else are found when they are read.
            return detect_rule(_with_usual_values(records), config, progress), []
        except DataError:
            return None, [make_finding("values", f"{root}: {error}")]


def _with_usual_values(records: Sequence[Record]) -> list[Record]:
    step = max(1, len(records) // _NUM_SCANNED)
    by_values: dict[tuple[tuple[int, ...], ...], list[Record]] = defaultdict(list)
    for record in records[::step]:
        try:
            masks = [read_labels(path, page=record.page) for path in record.mask_paths]
        except ImageError:
            continue
        values = {value for labels in masks for value in _values(labels)}
        # Empty masks lack the foreground's value and would part the usual ones in two.
        if len(values) > 1:
            by_values[tuple(sorted(values))].append(record)
    return max(by_values.values(), key=len, default=[])


def _values(labels: np.ndarray) -> list[tuple[int, ...]]:
    known = np.unique(labels.reshape(-1, *labels.shape[2:]), axis=0)[:64]
    return [tuple(row) for row in known.reshape(len(known), -1).tolist()]


def _split(
    dataset: Dataset, config: DataConfig, progress: Progress
) -> tuple[Dataset, list[Finding]]:
    """Split as training would; where that is refused, keep the splits as they were given."""
    try:
        dataset = keep_together(dataset, config, progress=progress)
        return assign_splits(dataset, config.split), []
    except DataError as error:
        refusal = [make_finding("split", str(error))]
        if config.split.method == "file" and config.split.file is not None:
            try:
                dataset = dataset.with_splits(read_split(Path(config.split.file)))
            except DataError as reading:
                return dataset, [make_finding("split", str(reading))]
        # Torn groups get a finding of their own, with the images named.
        pairs = {(r.group, r.split) for r in dataset.records if r.group is not None}
        is_torn = len(pairs) > len({group for group, _ in pairs})
        return dataset, [] if is_torn else refusal
