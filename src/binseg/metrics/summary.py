"""Images become a `Report`: averages, pooled scores, intervals, slices, and the rules used.

A slice is a part of the data: small or large objects, one breed, one microscope.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from binseg.errors import DataError, UsageError, suggest
from binseg.metrics.bootstrap import (
    LEAST_UNITS,
    NUM_RESAMPLES,
    bootstrap_interval,
    figures_of,
    group_labels,
    report_intervals,
)
from binseg.metrics.counts import OBJECT_RULE, pool, scored_images
from binseg.metrics.probabilities import (
    CALIBRATION_RULE,
    ProbabilityTally,
    Reliability,
    summarise_calibration,
)
from binseg.metrics.registry import EMPTY_RULE
from binseg.metrics.scores import object_table, score_all
from binseg.metrics.surface import OUTLINE_RULE, OutlineRule
from binseg.types import Counts, Figure, ImageScores, Report, Size, Slice

BY_SIZE = "object size"
BY_SHARE = "foreground share"
FEW_VALUES = 20
"""Columns of at most as many values make slices unasked."""


def summarise(
    images: Sequence[ImageScores],
    *,
    title: str,
    bundle_id: str,
    split: str,
    threshold: float,
    border: str,
    rule: OutlineRule | None = None,
    reliabilities: Sequence[Reliability] = (),
    tally: ProbabilityTally | None = None,
    by: Iterable[str] = (),
    notes: Sequence[str] = (),
    num_resamples: int = NUM_RESAMPLES,
) -> Report:
    """Average the scores over images, pool the counts, and say the rules that were used.

    All images are counted at the same sizes; `reliabilities` are of those with a valid pixel, in
    their order, and `tally` of the same; without them there is no calibration and no sweep.
    `border` says what became of the border class, `by` names columns to slice by; 0 resamples leave
    intervals out. Raises DataError without a valid pixel, UsageError where no image has such a
    column.
    """
    assert all(one.counts.keys() == images[0].counts.keys() for one in images), "one set of sizes"
    scored = {size: scored_images(images, size) for size in images[0].counts} if images else {}
    if not scored or not all(scored.values()):
        raise DataError(
            f"nothing to score in split {split!r}: {len(images)} images, none with a pixel that "
            "isn't ignored; check the masks and the option `ignore`"
        )
    total = {size: pool(one.counts[size] for one in kept) for size, kept in scored.items()}
    kept = scored["original"]
    groups = group_labels(kept)
    marks = Counter(mark_of(one) for one in kept)
    outline, objects = _outline_figures(kept, num_resamples), _object_figures(kept, num_resamples)
    calibration = None
    if reliabilities:
        calibration = summarise_calibration(
            reliabilities, groups=groups, num_resamples=num_resamples
        )
    rule = rule or OutlineRule()
    report = Report(
        title=title,
        bundle_id=bundle_id,
        split=split,
        threshold=threshold,
        border=border,
        images=tuple(images),
        mean={size: _means(each, size) for size, each in scored.items()},
        pooled={size: score_all(each) for size, each in total.items()},
        intervals=report_intervals(images, num_resamples=num_resamples) if num_resamples else {},
        resampled="image" if groups is None else "group",
        num_empty_truth=marks["empty"] + marks["alarm"],
        num_missed=marks["missed"],
        num_false_alarms=marks["alarm"],
        outline=outline,
        tolerance=rule.tolerance,
        unit="px" if rule.spacing is None else "mm",
        spacing=None if rule.spacing is None else rule.steps,
        objects=objects,
        calibration=calibration,
        sweep=tally.sweep() if tally is not None else None,
        slices=slice_images(images, by=by, num_resamples=num_resamples),
    )
    num_units = len(kept) if groups is None else len(set(groups))
    rules = _rules(report, total["original"], len(kept), num_units)
    return replace(report, notes=(*rules, *notes))


def _means(images: Sequence[ImageScores], size: Size) -> dict[str, float]:
    names = images[0].scores[size]
    return {name: float(np.mean([one.scores[size][name] for one in images])) for name in names}


def mark_of(one: ImageScores) -> str:
    """Say in one word what is special about an image at original size, if anything.

    "ignored" has no valid pixel, "empty" no object, "alarm" no object but a prediction, and of the
    object of "missed" nothing was found.
    """
    counts = one.counts["original"]
    if not counts.num_valid:
        return "ignored"
    if counts.tp + counts.fn == 0:
        return "alarm" if counts.fp else "empty"
    return "missed" if counts.tp == 0 else ""


def _rules(report: Report, total: Counts, num_scored: int, num_units: int) -> Iterator[str]:
    """Say the rules behind the figures, and how many images they decided."""
    empty = f"None of the {num_scored} images has an empty truth."
    if report.num_empty_truth:
        empty = (
            f"{report.num_empty_truth} of {num_scored} images have an empty truth and are in the "
            "means."
        )
    yield f"{EMPTY_RULE} {empty}"
    yield (
        "Accuracy misleads: a prediction without any foreground would score "
        f"{(total.fp + total.tn) / total.num_valid:.3f} here; read Dice or IoU."
    )
    if num_ignored := len(report.images) - num_scored:
        yield f"{num_ignored} of the images have only ignored pixels and are in no average."
    if report.outline:
        yield (
            f"{OUTLINE_RULE} Such images: {report.num_missed} with an object of which nothing was "
            f"found, {report.num_false_alarms} without an object in which something was found."
        )
    if report.objects:
        yield OBJECT_RULE
    if report.calibration:
        yield CALIBRATION_RULE
    if report.intervals and 2 <= num_units < LEAST_UNITS:
        yield (
            f"Intervals: only {num_units} {report.resampled}s are resampled, so they are too "
            "narrow; don't read them as 95%."
        )


def _outline_figures(images: Sequence[ImageScores], num_resamples: int) -> dict[str, Figure]:
    """Average each outline score over the images; nothing where one wasn't measured."""
    outlines = [one.outline for one in images if one.outline is not None]
    if len(outlines) < len(images):
        return {}
    names = list(outlines[0])
    rows = [[*(one[name] for name in names), 1.0] for one in outlines]
    return figures_of(
        np.array(rows),
        lambda sums_RK: {name: sums_RK[:, at] / sums_RK[:, -1] for at, name in enumerate(names)},
        groups=group_labels(images),
        num_resamples=num_resamples,
    )


def _object_figures(images: Sequence[ImageScores], num_resamples: int) -> dict[str, Figure]:
    """Score the pooled objects of all images; nothing where one's weren't counted."""
    objects = [one.objects for one in images if one.objects is not None]
    if len(objects) < len(images):
        return {}
    rows = [[x.num_true, x.num_predicted, x.num_matched, x.sum_iou] for x in objects]
    return figures_of(
        np.array(rows, dtype=np.float64),
        object_table,
        groups=group_labels(images),
        num_resamples=num_resamples,
    )


def slice_images(
    images: Sequence[ImageScores], *, by: Iterable[str] = (), num_resamples: int = NUM_RESAMPLES
) -> tuple[Slice, ...]:
    """Split the images by object size, foreground share and columns; score each part by itself.

    Sizes and shares are those of the truth at original size, in three parts with as many images
    each; images without an object are a part of their own. Columns with 2 to 20 values are taken
    unasked, those of `by` whatever their number (UsageError if no image has one); images without a
    value are the part "". Shares that make the same parts as sizes are left out unasked.
    """
    scored = scored_images(images, "original")
    names = list(dict.fromkeys(name for one in scored for name in one.columns))
    asked = set(by)
    check_columns(asked, names)
    by_size, by_share = _thirds(scored, _area, "{:,.0f} px"), _thirds(scored, _share, "{:.1%}")
    parts = [(BY_SIZE, value, kept) for value, kept in by_size]
    # Where all images have one size, both say the same.
    if BY_SHARE in asked or [kept for _, kept in by_size] != [kept for _, kept in by_share]:
        parts += [(BY_SHARE, value, kept) for value, kept in by_share]
    for name in names:
        values = sorted({one.columns.get(name, "") for one in scored})
        if name in asked or 2 <= len(values) <= FEW_VALUES:
            parts += [
                (name, value, [one for one in scored if one.columns.get(name, "") == value])
                for value in values
            ]
    return tuple(_slice(by, value, kept, num_resamples) for by, value, kept in parts if kept)


def check_columns(asked: Iterable[str], names: Iterable[str]) -> None:
    """Refuse to slice by what no image has, with UsageError naming what can be asked for."""
    known = {*names, BY_SIZE, BY_SHARE}
    for name in asked:
        if name not in known:
            raise UsageError(f"no image has a column {name!r} to slice by: {suggest(name, known)}")


def _slice(by: str, value: str, kept: Sequence[ImageScores], num_resamples: int) -> Slice:
    dice_N = [one.scores["original"]["dice"] for one in kept]
    groups = group_labels(kept)
    return Slice(
        by=by,
        value=value,
        num_images=len(kept),
        num_groups=None if groups is None else len(set(groups)),
        dice=Figure(
            value=float(np.mean(dice_N)),
            interval=bootstrap_interval(dice_N, groups=groups, num_resamples=num_resamples),
        ),
    )


def _area(counts: Counts) -> float:
    return counts.tp + counts.fn


def _share(counts: Counts) -> float:
    return (counts.tp + counts.fn) / counts.num_valid


def _thirds(
    images: Sequence[ImageScores], measure: Callable[[Counts], float], form: str
) -> list[tuple[str, list[ImageScores]]]:
    """Cut at the terciles of a measure; equal values stay together, whatever the order."""
    value_N = np.array([measure(one.counts["original"]) for one in images])
    there_N = value_N > 0
    parts = [("no object", ~there_N)]
    if there_N.any():
        low, high = np.quantile(value_N[there_N], [1 / 3, 2 / 3], method="inverted_cdf")
        low_text, high_text = form.format(low), form.format(high)
        parts += [
            (f"small: up to {low_text}", there_N & (value_N <= low)),
            (f"medium: up to {high_text}", (value_N > low) & (value_N <= high)),
            (f"large: above {high_text}", value_N > high),
        ]
    return [
        (name, [one for one, kept in zip(images, kept_N, strict=True) if kept])
        for name, kept_N in parts
    ]
