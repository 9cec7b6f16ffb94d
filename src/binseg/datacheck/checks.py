"""The table of all checks of a data set, and the examination that runs them.

A row of `CHECKS` is the whole of a check: report, page, `--json` and training read this table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from binseg.data.dataset import Dataset, spread
from binseg.datacheck import findings
from binseg.datacheck.findings import Finder, where
from binseg.datacheck.looks import Evidence, Look, look_at_all
from binseg.progress import SILENT, Progress
from binseg.types import Finding, Severity

MIN_SIDE = 16  # pixels; images with a shorter side hold next to nothing to learn from
LONG_ASPECT = 8.0
"""Images that are longer than this many times their width lose their shape when stretched."""
_ONE_PLACE = "Keep one of them, or give them one group in a manifest, so that they stay together."
_ONE_GROUP = "Give each source one group (manifest column `group`), so that it stays in one split."
_ONE_SPLIT = "Put the group into one split."
_ALIKE = "One model sees them all alike; make sure that this is meant."
_SHIFT = "Look at them: was the image cropped, or registered, after the mask was drawn?"
_RENAME = "Images and masks pair by file name: rename, add or remove."


class Check(NamedTuple):
    """One kind of finding."""

    severity: Severity
    title: str
    advice: str = ""
    find: Finder | None = None
    """Yields the records concerned and a sentence; None where opening the data finds it."""


CHECKS: Mapping[str, Check] = MappingProxyType({
    "unusable": Check("error", "The data set can't be used"),
    "pages": Check("error", "Stacks and masks of different length"),
    "no-mask-file": Check("error", "Images without a mask", _RENAME),
    "no-image-file": Check("error", "Masks without an image", _RENAME),
    "split": Check("error", "Splits"),
    "inverted": Check("warning", "Masks that look inverted"),
    "unreadable": Check("error", "Unreadable files", "Get the file again, or leave the pair out.",
        findings.problems("unreadable")),
    "size": Check("error", "Mask and image of different size",
        "Export the mask again at the image's size, without interpolation.",
        findings.problems("size")),
    "values": Check("error", "Unexpected mask values",
        "Correct the file, or say what the values mean: data.foreground, data.ignore.",
        findings.problems("values")),
    "torn-group": Check("error", "Groups in two splits", _ONE_SPLIT, findings.torn_groups),
    "leak": Check("error", "The same image in two splits", _ONE_PLACE, findings.copies("leak")),
    "near-leak": Check("error", "Nearly the same image in two splits", _ONE_PLACE,
        findings.near_copies(across=True)),
    "patch-seam": Check("error", "Neighbouring patches in two splits", _ONE_GROUP,
        findings.at_seams("patches")),
    "all-shifted": Check("error", "All masks shifted", _SHIFT, findings.all_shifted),
    "off-by-one": Check("error", "Masks of the neighbouring image",
        "Number images and masks alike.", findings.off_by_one),
    "torn-names": Check("warning", "Cases and copies in two splits, by their names", _ONE_GROUP,
        findings.torn_names),
    "empty-split": Check("warning", "Splits without foreground",
        "Draw another split (data.split.seed), or give that split images with the object.",
        findings.empty_splits),
    "grouped-seam": Check("warning", "Groups that touch across splits", _ONE_GROUP,
        findings.at_seams("grouped")),
    "page-seam": Check("warning", "Neighbouring pages in two splits",
        "Leave out some pages between the splits, or split by stack.", findings.at_seams("pages")),
    "contradiction": Check("warning", "One image, different masks", "Keep the better mask.",
        findings.copies("contradiction")),
    "duplicate": Check("warning", "The same image more than once", _ONE_PLACE,
        findings.copies("duplicate")),
    "shared-mask": Check("warning", "One mask, different images",
        "Find the image that it was drawn for.", findings.shared_masks),
    "no-mask": Check("warning", "Images without a mask",
        "Add their masks, or leave the images out.",
        where(lambda x: x.foreground is None and x.problem is None, "image",
            "without a mask: of no use for training or testing")),
    "all-ignored": Check("warning", "Nothing but ignored pixels",
        "Look at data.ignore, or leave these images out.",
        where(lambda x: x.foreground is not None and x.num_valid == 0, "mask",
            "with nothing but ignored pixels, which teach nothing")),
    "full-mask": Check("warning", "Full masks", "Draw these masks again, or leave the images out.",
        where(lambda x: x.foreground == 1, "mask",
            "without any background: are foreground and background exchanged?")),
    "rare-foreground": Check("warning", "Very little foreground",
        "Take `resize: tile` or a larger size to keep it, and a loss with Dice.",
        findings.rare_foreground),
    "tiny": Check("warning", "Tiny images", "Leave them out: thumbnails and icons teach nothing.",
        where(lambda x: min(x.height, x.width) < MIN_SIDE, "image",
            f"smaller than {MIN_SIDE} pixels on a side")),
    "long": Check("warning", "Very long images",
        "Take `resize: letterbox` or `resize: tile`: stretching loses their shape.",
        where(lambda x: max(x.height, x.width) / min(x.height, x.width) > LONG_ASPECT, "image",
            f"longer than {LONG_ASPECT:g}:1")),
    "misfit": Check("warning", "Masks that don't fit their image",
        "Look at it: is it another image's mask, or a scribble?", findings.misfits),
    "shifted": Check("warning", "Shifted masks", _SHIFT, findings.shifted),
    "contradicted": Check("warning", "Masks that the model contradicts",
        "Look at both: the mask may be wrong, or the model."),
    "near-duplicate": Check("note", "Nearly the same image", _ONE_PLACE,
        findings.near_copies(across=False)),
    "empty-mask": Check("note", "Empty masks",
        "Look at each of these images: is the object in it?",
        where(lambda x: x.foreground == 0 and x.num_valid > 0, "mask",
            "without foreground: right where the object is absent, forgotten otherwise")),
    "turned": Check("note", "Turned by EXIF",
        "binseg turns them; other tools may not. Save them turned to be safe.",
        findings.turned_images),
    "mixed-channels": Check("note", "Mixed channels", _ALIKE,
        findings.mixed(lambda x: f"{x.channels} channels", "channels")),
    "mixed-types": Check("note", "Mixed pixel types", _ALIKE,
        findings.mixed(lambda x: x.dtype, "types")),
    "narrow-range": Check("note", "16 bits of which few are used",
        "Take input.intensity: percentile, as a plan does.", findings.narrow_range),
    "hidden-steps": Check("warning", "More than 8 bits are needed",
        "Take input.depth: 16, as a plan does.",
        findings.hidden_steps),
    "outlier": Check("note", "Masks unlike the others",
        "Look at it: exchanged classes, a scribble, or just a rare case?", findings.outliers),
})  # fmt: skip
"""All checks by their codes, which `--json` gives; findings are listed in this order."""
_WITHOUT_PIXELS = ("torn-group", "torn-names", "patch-seam", "grouped-seam", "page-seam")
"""The checks that need the records alone."""
LEAKS = ("torn-group", "patch-seam", "leak", "near-leak")
"""Errors that `data.allow_leaks` lets pass; the others are about masks that lie wrong."""
_LEVELS = ("narrow-range", "hidden-steps")
NUM_LAID = 64  # masks whose place is looked at before a training


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The looks at all images, and the findings, the worst first."""

    looks: tuple[Look, ...]
    findings: tuple[Finding, ...]


def examine(
    dataset: Dataset, *, known: Mapping[str, Any] | None = None, progress: Progress = SILENT
) -> Examination:
    """Look at every image and mask of a split data set, or take known looks; run every check."""
    evidence = look_at_all(dataset, known=known, progress=progress)
    finders = {code: check.find for code, check in CHECKS.items()}
    return Examination(looks=evidence.looks, findings=_run(finders, evidence))


def training_checks(dataset: Dataset, *, progress: Progress = SILENT) -> tuple[Finding, ...]:
    """Find leaks, and masks that lie beside their objects (of 64), before a training."""
    finders = {code: CHECKS[code].find for code in _WITHOUT_PIXELS}
    finders |= {"leak": findings.identical_files, "near-leak": findings.near_leaks}
    found = _run(finders, Evidence(dataset=dataset, progress=progress))
    known = {one.ids for one in found if one.code == "leak"}
    some = spread(dataset.with_truth().records, NUM_LAID)
    looks = look_at_all(replace(dataset, records=tuple(some)))
    evidence = Evidence(dataset=dataset.with_truth(), looks=looks.looks)
    laid = {code: CHECKS[code].find for code in ("all-shifted", "off-by-one", *_LEVELS)}
    kept = [one for one in found if one.code != "near-leak" or one.ids not in known]
    return ranked([*kept, *_run(laid, evidence)])


def _run(finders: Mapping[str, Finder | None], evidence: Evidence) -> tuple[Finding, ...]:
    root = evidence.dataset.root
    found = []
    for code, find in finders.items():
        for records, text in find(evidence) if find is not None else ():
            paths = [path for record in records for path in record.paths]
            near = (one.relative_to(root) if one.is_relative_to(root) else one for one in paths)
            ids, files = [record.id for record in records], [one.as_posix() for one in near]
            found.append(make_finding(code, text, ids=ids, files=files))
    return ranked(found)


def make_finding(
    code: str, text: str, *, ids: Sequence[str] = (), files: Sequence[str] = ()
) -> Finding:
    """Make a finding of a kind that `CHECKS` knows; files are relative to the data set's folder."""
    severity, _, advice, _ = CHECKS[code]
    places = {"ids": tuple(ids), "files": tuple(files)}
    return Finding(severity=severity, code=code, text=text, advice=advice, **places)


def ranked(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort by severity, and leave equal ones in their order."""
    order = ("error", "warning", "note")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))
