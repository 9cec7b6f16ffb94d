"""A `Report` as plain data: one JSON object, rows of a table, and one CSV row per image."""

from dataclasses import asdict

from binseg.metrics.objects import OBJECT_MEANINGS
from binseg.metrics.scores import MEANINGS, SCORES
from binseg.metrics.surface import OUTLINE_MEANINGS
from binseg.types import Averages, Figure, ImageScores, Interval, Report, Size, Sweep

__all__ = ["image_rows", "report_rows", "report_to_json_dict"]

_AVERAGES = {"mean": "mean over images", "pooled": "pooled pixels"}
_SWEEP_STEP = 8  # of 1,024 thresholds, every eighth goes into the file
_CURVES = ("thresholds", "mean_dice", "dice", "iou", "precision", "recall")


def report_to_json_dict(report: Report) -> dict[str, object]:
    """Turn a report into what `json.dumps` takes; a figure is {"value", "interval"}."""
    calibration = report.calibration
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
        "intervals": _intervals_to_dict(report),
        "outline": {
            "tolerance": report.tolerance,
            "unit": report.unit,
            "spacing": report.spacing,
            "scores": {name: _figure(one) for name, one in report.outline.items()},
        },
        "objects": {name: _figure(one) for name, one in report.objects.items()},
        "calibration": None
        if calibration is None
        else {
            "brier": _figure(calibration.brier),
            "ece": _figure(calibration.ece),
            "bins": [asdict(one) for one in calibration.bins],
        },
        "sweep": None if report.sweep is None else _sweep_to_dict(report.sweep),
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
        "meanings": {**MEANINGS, **OUTLINE_MEANINGS}
        | {f"objects_{name}": text for name, text in OBJECT_MEANINGS.items()},
        "notes": list(report.notes),
        "images": [_image_to_dict(one) for one in report.images],
    }


def _image_to_dict(one: ImageScores) -> dict[str, object]:
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
        "outline": None if one.outline is None or is_ignored else asdict(one.outline),
        "objects": None if one.objects is None or is_ignored else asdict(one.objects),
        "brier": None if is_ignored else one.brier,
    }


def _sweep_to_dict(sweep: Sweep) -> dict[str, object]:
    curves = {name: list(getattr(sweep, name)[::_SWEEP_STEP]) for name in _CURVES}
    return {"average_precision": sweep.average_precision, **curves}


def _figure(figure: Figure) -> dict[str, object]:
    return {"value": figure.value, "interval": _interval(figure.interval)}


def _interval(found: Interval | None) -> list[float] | None:
    return None if found is None else [found.low, found.high]


def _intervals_to_dict(report: Report) -> dict[str, object] | None:
    if not report.intervals:
        return None
    averages = {
        average: {
            size: {name: _interval(found) for name, found in scores.items()}
            for size, scores in sizes.items()
        }
        for average, sizes in report.intervals.items()
    }
    method = f"percentile bootstrap by {report.drawn}"
    return {"level": 0.95, "method": method, **averages}


def report_rows(
    report: Report, *, intervals: Averages | None = None
) -> list[dict[str, str | float]]:
    """List the averages of a report, one row for each kind and size, as tables and CSV show them.

    With `intervals` (a report's own) each score has two more columns, NAME_low and
    NAME_high; they are empty where there is only one image or group.
    """
    rows: list[dict[str, str | float]] = []
    for kind, table in (("mean", report.mean), ("pooled", report.pooled)):
        for size, scores in table.items():
            row: dict[str, str | float] = {"average": _AVERAGES[kind], "size": size}
            for name in SCORES:
                row[name] = scores[name]
                if intervals is not None:
                    found = intervals[kind][size][name]
                    row[f"{name}_low"] = "" if found is None else found.low
                    row[f"{name}_high"] = "" if found is None else found.high
            rows.append(row)
    return rows


def image_rows(report: Report) -> list[dict[str, str | float]]:
    """List the images of a report, one CSV row each: id, columns, counts and scores per size, more.

    The model's size has the prefix `model_`, objects have `objects_`; a manifest's own columns have
    `column_`, so that a column named "dice" can't hide the score.
    """
    rows: list[dict[str, str | float]] = []
    for one in report.images:
        row: dict[str, str | float] = {"id": one.id}
        if one.group is not None:
            row["group"] = one.group
        row |= {f"column_{name}": value for name, value in one.columns.items()}
        for size, counts in one.counts.items():
            prefix = "" if size == "original" else f"{size}_"
            row |= {f"{prefix}{name}": _score(one, size, name) for name in SCORES}
            row |= {
                f"{prefix}tp": counts.tp,
                f"{prefix}fp": counts.fp,
                f"{prefix}fn": counts.fn,
                f"{prefix}tn": counts.tn,
            }
        if not one.counts["original"].num_valid:
            rows.append(row)
            continue
        row |= asdict(one.outline) if one.outline is not None else {}
        if one.objects is not None:
            row |= {f"objects_{name}": value for name, value in asdict(one.objects).items()}
        if one.brier is not None:
            row["brier"] = one.brier
        rows.append(row)
    _fill_columns(rows)
    return rows


def _score(one: ImageScores, size: Size, name: str) -> str | float:
    """A score; nothing where all pixels are ignored, so that nobody's mean takes it in."""
    return one.scores[size][name] if one.counts[size].num_valid else ""


def _fill_columns(rows: list[dict[str, str | float]]) -> None:
    """Give every row the columns of all, as CSV needs, in the order in which they appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for number, row in enumerate(rows):
        rows[number] = {name: row.get(name, "") for name in names}
