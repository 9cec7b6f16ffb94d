"""An evaluation as one HTML file that opens anywhere, offline.

    markup.py       text becomes HTML, escaped
    svg.py          charts as inline SVG
    charts.py       the charts of an evaluation
    page_parts.py   headline, tables, rules
    image_table.py  the table of images and the galleries
    page.html, page.css, page.js

The page's own security policy names its style and its script by their hashes, so that nothing else
in it can ever run and it can fetch nothing.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template

from binseg.report.gallery import GalleryItem
from binseg.report.page import charts, page_parts
from binseg.report.page.image_table import gallery_cards, image_columns, images_table, table_data
from binseg.report.page.markup import Html, el, join, json_block
from binseg.storage import write_text
from binseg.types import Report

__all__ = ["Background", "Gallery", "write_page"]

Gallery = tuple[str, Sequence[GalleryItem]]
"""A heading and the images below it."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """The origin of the figures: what a page tells beside a report."""

    model: Sequence[tuple[str, str]] = ()
    """Label and text, a line each: the card."""
    data: Sequence[tuple[str, str]] = ()
    """The same of the data: path, fingerprint, splits."""
    recipe: str = ""
    """The whole recipe as text."""
    training: Sequence[Mapping[str, float | str | None]] = ()
    """The lines of metrics.csv."""
    by_loss: bool = False
    """True where validation loss, not Dice, chose the best epoch."""
    threshold_method: str = ""
    """The way the threshold was chosen."""


def write_page(
    path: Path,
    *,
    report: Report,
    galleries: Sequence[Gallery] = (),
    background: Background | None = None,
) -> None:
    """Write the page of one evaluation.

    Args:
        path: of the HTML file.
        report: the figures.
        galleries: images with truth and prediction, small copies of which go into the page.
        background: the origin of the figures.

    Raises:
        OutputError: the file can't be written.
    """
    background = background or Background()
    columns = image_columns(report)
    data = table_data(report, columns)
    if report.sweep is not None:
        # Not rounded: what is rounded twice differs from the tables in its last digit.
        data["sweep"] = {
            "thresholds": report.sweep.thresholds,
            **report.sweep.curves,
            "start": charts.nearest_threshold(report.sweep, report.threshold),
        }
    method = background.threshold_method
    parts = [
        *_sections(report, galleries, method),
        ("images", "All images", _images(images_table(columns))),
        ("rules", "How it was measured", page_parts.rules_list(report, method)),
        ("origin", "Model and data", _origin(background)),
    ]
    parts = [(id_, title, content) for id_, title, content in parts if content]
    nav = [el("li", el("a", title, href=f"#{id_}")) for id_, title, _ in parts]
    body = [
        el("section", el("h2", title), content, id=id_, class_="part")
        for id_, title, content in parts
    ]
    style, script = _asset("page.css"), _asset("page.js")
    page = Template(_asset("page.html")).substitute(
        title=join([report.title]),
        facts=_facts(report),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        headline=page_parts.headline(report),
        nav=join(nav),
        parts=join(body),
        data=json_block("data", data),
    )
    write_text(path, page)


def _facts(report: Report) -> Html:
    """The line below the title."""
    parts = [f"split {report.split}", f"threshold {report.threshold:.3f}"]
    if report.border != "none":
        parts.append(f"border = {report.border}")
    parts.append(f"model {report.bundle_id}")
    return join(el("li", part) for part in parts)


def _sections(
    report: Report, galleries: Sequence[Gallery], method: str
) -> list[tuple[str, str, Html]]:
    """Give id, heading and content of each part whose figures are there."""
    scored = [
        one.scores["original"]["dice"] for one in report.images if one.counts["original"].num_valid
    ]
    parts = [("scores", "Scores", page_parts.averages_table(report))]
    parts.append(("histogram", "Dice of each image", charts.dice_chart(scored)))
    if report.calibration is not None:
        figures = page_parts.calibration_figures(report)
        curve = charts.reliability_chart(report.calibration)
        parts.append(("calibration", "Calibration", join((figures, curve))))
    if report.sweep is not None:
        parts.append(("threshold", "Threshold", _threshold(report, method)))
    if report.outline:
        parts.append(("outlines", "Outlines", page_parts.outlines_table(report)))
    if report.objects:
        parts.append(("objects", "Objects", page_parts.objects_table(report)))
    if report.slices:
        parts.append(("slices", "Slices", page_parts.slices_table(report.slices)))
    if any(items for _, items in galleries):
        parts.append(("gallery", "Images", gallery_cards(galleries)))
    return parts


def _threshold(report: Report, method: str) -> Html:
    assert report.sweep is not None
    sweep, threshold = report.sweep, report.threshold
    start = charts.nearest_threshold(sweep, threshold)
    average = f"Precision over recall, average precision {sweep.average_precision:.4f}"
    pair = (
        ("Scores by threshold", charts.sweep_chart(sweep, threshold)),
        (average, charts.precision_recall_chart(sweep, threshold)),
    )
    drawn = [el("div", el("h3", title), chart) for title, chart in pair]
    slider = page_parts.threshold_slider(report, method, start)
    return join((slider, el("div", *drawn, class_="pair")))


def _images(table: Html) -> Html:
    """Put what filters the table above it, and what turns its pages below."""
    search = el("input", type="search", id="search", autocomplete="off", spellcheck="false")
    kinds = (
        ("", "all images"),
        ("poor", "Dice below 0.5"),
        ("missed", "object missed"),
        ("alarm", "false alarm"),
        ("empty", "empty truth"),
        ("image", "with an image"),
    )
    shown = el("select", *(el("option", text, value=value) for value, text in kinds), id="show",
               autocomplete="off")  # fmt: skip
    controls = el(
        "div",
        el("p", el("label", "Find", for_="search"), search),
        el("p", el("label", "Show", for_="show"), shown),
        el("p", id="status", role="status", class_="aside"),
        class_="controls needs-script",
    )
    pages = el(
        "div",
        el("button", "Previous", type="button", id="previous"),
        el("span", id="page-number"),
        el("button", "Next", type="button", id="next"),
        class_="pages needs-script",
    )
    without = el("noscript", el("p", "The table needs scripts; per_image.csv holds all of it."))
    return join((controls, without, page_parts.scroller(table, "Scores of each image"), pages))


def _origin(background: Background) -> Html:
    """List training curves, card, data and recipe, each to be folded."""
    parts = []
    if background.training:
        drawn = charts.training_charts(background.training, by_loss=background.by_loss)
        parts.append(el("div", el("h3", "Training"), drawn, class_="curves"))
    for title, facts in (("Data", background.data), ("Model card", background.model)):
        if facts:
            drawn = page_parts.facts_list(facts)
            parts.append(el("details", el("summary", title), drawn, data_print=True))
    if background.recipe:
        text = el("pre", background.recipe, tabindex=0, aria_label="Recipe", role="region")
        parts.append(el("details", el("summary", "Recipe"), text))
    return join(parts)


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """Name a style or script for a security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
