"""An evaluation as one HTML file that opens anywhere, offline: `assets/page.html`, filled in.

The page's own security policy names its style and its script by their hashes, so that nothing else
in it can ever run and it can fetch nothing.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from binseg.metrics.registry import METRICS, Metric, OutlineMetric, PixelMetric, ProbabilityMetric
from binseg.metrics.scores import scored_images
from binseg.metrics.summary import mark_of
from binseg.report import charts
from binseg.report.overlay import (
    ERROR_COLOURS,
    EXTRA,
    IGNORED,
    MISSED,
    GalleryItem,
    error_map,
    for_display,
)
from binseg.report.plots import Colour
from binseg.report.rendering import asset, data_uri, readable, render
from binseg.storage import write_text
from binseg.transforms.geometry import resize_image, resize_mask
from binseg.types import Figure, ImageScores, Mask, Report, Size

MAX_OWN_COLUMNS = 5
LONGEST_SIDE = 320
"""Longest side of the images on the cards, in pixels."""
_JPEG_QUALITY = 84
_STRENGTH = 0.55
Cell = str | float | list[float | str] | None
"""A text, a number, a number with the text that shows it, or nothing."""
Gallery = tuple[str, Sequence[GalleryItem]]  # a heading and the images below it


@dataclass(frozen=True, kw_only=True)
class Background:
    """The origin of the figures: what a page tells beside a report."""

    model: Sequence[tuple[str, str]] = ()  # label and text, a line each: the card
    data: Sequence[tuple[str, str]] = ()  # the same of the data: path, fingerprint, splits
    recipe: str = ""  # the whole recipe as text
    training: Sequence[Mapping[str, float | str | None]] = ()  # the lines of metrics.csv
    by_loss: bool = False  # True where validation loss, not Dice, chose the best epoch
    threshold_method: str = ""  # the way the threshold was chosen


def write_page(
    path: Path,
    *,
    report: Report,
    galleries: Sequence[Gallery] = (),
    background: Background | None = None,
) -> None:
    """Write the page of one evaluation, with small copies of the galleries' images; OutputError."""

    def average(kind: str, size: Size, score: str) -> Figure:
        table = report.mean if kind == "mean" else report.pooled
        found = report.intervals.get(kind, {}).get(size, {}).get(score)
        return Figure(value=table[size][score], interval=found)

    columns = _columns(report)
    data: dict[str, object] = {
        "columns": [{"kind": column.kind, "digits": column.digits} for column in columns],
        "rows": [[column.cell(one) for column in columns] for one in report.images],
        "marks": [mark_of(one) for one in report.images],
    }
    start = 0
    if report.sweep is not None:
        start = charts.nearest_threshold(report.sweep, report.threshold)
        # Not rounded: what is rounded twice differs from the tables in its last digit. The step
        # next to the threshold that was used stands for it, and so bears its name.
        thresholds = [*report.sweep.thresholds]
        thresholds[start] = report.threshold
        curves = {"thresholds": thresholds, **report.sweep.curves}
        data["sweep"] = {**curves, "start": start}
    items = [item for _, gallery in galleries for item in gallery]
    cards = iter([_card(item, number) for number, item in enumerate(items)])
    has_ignored = any(not one.valid_HW.all() for one in items)
    style, script = asset("page.css"), asset("page.js")
    page = render(
        "page.html",
        report=report,
        background=background or Background(),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        metrics=METRICS,
        average=average,
        charts=charts,
        dices=[one.scores["original"]["dice"] for one in scored_images(report.images, "original")],
        start=start,
        galleries=[(title, list(islice(cards, len(own)))) for title, own in galleries if items],
        swatches=[name for name in ERROR_COLOURS if has_ignored or name != IGNORED],
        columns=columns,
        num_groups=len({one.group for one in report.images if one.group is not None}),
        notes=[_term_of(note) for note in report.notes],
        data=data,
    )
    write_text(path, page)


def _term_of(note: str) -> tuple[str, str]:
    """Split a note that begins with its subject and a colon; others are of the term Note."""
    term, colon, text = note.partition(": ")
    return (term, text) if colon and len(term) <= 24 else ("Note", note)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table: its head, and how its cells are made, sorted and shown."""

    label: str
    cell: Callable[[ImageScores], Cell]
    about: str = ""
    kind: Literal["text", "number"] = "number"
    digits: int = 4


def _columns(report: Report) -> list[Column]:
    """List the columns that this report can fill; the first is the id, the second Dice."""
    images = report.images
    found = [_score_column(one, report) for one in METRICS.values() if one.is_main]
    columns = [_text_column("image", lambda one: one.id), *filter(None, found)]
    columns.append(Column(label="object", about="share", cell=_share))
    if any(one.objects is not None for one in images):
        columns.append(Column(label="found", about="objects", cell=_found))
    if any(one.group is not None for one in images):
        columns.append(_text_column("group", lambda one: one.group or ""))
    names = [*dict.fromkeys(name for one in images for name in one.columns)][:MAX_OWN_COLUMNS]
    return columns + [_text_column(name) for name in names]


def _score_column(metric: Metric, report: Report) -> Column | None:

    def scores_of(one: ImageScores) -> Mapping[str, float] | None:
        if isinstance(metric, PixelMetric):
            return one.scores["original"]
        if isinstance(metric, OutlineMetric):
            return one.outline
        return one.probability if isinstance(metric, ProbabilityMetric) else None

    def cell(one: ImageScores) -> Cell:
        scores = scores_of(one)
        return scores[metric.name] if scores and one.counts["original"].num_valid else None

    if not any(scores_of(one) for one in report.images):
        return None
    within = f"within {report.tolerance:g} {report.unit}" if metric.has_tolerance else ""
    return Column(
        label=metric.label,
        about=report.unit if metric.is_distance else within,
        cell=cell,
        digits=2 if metric.is_distance else 4,
    )


def _share(one: ImageScores) -> Cell:
    counts = one.counts["original"]
    if not counts.num_valid:
        return None
    share = (counts.tp + counts.fn) / counts.num_valid
    return [share, f"{share:.1%}"]


def _found(one: ImageScores) -> Cell:
    if one.objects is None or not one.counts["original"].num_valid:
        return None
    counts = one.objects
    share = counts.num_matched / counts.num_true if counts.num_true else 1.0
    return [share, f"{counts.num_matched} of {counts.num_true}"]


def _text_column(name: str, text_of: Callable[[ImageScores], str] | None = None) -> Column:
    """Make a column of text, by default that of the user's own."""
    text_of = text_of or (lambda one: one.columns.get(name, ""))
    return Column(label=readable(name), kind="text", cell=lambda one: readable(text_of(one)))


def _card(item: GalleryItem, number: int) -> dict[str, object]:
    """Give a small image with its error map, and all that the viewer shows, to the template."""
    height, width = item.image_HWC.shape[:2]
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    image_HW3 = resize_image(for_display(item.image_HWC), *size)
    truth_HW, prediction_HW, valid_HW = (
        resize_mask(mask_HW, *size)
        for mask_HW in (item.truth_HW, item.prediction_HW, item.valid_HW)
    )
    errors_HW3 = error_map(image_HW3, truth_HW, prediction_HW, valid_HW)
    # Full colour resolution: coarse colour would smear the thin parts of an error map.
    image, errors = (
        data_uri(Image.fromarray(each), "jpeg", quality=_JPEG_QUALITY, subsampling=0)
        for each in (image_HW3, errors_HW3)
    )
    return {
        "number": number,
        "id": item.id,
        "dice": f"Dice {item.dice:.4f}",
        "width": size[1],
        "height": size[0],
        "image": image,
        "errors": errors,
        # In the error map these are the colours of what only the truth has, or the prediction.
        "truth": _layer(truth_HW & valid_HW, ERROR_COLOURS[MISSED]),
        "prediction": _layer(prediction_HW, ERROR_COLOURS[EXTRA]),
    }


def _layer(mask_HW: Mask, colour: Colour) -> str:
    """Make a mask a see-through colour with a firm outline, as a PNG of three palette entries."""
    inner_HW = ndimage.binary_erosion(mask_HW, border_value=1)
    image = Image.fromarray(mask_HW.astype(np.uint8) + (mask_HW & ~inner_HW))
    image.putpalette([0, 0, 0, *colour, *colour])
    alpha = bytes([0, round(255 * _STRENGTH), 255])
    return data_uri(image, "png", optimize=True, transparency=alpha)
