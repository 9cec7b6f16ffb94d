"""Images on the page: the table of all, as plain data for its script, and galleries of some."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from binseg.metrics.registry import (
    METRICS,
    Metric,
    OutlineMetric,
    PixelMetric,
    ProbabilityMetric,
)
from binseg.report.figure import Colour
from binseg.report.gallery import GalleryItem
from binseg.report.overlay import ERROR_COLOURS, EXTRA, IGNORED, MISSED, error_map, for_display
from binseg.report.page.markup import Html, el, readable
from binseg.transforms.geometry import resize_image, resize_mask
from binseg.types import ImageScores, Report

MAX_OWN_COLUMNS = 5
LONGEST_SIDE = 256
"""Longest side of the images on the cards, in pixels."""
_JPEG_QUALITY = 84
_STRENGTH = 0.55
Cell = str | float | list[float | str] | None
"""A text, a number, a number with the text that shows it, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table: its head, and how its cells are made, sorted and shown."""

    label: str
    cell: Callable[[ImageScores], Cell]
    about: str = ""
    kind: Literal["text", "number"] = "number"
    digits: int = 4


def image_columns(report: Report) -> tuple[Column, ...]:
    """List the columns that this report can fill; the first is the id, the second Dice."""
    images = report.images
    found = [_score_column(one, report) for one in METRICS.values() if one.is_main]
    columns = [
        Column(label="image", kind="text", cell=lambda one: readable(one.id)),
        *(one for one in found if one is not None),
        Column(label="object", about="share", cell=_share),
    ]
    if any(one.objects is not None for one in images):
        columns.append(Column(label="found", about="objects", cell=_found))
    if any(one.group is not None for one in images):
        columns.append(
            Column(label="group", kind="text", cell=lambda one: readable(one.group or ""))
        )
    names = dict.fromkeys(name for one in images for name in one.columns)
    return (*columns, *(_own_column(name) for name in list(names)[:MAX_OWN_COLUMNS]))


def _score_column(metric: Metric, report: Report) -> Column | None:
    """Show a score that single images of the report have."""

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


def _own_column(name: str) -> Column:
    return Column(
        label=readable(name), kind="text", cell=lambda one: readable(one.columns.get(name, ""))
    )


def images_table(columns: tuple[Column, ...]) -> Html:
    """Make the head, sorted by Dice, worst first; the script writes the rows."""
    arrow = el("span", class_="arrow", aria_hidden="true")
    heads = [
        el(
            "th",
            el("button", column.label, arrow, type="button"),
            el("small", column.about) if column.about else None,
            scope="col",
            class_="num" if column.kind == "number" else None,
            aria_sort="ascending" if place == 1 else None,
        )
        for place, column in enumerate(columns)
    ]
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


def gallery_cards(galleries: Sequence[tuple[str, Sequence[GalleryItem]]]) -> Html:
    """Make cards of image and error map, each a button that opens it large."""
    number, blocks, has_ignored = 0, [], False
    for title, items in galleries:
        cards = []
        for item in items:
            has_ignored |= item.valid_HW is not None and not bool(item.valid_HW.all())
            cards.append(_card(item, number))
            number += 1
        blocks += [el("h3", title), el("ul", *cards, class_="cards")]
    swatches = [
        el("li", el("i", class_=f"swatch {name}"), name)
        for name in ERROR_COLOURS
        if has_ignored or name != IGNORED
    ]
    return el("div", el("ul", *swatches, class_="legend"), *blocks)


def _card(item: GalleryItem, number: int) -> Html:
    assert item.truth_HW is not None, "an evaluation has a truth"
    height, width = item.image_HWC.shape[:2]
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    image_HW3 = resize_image(for_display(item.image_HWC), *size)
    valid_HW = np.ones(item.truth_HW.shape, bool) if item.valid_HW is None else item.valid_HW
    truth_HW, prediction_HW, valid_HW = (
        resize_mask(mask_HW, *size) for mask_HW in (item.truth_HW, item.prediction_HW, valid_HW)
    )
    errors_HW3 = error_map(image_HW3, truth_HW, prediction_HW, valid_HW)
    dice = "" if item.dice is None else f"Dice {item.dice:.4f}"
    shape = {"width": size[1], "height": size[0]}
    # In the error map these are the colours of what only the truth has, and only the prediction.
    button = el(
        "button",
        el("img", src=_jpeg(image_HW3), alt="", **shape),
        el("img", src=_jpeg(errors_HW3), alt="", **shape),
        type="button",
        class_="open",
        aria_haspopup="dialog",
        aria_label=f"Open {item.id}, {dice}",
        data_image=number,
        data_id=item.id,
        data_dice=dice,
        data_truth=_layer(truth_HW & valid_HW, ERROR_COLOURS[MISSED]),
        data_prediction=_layer(prediction_HW, ERROR_COLOURS[EXTRA]),
    )
    caption = el("p", el("bdi", item.id, class_="name"), el("b", dice), class_="caption")
    return el("li", button, caption)


def _jpeg(image_HW3: UInt8[np.ndarray, "H W 3"]) -> str:
    out = io.BytesIO()
    # Full colour resolution: coarse colour would smear the thin parts of an error map.
    Image.fromarray(image_HW3).save(out, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return _uri("jpeg", out.getvalue())


def _layer(mask_HW: Bool[np.ndarray, "H W"], colour: Colour) -> str:
    """Make a mask a see-through colour with a firm outline, as a PNG of three palette entries."""
    inner_HW = mask_HW.copy()
    inner_HW[1:] &= mask_HW[:-1]
    inner_HW[:-1] &= mask_HW[1:]
    inner_HW[:, 1:] &= mask_HW[:, :-1]
    inner_HW[:, :-1] &= mask_HW[:, 1:]
    image = Image.fromarray(mask_HW.astype(np.uint8) + (mask_HW & ~inner_HW))
    image.putpalette([0, 0, 0, *colour, *colour])
    out = io.BytesIO()
    alpha = bytes([0, round(255 * _STRENGTH), 255])
    image.save(out, format="PNG", optimize=True, transparency=alpha)
    return _uri("png", out.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
