"""Images become a `Report`: averages, pooled scores, intervals, slices, and the rules used.

A slice is a part of the data: small or large objects, one breed, one microscope.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from binseg.errors import DataError, UsageError, suggest
from binseg.metrics.probabilities import (
    CALIBRATION_RULE,
    ProbabilityTally,
    Reliability,
    summarise_calibration,
)
from binseg.metrics.registry import EMPTY_RULE, METRICS, Bins, Column
from binseg.metrics.scores import (
    LEAST_UNITS,
    LEVEL,
    NUM_RESAMPLES,
    OBJECT_RULE,
    bootstrap_interval,
    figures_of,
    group_labels,
    object_table,
    pool,
    report_intervals,
    score_all,
    scored_images,
)
from binseg.metrics.surface import OUTLINE_RULE, OutlineRule
from binseg.types import Averages, Counts, Figure, ImageScores, Interval, Report, Size, Slice

BY_SIZE = "object size"
BY_SHARE = "foreground share"
FEW_VALUES = 20  # columns of at most as many values make slices unasked


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
    """Average scores over images, pool counts, add the rules; DataError, UsageError (`by`)."""
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
    outline, objects = _figures(kept, num_resamples)
    calibrate = partial(summarise_calibration, groups=groups, num_resamples=num_resamples)
    calibration = calibrate(reliabilities) if reliabilities else None
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
    """Name an image's state: ignored, empty, alarm (found in empty), missed, or nothing."""
    counts = one.counts["original"]
    if not counts.num_valid:
        return "ignored"
    if counts.tp + counts.fn == 0:
        return "alarm" if counts.fp else "empty"
    return "missed" if counts.tp == 0 else ""


def _rules(report: Report, total: Counts, num_scored: int, num_units: int) -> Iterator[str]:
    """Say the rules behind the figures, and how many images they decided."""
    empty = f"None of the {num_scored} images has an empty truth."
    if num := report.num_empty_truth:
        empty = f"{num} of {num_scored} images have an empty truth and are in the means."
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


def _figures(
    images: Sequence[ImageScores], num_resamples: int
) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Average outline scores over images, and score pooled objects, where all were measured."""
    outlines = [one.outline for one in images if one.outline is not None]
    objects = [one.objects for one in images if one.objects is not None]
    names = [*outlines[0]] if len(outlines) == len(images) else []

    def means(sums_RK: Bins) -> dict[str, Column]:
        return {name: sums_RK[:, at] / sums_RK[:, -1] for at, name in enumerate(names)}

    figures = partial(figures_of, groups=group_labels(images), num_resamples=num_resamples)
    rows = [[*(one[name] for name in names), 1.0] for one in outlines]
    outline = figures(np.array(rows), means) if names else {}
    if len(objects) < len(images):
        return outline, {}
    counts = [[*vars(one).values()] for one in objects]
    return outline, figures(np.array(counts, np.float64), object_table)


def slice_images(
    images: Sequence[ImageScores], *, by: Iterable[str] = (), num_resamples: int = NUM_RESAMPLES
) -> tuple[Slice, ...]:
    """Split images by size and share of objects, and columns of few values or `by`; UsageError."""
    scored = scored_images(images, "original")
    names = list(dict.fromkeys(name for one in scored for name in one.columns))
    asked = set(by)
    check_columns(asked, names)
    by_size, by_share = (
        _thirds(scored, lambda x: x.tp + x.fn, "{:,.0f} px"),
        _thirds(scored, lambda one: (one.tp + one.fn) / one.num_valid, "{:.1%}"),
    )
    parts = [(BY_SIZE, value, kept) for value, kept in by_size]
    # Where all images have one size, both say the same.
    if BY_SHARE in asked or [kept for _, kept in by_size] != [kept for _, kept in by_share]:
        parts += [(BY_SHARE, value, kept) for value, kept in by_share]
    for name in names:
        values = sorted({one.columns.get(name, "") for one in scored})
        if name in asked or 2 <= len(values) <= FEW_VALUES:
            for value in values:
                kept = [one for one in scored if one.columns.get(name, "") == value]
                parts.append((name, value, kept))
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
    num_groups = None if groups is None else len(set(groups))
    interval = bootstrap_interval(dice_N, groups=groups, num_resamples=num_resamples)
    dice = Figure(value=float(np.mean(dice_N)), interval=interval)
    return Slice(by=by, value=value, num_images=len(kept), num_groups=num_groups, dice=dice)


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
        (name, [images[at] for at in np.flatnonzero(kept_N).tolist()]) for name, kept_N in parts
    ]


_AVERAGES = {"mean": "mean over images", "pooled": "pooled pixels"}
_SWEEP_STEP = 8  # of 1,024 thresholds, every eighth goes into the file
Row = dict[str, str | float]


def report_as_dict(report: Report) -> dict[str, object]:
    """Turn a report into what `json.dumps` takes; a figure is {"value", "interval"}."""
    plain = _plain(report)
    outline = {name: plain.pop(name) for name in ("tolerance", "unit", "spacing")}
    method = f"percentile bootstrap by {plain.pop('resampled')}"
    about = {"level": LEVEL, "method": method}
    sweep = report.sweep
    return {
        "bundle": plain.pop("bundle_id"),
        "num_images": len(report.images),
        **plain,
        "intervals": about | plain["intervals"] if report.intervals else None,
        "outline": {**outline, "scores": plain["outline"]},
        "calibration": report.calibration
        and {**plain["calibration"]["scores"], "bins": plain["calibration"]["bins"]},
        "sweep": sweep
        and {
            "average_precision": sweep.average_precision,
            **{
                name: list(curve[::_SWEEP_STEP])
                for name, curve in {"thresholds": sweep.thresholds, **sweep.curves}.items()
            },
        },
        "slices": [_plain(one) | {"is_small": one.is_small} for one in report.slices],
        "meanings": {name: metric.meaning for name, metric in METRICS.items()},
        "images": [_image_as_dict(one) for one in report.images],
    }


def _image_as_dict(one: ImageScores) -> dict[str, object]:
    """Leave out the scores where all pixels are ignored, so that nobody's mean takes them in."""
    line: dict[str, Any] = _plain(one)
    for size, counts in one.counts.items():
        if not counts.num_valid:
            line["scores"][size] = dict.fromkeys(one.scores[size])
    if not one.counts["original"].num_valid:
        line |= dict.fromkeys(("outline", "objects", "probability"))
    return line


def _plain(value: Any) -> Any:
    """Make records dictionaries, intervals pairs and tuples lists."""
    if isinstance(value, Interval):
        return [value.low, value.high]
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def report_rows(report: Report, *, intervals: Averages | None = None) -> list[Row]:
    """List a report's averages by kind and size; `intervals` add columns NAME_low and NAME_high."""
    rows: list[Row] = []
    for kind, table in (("mean", report.mean), ("pooled", report.pooled)):
        for size, scores in table.items():
            row: Row = {"average": _AVERAGES[kind], "size": size}
            for name, value in scores.items():
                row[name] = value
                if intervals is not None:
                    found = intervals[kind][size][name]
                    row[f"{name}_low"] = "" if found is None else found.low
                    row[f"{name}_high"] = "" if found is None else found.high
            rows.append(row)
    return rows


def image_rows(report: Report) -> list[Row]:
    """List a report's images as CSV rows, without scores where no pixel is valid."""
    rows = [_image_row(one) for one in report.images]
    # CSV needs one set of columns: those of all rows, in the order in which they appear.
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in names} for row in rows]


def _image_row(one: ImageScores) -> Row:
    row: Row = {"id": one.id}
    if one.group is not None:
        row["group"] = one.group
    row |= {f"column_{name}": value for name, value in one.columns.items()}
    for size, counts in one.counts.items():
        prefix = "" if size == "original" else f"{size}_"
        for name, score in one.scores[size].items():
            row[f"{prefix}{name}"] = score if counts.num_valid else ""
        row |= {f"{prefix}{name}": num for name, num in asdict(counts).items()}
    if one.counts["original"].num_valid:
        objects = {} if one.objects is None else asdict(one.objects)
        row |= one.outline or {}
        row |= {f"objects_{name}": value for name, value in objects.items()}
        row |= one.probability or {}
    return row
