"""The whole report: what `summarise` counts, with intervals, outlines, objects, calibration, parts.

Everything that follows from single images is computed from them here, so that no order and no
batch can change it; sums over probabilities come ready from the loop that saw them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

import numpy as np
from jaxtyping import Float64

from binseg.metrics.calibration import (
    CALIBRATION_RULE,
    ProbabilityTally,
    Reliability,
    summarise_calibration,
)
from binseg.metrics.counts import scored_images
from binseg.metrics.draws import LEAST_UNITS, drawn_sums, group_labels, interval_of
from binseg.metrics.intervals import report_intervals
from binseg.metrics.objects import OBJECT_RULE, object_table
from binseg.metrics.slices import slice_images
from binseg.metrics.surface import OUTLINE_RULE, OutlineRule
from binseg.types import Figure, ImageScores, Outline, Report

__all__ = ["OUTLINE_SCORES", "assemble"]

OUTLINE_SCORES = tuple(one.name for one in fields(Outline))
DRAWS = 1000


def assemble(
    report: Report,
    *,
    rule: OutlineRule | None = None,
    reliabilities: Sequence[Reliability] = (),
    tally: ProbabilityTally | None = None,
    by: Iterable[str] = (),
    draws: int = DRAWS,
) -> Report:
    """Add to a report all that follows from its images, with 95% intervals.

    Args:
        report: what `summarise` gave.
        rule: by which the outlines of its images were measured.
        reliabilities: of its images with a valid pixel, in their order; none leaves calibration
            out.
        tally: of the same images; None leaves the sweep out.
        by: columns to slice by.
        draws: of the bootstrap; 0 leaves all intervals out.

    Raises:
        UsageError: no such column.
    """
    rule = rule or OutlineRule()
    scored = scored_images(report.images, "original")
    groups = group_labels(scored)
    outline = _outline_figures(scored, draws)
    objects = _object_figures(scored, draws)
    labels = group_labels(report.images)
    by_id = (
        None
        if labels is None
        else dict(zip((one.id for one in report.images), labels, strict=True))
    )
    return replace(
        report,
        intervals=report_intervals(report, groups=by_id, draws=draws) if draws else {},
        drawn="image" if groups is None else "group",
        outline=outline,
        tolerance=rule.tolerance,
        unit="px" if rule.spacing is None else "mm",
        spacing=None if rule.spacing is None else rule.steps,
        objects=objects,
        calibration=(
            summarise_calibration(reliabilities, groups=groups, draws=draws)
            if reliabilities
            else None
        ),
        sweep=tally.sweep() if tally is not None else None,
        slices=slice_images(report.images, by=by, draws=draws),
        notes=(
            *report.notes,
            *([f"{OUTLINE_RULE} {_tell_missed(report)}"] if outline else []),
            *([OBJECT_RULE] if objects else []),
            *([CALIBRATION_RULE] if reliabilities else []),
            *_tell_few(scored, draws),
        ),
    )


def _tell_few(images: Sequence[ImageScores], draws: int) -> list[str]:
    """Warn of intervals of hardly anything."""
    groups = group_labels(images)
    num = len(images) if groups is None else len(set(groups))
    if not draws or not 2 <= num < LEAST_UNITS:
        return []
    return [
        f"Intervals: only {num} {'images' if groups is None else 'groups'} are drawn, so they are "
        "too narrow; don't read them as 95%."
    ]


def _tell_missed(report: Report) -> str:
    """Count the images that the rule for empty masks decided."""
    return (
        f"Such images: {report.num_missed} with an object of which nothing was found, "
        f"{report.num_false_alarms} without an object in which something was found."
    )


def _outline_figures(images: Sequence[ImageScores], draws: int) -> dict[str, Figure]:
    """Average each outline score over the images."""
    if not all(one.outline is not None for one in images):
        return {}
    table_NS = np.array([[getattr(one.outline, name) for name in OUTLINE_SCORES] for one in images])
    table_NK = np.concatenate([table_NS, np.ones((len(images), 1))], axis=1)
    drawn_DK = _drawn(table_NK, images, draws)
    figures = {}
    for column, name in enumerate(OUTLINE_SCORES):
        interval = None if drawn_DK is None else interval_of(drawn_DK[:, column] / drawn_DK[:, -1])
        figures[name] = Figure(value=float(table_NS[:, column].mean()), interval=interval)
    return figures


def _object_figures(images: Sequence[ImageScores], draws: int) -> dict[str, Figure]:
    """Score the pooled objects of all images."""
    rows = [
        (one.objects.num_true, one.objects.num_predicted, one.objects.num_matched,
         one.objects.sum_iou)
        for one in images
        if one.objects is not None
    ]  # fmt: skip
    if len(rows) < len(images):
        return {}
    table_N4 = np.array(rows, dtype=np.float64)
    pooled = object_table(table_N4.sum(axis=0, keepdims=True))
    drawn_D4 = _drawn(table_N4, images, draws)
    drawn = None if drawn_D4 is None else object_table(drawn_D4)
    return {
        name: Figure(
            value=float(value[0]), interval=None if drawn is None else interval_of(drawn[name])
        )
        for name, value in pooled.items()
    }


def _drawn(
    table_NK: Float64[np.ndarray, "N K"], images: Sequence[ImageScores], draws: int
) -> Float64[np.ndarray, "D K"] | None:
    if not draws:
        return None
    return drawn_sums(table_NK, groups=group_labels(images), draws=draws, seed=0)
