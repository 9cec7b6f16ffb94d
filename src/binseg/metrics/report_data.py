"""A `Report` as plain data: one JSON object, rows of a table, and one CSV row per image."""

from collections.abc import Mapping
from dataclasses import asdict

from binseg.metrics.registry import METRICS
from binseg.types import Averages, Figure, ImageScores, Interval, Report, Size

__all__ = ["image_rows", "report_as_dict", "report_rows"]

_AVERAGES = {"mean": "mean over images", "pooled": "pooled pixels"}
_SWEEP_STEP = 8  # of 1,024 thresholds, every eighth goes into the file
Row = dict[str, str | float]


def report_as_dict(report: Report) -> dict[str, object]:
    """Turn a report into what `json.dumps` takes; a figure is {"value", "interval"}."""
    calibration, sweep = report.calibration, report.sweep
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
        "mean": {size: dict(scores) for size, scores in report.mean.items()},
        "pooled": {size: dict(scores) for size, scores in report.pooled.items()},
        "intervals": _intervals_as_dict(report),
        "outline": {
            "tolerance": report.tolerance,
            "unit": report.unit,
            "spacing": report.spacing,
            "scores": _figures(report.outline),
        },
        "objects": _figures(report.objects),
        "calibration": None
        if calibration is None
        else {**_figures(calibration.scores), "bins": [asdict(one) for one in calibration.bins]},
        "sweep": None
        if sweep is None
        else {
            "average_precision": sweep.average_precision,
            "thresholds": list(sweep.thresholds[::_SWEEP_STEP]),
            **{name: list(curve[::_SWEEP_STEP]) for name, curve in sweep.curves.items()},
        },
        "slices": [
            {
                "by": one.by,
                "value": one.value,
                "num_images": one.num_images,
                "is_small": one.is_small,
                "dice": _figure(one.dice),
            }
            for one in report.slices
        ],
        "meanings": {name: metric.meaning for name, metric in METRICS.items()},
        "notes": list(report.notes),
        "images": [_image_as_dict(one) for one in report.images],
    }


def _image_as_dict(one: ImageScores) -> dict[str, object]:
    is_ignored = not one.counts["original"].num_valid
    return {
        "id": one.id,
        "group": one.group,
        "columns": dict(one.columns),
        "counts": {size: asdict(each) for size, each in one.counts.items()},
        # Nothing where all pixels are ignored, so that nobody's mean takes it in.
        "scores": {
            size: dict(scores) if one.counts[size].num_valid else dict.fromkeys(scores)
            for size, scores in one.scores.items()
        },
        "outline": None if one.outline is None or is_ignored else dict(one.outline),
        "objects": None if one.objects is None or is_ignored else asdict(one.objects),
        "probability": None if one.probability is None or is_ignored else dict(one.probability),
    }


def _figures(figures: Mapping[str, Figure]) -> dict[str, object]:
    return {name: _figure(one) for name, one in figures.items()}


def _figure(figure: Figure) -> dict[str, object]:
    return {"value": figure.value, "interval": _interval(figure.interval)}


def _interval(found: Interval | None) -> list[float] | None:
    return None if found is None else [found.low, found.high]


def _intervals_as_dict(report: Report) -> dict[str, object] | None:
    if not report.intervals:
        return None
    averages = {
        average: {
            size: {name: _interval(found) for name, found in scores.items()}
            for size, scores in sizes.items()
        }
        for average, sizes in report.intervals.items()
    }
    return {"level": 0.95, "method": f"percentile bootstrap by {report.resampled}", **averages}


def report_rows(report: Report, *, intervals: Averages | None = None) -> list[Row]:
    """List the averages of a report, one row for each kind and size, as tables and CSV show them.

    With `intervals` (a report's own) each score has two more columns, NAME_low and
    NAME_high; they are empty where there is only one image or group.
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

    The model's size has the prefix `model_`, objects have `objects_`; a manifest's own columns have
    `column_`, so that a column named "dice" can't hide the score. What has no valid pixel has no
    score, so that nobody's mean takes it in.
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
        row |= {f"{prefix}{name}": _score(one, size, name) for name in one.scores[size]}
        row |= {f"{prefix}{name}": num for name, num in asdict(counts).items()}
    if one.counts["original"].num_valid:
        row |= one.outline or {}
        if one.objects is not None:
            row |= {f"objects_{name}": value for name, value in asdict(one.objects).items()}
        row |= one.probability or {}
    return row


def _score(one: ImageScores, size: Size, name: str) -> str | float:
    return one.scores[size][name] if one.counts[size].num_valid else ""
