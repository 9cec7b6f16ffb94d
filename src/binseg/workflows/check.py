"""The doctor: looks at every picture and mask of a data set and says what is wrong with it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from binseg.config import DataConfig
from binseg.data.dataset import SPLITS, Dataset
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.errors import DataError, PictureError
from binseg.progress import SILENT, Progress, track
from binseg.structures import Record

__all__ = ["CheckResult", "Finding", "check"]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
TINY_SIDE = 16
"""Pictures with a shorter side than this hold next to nothing to learn from."""
LONG_ASPECT = 8.0
"""Squashing a picture that is longer than this many times its width loses its shape."""
RARE_SHARE = 0.001
"""Foreground below this share of all pixels: plain losses tend to learn that there is none."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing, with the pictures that it concerns."""

    severity: Severity
    code: str
    text: str
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What is in a data set, and what is wrong with it."""

    path: str
    facts: tuple[tuple[str, str], ...]
    """Label and text: kind, sizes, channels, splits, foreground."""
    findings: tuple[Finding, ...]

    def failed(self, *, strict: bool = False) -> bool:
        """Tell whether anything is wrong; `strict` counts warnings too."""
        bad = {"error", "warning"} if strict else {"error"}
        return any(finding.severity in bad for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """The facts and findings as plain data."""
        return {
            "path": self.path,
            "facts": dict(self.facts),
            "findings": [asdict(finding) for finding in self.findings],
        }


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one picture showed."""

    record: Record
    height: int
    width: int
    channels: int
    dtype: str
    picture_hash: str
    mask_hash: str | None
    foreground: float | None
    """Share of the valid pixels; None without a mask."""
    num_valid: int


def check(data: DataConfig | str | Path, *, progress: Progress = SILENT) -> CheckResult:
    """Look at every picture and mask of a data set.

    Args:
        data: where it is and how its masks are read.
        progress: told of every picture.

    Returns:
        Facts and findings; a data set that can't be opened at all is one finding.
    """
    config = data if isinstance(data, DataConfig) else DataConfig(path=str(data))
    try:
        dataset = open_dataset(config, progress=progress)
    except DataError as error:
        finding = Finding(severity="error", code="unusable", text=str(error))
        return CheckResult(path=str(config.path), facts=(), findings=(finding,))
    dataset, findings = _split(dataset, config)
    looks: list[_Look] = []
    for look in track(
        _look_at_all(dataset), progress=progress, label="looking", total=len(dataset.records)
    ):
        if isinstance(look, Finding):
            findings.append(look)
        else:
            looks.append(look)
    for examine in EXAMINATIONS:
        findings += examine(looks)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return CheckResult(
        path=str(config.path), facts=tuple(_facts(dataset, looks)), findings=tuple(findings)
    )


def _split(dataset: Dataset, config: DataConfig) -> tuple[Dataset, list[Finding]]:
    """Split the data as training would, so that leaks between splits can be seen."""
    try:
        return assign_splits(dataset, config.split), []
    except DataError as error:
        return dataset, [Finding(severity="error", code="split", text=str(error))]


def _look_at_all(dataset: Dataset) -> Iterator[_Look | Finding]:
    """Look at the pictures on a few threads, with only a few decoded at a time."""
    step = 64
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(dataset.records), step):
            records = dataset.records[start : start + step]
            yield from pool.map(lambda record: _look_at(record, dataset.rule), records)


def _look_at(record: Record, rule: MaskRule) -> _Look | Finding:
    try:
        sample = read_sample(record, rule)
    except PictureError as error:
        return Finding(severity="error", code="unreadable", text=str(error), ids=(record.id,))
    num_valid = int(sample.valid_HW.sum())
    foreground = None
    if sample.mask_HW is not None:
        foreground = float((sample.mask_HW & sample.valid_HW).sum() / max(num_valid, 1))
    return _Look(
        record=record,
        height=sample.image_HWC.shape[0],
        width=sample.image_HWC.shape[1],
        channels=sample.image_HWC.shape[2],
        dtype=sample.image_HWC.dtype.name,
        picture_hash=_hash(sample.image_HWC),
        mask_hash=None if sample.mask_HW is None else _hash(sample.mask_HW),
        foreground=foreground,
        num_valid=num_valid,
    )


def _hash(array: np.ndarray) -> str:
    """Hash pixels, not files: a picture saved twice in other formats is still the same."""
    return blake2b(
        np.ascontiguousarray(array).data, digest_size=16, person=str(array.shape)[:16].encode()
    ).hexdigest()


def _facts(dataset: Dataset, looks: Sequence[_Look]) -> Iterator[tuple[str, str]]:
    """Say what is in the data set, in a few lines."""
    yield "kind", dataset.kind
    yield "pictures", str(len(dataset.records))
    yield "masks", dataset.rule.describe()
    sizes = Counter[str](record.split or "in no split" for record in dataset.records)
    names = (*SPLITS, "in no split")
    yield "splits", ", ".join(f"{sizes[name]} {name}" for name in names if sizes[name])
    groups = {record.group for record in dataset.records if record.group is not None}
    if groups:
        yield "groups", str(len(groups))
    if not looks:
        return
    yield "sizes", _spread([f"{look.height}x{look.width}" for look in looks])
    yield "channels", _spread([f"{look.channels} x {look.dtype}" for look in looks])
    shares = [look.foreground for look in looks if look.foreground is not None]
    if shares:
        low, middle, high = np.percentile(shares, [5, 50, 95])
        yield (
            "foreground",
            f"{np.mean(shares):.1%} of the pixels (5% of pictures below {low:.1%}, half below "
            f"{middle:.1%}, 95% below {high:.1%})",
        )


def _spread(values: Sequence[str]) -> str:
    """Name the most frequent values with their numbers."""
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{value} ({num})" for value, num in ranked[:4])
    return shown + (f" and {len(ranked) - 4} others" if len(ranked) > 4 else "")


def _masks(looks: Sequence[_Look]) -> Iterator[Finding]:
    """Masks that are absent, empty, full, or nothing but ignored pixels."""
    kinds: tuple[tuple[Severity, str, str, Callable[[_Look], bool]], ...] = (
        (
            "warning",
            "no-mask",
            "pictures have no mask: they can neither train nor test",
            lambda look: look.foreground is None,
        ),
        (
            "warning",
            "all-ignored",
            "masks hold only ignored pixels: they teach nothing",
            lambda look: look.num_valid == 0,
        ),
        (
            "note",
            "empty-mask",
            "masks are empty: right where the object is absent; a forgotten mask otherwise",
            lambda look: look.foreground == 0 and look.num_valid > 0,
        ),
        (
            "warning",
            "full-mask",
            "masks are full: are foreground and background exchanged?",
            lambda look: look.foreground == 1,
        ),
    )
    for severity, code, text, holds in kinds:
        ids = tuple(look.record.id for look in looks if holds(look))
        if ids:
            yield Finding(severity=severity, code=code, text=f"{len(ids)} {text}", ids=ids)
    shares = [look.foreground for look in looks if look.foreground is not None]
    if shares and 0 < np.mean(shares) < RARE_SHARE:
        yield Finding(
            severity="warning",
            code="rare-foreground",
            text=f"foreground is {np.mean(shares):.3%} of the pixels: take `fit: tile` or a larger "
            "size so that it isn't lost, and a loss with Dice in it",
        )


def _shapes(looks: Sequence[_Look]) -> Iterator[Finding]:
    """Pictures too small or too long, and a mix of channels or pixel types."""
    tiny = tuple(x.record.id for x in looks if min(x.height, x.width) < TINY_SIDE)
    if tiny:
        text = f"{len(tiny)} pictures are smaller than {TINY_SIDE} pixels on a side"
        yield Finding(severity="warning", code="tiny", text=text, ids=tiny)
    long = tuple(
        x.record.id for x in looks if max(x.height, x.width) > LONG_ASPECT * min(x.height, x.width)
    )
    if long:
        text = (
            f"{len(long)} pictures are more than {LONG_ASPECT:g} times as long as wide: "
            "take `fit: pad` or `fit: tile`"
        )
        yield Finding(severity="warning", code="long", text=text, ids=long)
    for code, kinds in (
        ("mixed-channels", {x.channels for x in looks}),
        ("mixed-types", {x.dtype for x in looks}),
    ):
        if len(kinds) > 1:
            names = ", ".join(str(kind) for kind in sorted(kinds, key=str))
            text = f"pictures differ in {code.removeprefix('mixed-')}: {names}"
            yield Finding(severity="note", code=code, text=text)


def _duplicates(looks: Sequence[_Look]) -> Iterator[Finding]:
    """The same picture twice, and above all in two splits."""
    same: dict[str, list[_Look]] = defaultdict(list)
    for look in looks:
        same[look.picture_hash].append(look)
    for twins in same.values():
        if len(twins) < 2:
            continue
        ids = tuple(look.record.id for look in twins)
        splits = sorted({look.record.split for look in twins if look.record.split is not None})
        if len(splits) > 1:
            text = f"one picture is in {' and '.join(splits)}: scores on it mean nothing"
            yield Finding(severity="error", code="leak", text=text, ids=ids)
        elif len({look.mask_hash for look in twins}) > 1:
            text = "one picture has different masks under different names"
            yield Finding(severity="warning", code="contradiction", text=text, ids=ids)
        else:
            text = f"one picture is there {len(twins)} times"
            yield Finding(severity="warning", code="duplicate", text=text, ids=ids)


def _shared_masks(looks: Sequence[_Look]) -> Iterator[Finding]:
    """One mask under several pictures: paired by mistake, or copied in place of drawing."""
    same: dict[str, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.mask_hash is not None and look.foreground not in (None, 0.0, 1.0):
            same[look.mask_hash].append(look)
    for sharers in same.values():
        if len({look.picture_hash for look in sharers}) > 1:
            ids = tuple(look.record.id for look in sharers)
            text = f"{len(ids)} different pictures have exactly the same mask"
            yield Finding(severity="warning", code="shared-mask", text=text, ids=ids)


EXAMINATIONS: tuple[Callable[[Sequence[_Look]], Iterator[Finding]], ...] = (
    _masks,
    _shapes,
    _duplicates,
    _shared_masks,
)
