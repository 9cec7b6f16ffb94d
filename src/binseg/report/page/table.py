"""The table of images: its columns, and the rows as plain data for the page's script."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from binseg.report.page.markup import Html, el, readable
from binseg.types import ImageScores, Report

__all__ = ["Column", "draw_table", "image_columns", "table_data"]

_MAX_OWN_COLUMNS = 5
Cell = str | float | list[float | str] | None
"""A text, a number, a number with the text that shows it, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: what it is called, how its cells are sorted and shown."""

    label: str
    about: str
    kind: Literal["text", "number"]
    cell: Callable[[ImageScores], Cell]
    digits: int = 4


def image_columns(report: Report) -> tuple[Column, ...]:
    """List the columns that this report can fill; the first is the id, the second Dice."""
    images = report.images
    columns = [
        Column(label="image", about="", kind="text", cell=lambda one: readable(one.id)),
        _score("Dice", "dice"),
        _score("IoU", "iou"),
        _score("precision", "precision"),
        _score("recall", "recall"),
        Column(label="object", about="share", kind="number", cell=_share),
    ]
    if any(one.outline is not None for one in images):
        near = f"within {report.tolerance:g} {report.unit}"
        columns += [
            Column(label="boundary F1", about=near, kind="number", cell=_boundary),
            Column(label="HD95", about=report.unit, kind="number", cell=_hd95, digits=2),
        ]
    if any(one.objects is not None for one in images):
        columns.append(Column(label="found", about="objects", kind="number", cell=_found))
    if any(one.group is not None for one in images):
        columns.append(
            Column(label="group", about="", kind="text", cell=lambda one: readable(one.group or ""))
        )
    names = dict.fromkeys(name for one in images for name in one.columns)
    columns += [_own(name) for name in list(names)[:_MAX_OWN_COLUMNS]]
    return tuple(columns)


def _is_scored(one: ImageScores) -> bool:
    return one.counts["original"].num_valid > 0


def _score(label: str, name: str) -> Column:
    def cell(one: ImageScores) -> Cell:
        return one.scores["original"][name] if _is_scored(one) else None

    return Column(label=label, about="", kind="number", cell=cell)


def _share(one: ImageScores) -> Cell:
    counts = one.counts["original"]
    if not counts.num_valid:
        return None
    share = (counts.tp + counts.fn) / counts.num_valid
    return [share, f"{share:.1%}"]


def _boundary(one: ImageScores) -> Cell:
    return one.outline.boundary_f1 if one.outline and _is_scored(one) else None


def _hd95(one: ImageScores) -> Cell:
    return one.outline.hd95 if one.outline and _is_scored(one) else None


def _found(one: ImageScores) -> Cell:
    if one.objects is None or not _is_scored(one):
        return None
    counts = one.objects
    share = counts.num_matched / counts.num_true if counts.num_true else 1.0
    return [share, f"{counts.num_matched} of {counts.num_true}"]


def _own(name: str) -> Column:
    return Column(
        label=readable(name),
        about="",
        kind="text",
        cell=lambda one: readable(one.columns.get(name, "")),
    )


def draw_table(columns: tuple[Column, ...]) -> Html:
    """Draw the head, sorted by Dice, worst first; the script writes the rows."""
    heads = [
        el(
            "th",
            el("button", column.label, el("span", class_="arrow", aria_hidden="true"),
               type="button"),
            el("small", column.about) if column.about else None,
            scope="col",
            class_="num" if column.kind == "number" else None,
            aria_sort="ascending" if place == 1 else None,
        )
        for place, column in enumerate(columns)
    ]  # fmt: skip
    return el(
        "table",
        el("caption", "Scores of each image, original size", class_="unseen"),
        el("thead", el("tr", *heads)),
        el("tbody", id="rows"),
        class_="images",
    )


def table_data(report: Report, columns: tuple[Column, ...]) -> dict[str, object]:
    """Give kinds, rows and marks as what JSON takes."""
    return {
        "columns": [{"kind": column.kind, "digits": column.digits} for column in columns],
        "rows": [[column.cell(one) for column in columns] for one in report.images],
        "marks": [_mark(one) for one in report.images],
    }


def _mark(one: ImageScores) -> str:
    """Say in one word what is special about an image, if anything."""
    counts = one.counts["original"]
    if not counts.num_valid:
        return "ignored"
    if counts.tp + counts.fn == 0:
        return "alarm" if counts.fp else "empty"
    return "missed" if counts.tp == 0 else ""
