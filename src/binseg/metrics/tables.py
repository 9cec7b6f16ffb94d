"""A `Report` as plain data: one JSON object, rows of a table, and one CSV row per image."""

from collections.abc import Hashable, Mapping

from binseg.metrics.intervals import Interval, report_intervals
from binseg.metrics.scores import MEANINGS, SCORES
from binseg.structures import Report, Size

__all__ = ["image_rows", "report_rows", "report_to_json_dict"]

Intervals = Mapping[str, Mapping[Size, Mapping[str, Interval | None]]]
_AVERAGES = {"mean": "mean over images", "pooled": "pooled pixels"}


def report_to_json_dict(
    report: Report, *, groups: Mapping[str, Hashable] | None = None, draws: int = 1000
) -> dict[str, object]:
    """Turn a report into what `json.dumps` takes, with 95% intervals on every average.

    Args:
        report: what `summarise` gave.
        groups: the group of each image by its id, drawn whole for the intervals.
        draws: of the bootstrap; 0 leaves the intervals out.
    """
    intervals = report_intervals(report, groups=groups, draws=draws) if draws else None
    unit = "image" if groups is None else "group"
    return {
        "title": report.title,
        "bundle": report.bundle_id,
        "split": report.split,
        "threshold": report.threshold,
        "border": report.border,
        "num_images": len(report.images),
        "num_empty_truth": report.num_empty_truth,
        "mean": {size: dict(scores) for size, scores in report.mean.items()},
        "pooled": {size: dict(scores) for size, scores in report.pooled.items()},
        "intervals": _intervals_to_dict(intervals, unit=unit, draws=draws),
        "meanings": dict(MEANINGS),
        "notes": list(report.notes),
        "images": [
            {
                "id": one.id,
                "columns": dict(one.columns),
                "counts": {
                    size: {"tp": each.tp, "fp": each.fp, "fn": each.fn, "tn": each.tn}
                    for size, each in one.counts.items()
                },
                "scores": {size: dict(scores) for size, scores in one.scores.items()},
            }
            for one in report.images
        ],
    }


def _intervals_to_dict(
    intervals: Intervals | None, *, unit: str, draws: int
) -> dict[str, object] | None:
    if intervals is None:
        return None
    averages = {
        average: {
            size: {
                name: None if found is None else [found.low, found.high]
                for name, found in scores.items()
            }
            for size, scores in sizes.items()
        }
        for average, sizes in intervals.items()
    }
    return {"level": 0.95, "method": f"percentile bootstrap by {unit}", "draws": draws} | averages


def report_rows(
    report: Report, *, intervals: Intervals | None = None
) -> list[dict[str, str | float]]:
    """List the averages of a report, one row for each kind and size, as tables and CSV show them.

    With `intervals` (of `report_intervals`) each score has two more columns, NAME_low and
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
    """List the images of a report, one CSV row each: id, columns, then counts and scores per size.

    The model's size has the prefix `model_`; a manifest's own columns have `column_`, so that a
    column named "dice" can't hide the score.
    """
    rows: list[dict[str, str | float]] = []
    for one in report.images:
        row: dict[str, str | float] = {"id": one.id}
        row |= {f"column_{name}": value for name, value in one.columns.items()}
        for size, counts in one.counts.items():
            prefix = "" if size == "original" else f"{size}_"
            row |= {f"{prefix}{name}": one.scores[size][name] for name in SCORES}
            row |= {
                f"{prefix}tp": counts.tp,
                f"{prefix}fp": counts.fp,
                f"{prefix}fn": counts.fn,
                f"{prefix}tn": counts.tn,
            }
        rows.append(row)
    _fill_columns(rows)
    return rows


def _fill_columns(rows: list[dict[str, str | float]]) -> None:
    """Give every row the columns of all, as CSV needs, in the order in which they appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for number, row in enumerate(rows):
        rows[number] = {name: row.get(name, "") for name in names}
