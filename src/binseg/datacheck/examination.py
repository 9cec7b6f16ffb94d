"""The examination: every check on every image, or the quick part that training runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from binseg.data.dataset import Dataset
from binseg.datacheck import leaks, verdicts
from binseg.datacheck.looks import Look, look_at_all
from binseg.progress import SILENT, Progress
from binseg.types import Finding, Severity

__all__ = ["LEAKS", "Examination", "examine", "quick_checks", "ranked"]

LEAKS = frozenset({"leak", "near-leak", "patch-seam", "torn-group"})
"""Findings by which images of one split come back in another."""
_RANK: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was seen and what is wrong, the worst first."""

    looks: tuple[Look, ...]
    findings: tuple[Finding, ...]


def examine(dataset: Dataset, *, progress: Progress = SILENT) -> Examination:
    """Look at every image and mask, and at all of them together.

    Args:
        dataset: with its splits, so that leaks between them can be seen.
        progress: told of every image.
    """
    root = dataset.root
    findings: list[Finding] = []
    looks: list[Look] = []
    for look in look_at_all(dataset.records, dataset.rule, root, progress=progress):
        if isinstance(look, Finding):
            findings.append(look)
        else:
            looks.append(look)
    findings += chain(
        leaks.on_torn_groups(dataset.records, root),
        leaks.on_copies(looks, root),
        leaks.on_near_copies(looks, root, progress=progress),
        leaks.on_seams(dataset.records, root),
        leaks.on_shared_masks(looks, root),
        verdicts.on_masks(looks, root),
        verdicts.on_images(looks, root),
        verdicts.on_alignment(looks, root),
        verdicts.on_outlines(looks, root),
    )
    return Examination(looks=tuple(looks), findings=ranked(findings))


def quick_checks(dataset: Dataset) -> tuple[Finding, ...]:
    """Run the checks that decode no image: torn groups, names of patches, equal files.

    Args:
        dataset: with its splits.

    Returns:
        Findings, the worst first; errors among them are leaks.
    """
    return ranked(
        [
            *leaks.on_torn_groups(dataset.records, dataset.root),
            *leaks.on_seams(dataset.records, dataset.root),
            *leaks.identical_files(dataset.records, dataset.root),
        ]
    )


def ranked(findings: list[Finding]) -> tuple[Finding, ...]:
    """Sort by severity, and leave equal ones in their order."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))
