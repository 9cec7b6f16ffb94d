"""A `Report` as plain data: one JSON object, rows of a table, and one CSV row per image."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from binseg.metrics.bootstrap import LEVEL
from binseg.metrics.registry import METRICS
from binseg.types import Averages, ImageScores, Interval, Report

_AVERAGES = {"mean": "mean over images", "pooled": "pooled pixels"}
_SWEEP_STEP = 8  # of 1,024 thresholds, every eighth goes into the file
Row = dict[str, str | float]


def report_as_dict(report: Report) -> dict[str, object]:
    """Turn a report into what `json.dumps` takes; a figure is {"value", "interval"}."""
    calibration, sweep = report.calibration, report.sweep
    method = f"percentile bootstrap by {report.resampled}"
    return {
        "title": report.title,
        "bundle": report.bundle_id,
        "split": report.split,
        "threshold": report.threshold,
        "border": report.border,
        "num_images": len(report.images),
        "num_empty_truth": report.num_empty_truth,
        "num_missed": report.num_missed,
        "num_false_alarms": report.num_false_alarms,
        "mean": _plain(report.mean),
        "pooled": _plain(report.pooled),
        "intervals": {"level": LEVEL, "method": method} | _plain(report.intervals)
        if report.intervals
        else None,
        "outline": {
            "tolerance": report.tolerance,
            "unit": report.unit,
            "spacing": _plain(report.spacing),
            "scores": _plain(report.outline),
        },
        "objects": _plain(report.objects),
        "calibration": calibration
        and {**_plain(calibration.scores), "bins": _plain(calibration.bins)},
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
        "notes": list(report.notes),
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
    """List the averages of a report, one row for each kind and size, as tables and CSV show them.

    With `intervals` each score has two more columns, NAME_low and NAME_high, which may be empty.
    """
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
    """List the images of a report, one CSV row each: id, columns, counts and scores per size, more.

    The model's size has the prefix `model_`, objects have `objects_`, a manifest's own columns
    `column_`. What has no valid pixel has no score, so that nobody's mean takes it in.
    """
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
