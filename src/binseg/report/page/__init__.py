"""An evaluation as one HTML file that opens anywhere, offline.

    markup.py    text becomes HTML, escaped
    axes.py      SVG charts
    charts.py    what is drawn with them
    sections.py  headline, tables, rules
    slices.py    parts of the data on one scale
    table.py     the table of images
    images.py  the galleries
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
from binseg.report.page import charts, sections
from binseg.report.page.images import draw_gallery_section
from binseg.report.page.markup import Html, el, join, json_block
from binseg.report.page.slices import draw_slices
from binseg.report.page.table import draw_table, image_columns, table_data
from binseg.storage import write_text
from binseg.types import Report, Sweep

__all__ = ["Background", "Gallery", "write_page"]

Gallery = tuple[str, Sequence[GalleryItem]]
"""A heading and the images below it."""
_SWEPT = ("thresholds", "mean_dice", "dice", "iou", "precision", "recall")


@dataclass(frozen=True, kw_only=True)
class Background:
    """Where the figures come from: what a page tells beside a report."""

    model: Sequence[tuple[str, str]] = ()
    """Label and text, a line each: the card."""
    data: Sequence[tuple[str, str]] = ()
    """The same of the data: path, fingerprint, splits."""
    recipe: str = ""
    """The whole recipe as text."""
    training: Sequence[Mapping[str, float | str | None]] = ()
    """The lines of metrics.csv."""
    by_loss: bool = False
    """Whether validation loss, not Dice, chose the best epoch."""
    threshold_method: str = ""
    """How the threshold was chosen."""


def write_page(
    path: Path,
    *,
    report: Report,
    galleries: Sequence[Gallery] = (),
    meanings: Mapping[str, str] | None = None,
    background: Background | None = None,
) -> None:
    """Write the page of one evaluation.

    Args:
        path: of the HTML file.
        report: the figures.
        galleries: images with truth and prediction, small copies of which go into the page.
        meanings: a phrase on each score; those of objects begin with "objects_".
        background: where the figures come from.

    Raises:
        OutputError: the file can't be written.
    """
    background = background or Background()
    columns = image_columns(report)
    data = table_data(report, columns)
    if report.sweep is not None:
        data["sweep"] = _sweep_data(report.sweep, report.threshold)
    parts = _sections(report, galleries, meanings or {}, background)
    parts.append(("images", "All images", _images(draw_table(columns))))
    parts.append(
        ("rules", "How it was measured", sections.draw_rules(report, background.threshold_method))
    )
    parts.append(("origin", "Model and data", _origin(background)))
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
        headline=sections.draw_headline(report),
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
    report: Report,
    galleries: Sequence[Gallery],
    meanings: Mapping[str, str],
    background: Background,
) -> list[tuple[str, str, Html]]:
    """Id, heading and content of each part whose figures are there."""
    scored = [
        one.scores["original"]["dice"] for one in report.images if one.counts["original"].num_valid
    ]
    parts = [("scores", "Scores", sections.draw_averages(report, meanings))]
    parts.append(("histogram", "Dice of each image", charts.draw_dice(scored)))
    if report.calibration is not None:
        content = join(
            (
                sections.draw_calibration_figures(report),
                charts.draw_reliability(report.calibration),
            )
        )
        parts.append(("calibration", "Calibration", content))
    if report.sweep is not None:
        parts.append(("threshold", "Threshold", _threshold(report, background)))
    if report.outline:
        parts.append(("outlines", "Outlines", sections.draw_outline(report, meanings)))
    if report.objects:
        parts.append(("objects", "Objects", sections.draw_objects(report, meanings)))
    if report.slices:
        parts.append(("slices", "Slices", draw_slices(report.slices)))
    if any(items for _, items in galleries):
        parts.append(("gallery", "Images", draw_gallery_section(galleries)))
    return parts


def _threshold(report: Report, background: Background) -> Html:
    assert report.sweep is not None
    start = charts.nearest_threshold(report.sweep, report.threshold)
    average = f"Precision over recall, average precision {report.sweep.average_precision:.4f}"
    return join(
        (
            sections.draw_thresholds(report, background.threshold_method, start),
            el(
                "div",
                el("div", el("h3", "Scores by threshold"),
                   charts.draw_sweep(report.sweep, report.threshold)),
                el("div", el("h3", average),
                   charts.draw_precision_recall(report.sweep, report.threshold)),
                class_="pair",
            ),
        )
    )  # fmt: skip


def _sweep_data(sweep: Sweep, threshold: float) -> dict[str, object]:
    # Not rounded: what is rounded twice differs from the tables in its last digit.
    curves = {name: list(getattr(sweep, name)) for name in _SWEPT}
    return {**curves, "start": charts.nearest_threshold(sweep, threshold)}


def _images(table: Html) -> Html:
    """The table with what filters it and what turns its pages."""
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
    return join((controls, without, sections.scroller(table, "Scores of each image"), pages))


def _origin(background: Background) -> Html:
    """Training curves, card, data and recipe, each to be folded."""
    parts = []
    if background.training:
        drawn = charts.draw_training(background.training, by_loss=background.by_loss)
        parts.append(el("div", el("h3", "Training"), drawn, class_="curves"))
    for title, facts in (("Data", background.data), ("Model card", background.model)):
        if facts:
            drawn = sections.draw_facts(facts)
            parts.append(el("details", el("summary", title), drawn, data_print=True))
    if background.recipe:
        text = el("pre", background.recipe, tabindex=0, aria_label="Recipe", role="region")
        parts.append(el("details", el("summary", "Recipe"), text))
    return join(parts)


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """The name of a style or script in a security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
