"""The page's text and tables: headline, averages, outlines, objects, rules, facts."""

from collections.abc import Mapping, Sequence

from binseg.report.page.markup import Html, el, join
from binseg.types import Figure, Interval, Report, Size

__all__ = [
    "draw_averages",
    "draw_calibration_figures",
    "draw_facts",
    "draw_headline",
    "draw_objects",
    "draw_outline",
    "draw_rules",
    "draw_thresholds",
    "scroller",
    "write_range",
]

_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "mean_iou": "mean IoU",
    "boundary_iou": "boundary IoU",
    "boundary_f1": "boundary F1",
    "surface_dice": "surface Dice",
    "hd95": "HD95",
    "assd": "mean distance",
    "f1": "F1",
    "pq": "panoptic quality",
    "sq": "segmentation quality",
    "rq": "recognition quality",
}
_AVERAGES = (("mean", "mean over images"), ("pooled", "pooled pixels"))


def _name(score: str) -> str:
    return _NAMES.get(score, score.replace("_", " "))


def _interval(report: Report, average: str, size: Size, score: str) -> Interval | None:
    return report.intervals.get(average, {}).get(size, {}).get(score)


_DIGITS_OF_MM = 4
"""A tenth of a micrometre."""


def write_range(found: Interval | None, digits: int = 3) -> Html | None:
    """Write an interval, if there is one, in a way that stays on one line."""
    if found is None:
        return None
    return el("span", f"{found.low:.{digits}f}\u2013{found.high:.{digits}f}", class_="range")


def draw_headline(report: Report) -> Html:
    """Draw the figures that are read first."""
    cards = [_hero(report, "dice"), _hero(report, "iou")]
    if report.outline:
        cards.append(_outline_hero(report))
    groups = {one.group for one in report.images if one.group is not None}
    told = f"in {len(groups):,} groups" if groups else f"of split {report.split}"
    failures = [
        ("with the object missed", f"{report.num_missed:,}", None),
        ("with a false alarm", f"{report.num_false_alarms:,}", None),
        ("with an empty truth", f"{report.num_empty_truth:,}", None),
    ]
    cards.append(
        _card("Images", f"{len(report.images):,}", el("p", told, class_="trust"), failures)
    )
    return el("div", *cards, class_="hero")


def _outline_hero(report: Report) -> Html:
    boundary, hd95, assd = (report.outline[name] for name in ("boundary_f1", "hd95", "assd"))
    digits = 1 if report.unit == "px" else _DIGITS_OF_MM
    return _card(
        f"Boundary F1 within {report.tolerance:g} {report.unit}",
        f"{boundary.value:.4f}",
        join((_trust(boundary.interval), _gauge(boundary))),
        [
            ("HD95", f"{hd95.value:.{digits}f} {report.unit}", write_range(hd95.interval, digits)),
            ("mean distance", f"{assd.value:.{digits}f} {report.unit}", None),
        ],
    )


def _hero(report: Report, score: str) -> Html:
    pooled = report.pooled["original"][score]
    rows = [
        ("pooled", f"{pooled:.4f}", write_range(_interval(report, "pooled", "original", score))),
    ]
    if "model" in report.mean:
        # Their intervals are in the table below.
        rows.append(("mean at model size", f"{report.mean['model'][score]:.4f}", None))
        rows.append(("pooled at model size", f"{report.pooled['model'][score]:.4f}", None))
    found = _interval(report, "mean", "original", score)
    mean = Figure(value=report.mean["original"][score], interval=found)
    trust = join((_trust(found), _gauge(mean)))
    return _card(f"Mean {_name(score)}", f"{mean.value:.4f}", trust, rows)


def _gauge(figure: Figure) -> Html:
    """Draw a score on the way from 0 to 1, with its interval."""
    marks = [
        el("rect", class_="track", x="0", y="3", width="100%", height="8", rx="4"),
        el("rect", class_="filled", x="0", y="3", width=f"{100 * figure.value:.2f}%", height="8",
           rx="4"),
    ]  # fmt: skip
    if figure.interval is not None:
        low, high = figure.interval.low, figure.interval.high
        marks.append(
            el("rect", class_="band", x=f"{100 * low:.2f}%", y="0",
               width=f"{max(0.5, 100 * (high - low)):.2f}%", height="14", rx="2")
        )  # fmt: skip
    return el("svg", *marks, class_="gauge", aria_hidden="true")


def _trust(found: Interval | None) -> Html:
    if found is None:
        return el("p", "one image or group tells no interval", class_="trust")
    return el("p", "95%: ", write_range(found), class_="trust")


def _card(
    title: str, value: str, trust: Html, rows: Sequence[tuple[str, str, Html | None]]
) -> Html:
    lines = [
        el("div", el("dt", label), el("dd", figure, " " if about else None, about))
        for label, figure, about in rows
    ]
    return el(
        "section",
        el("h2", title),
        el("p", value, class_="value"),
        trust,
        el("dl", *lines),
    )


def draw_averages(report: Report, meanings: Mapping[str, str]) -> Html:
    """Draw all averages at all sizes: a row a score, a column an average."""
    columns: list[tuple[str, str, Size]] = [
        (average, label, size) for average, label in _AVERAGES for size in report.mean
    ]
    head = [
        el("th", label, el("small", f"{size} size"), scope="col", class_="num")
        for _, label, size in columns
    ]
    tables = {"mean": report.mean, "pooled": report.pooled}
    rows = []
    for score in report.mean["original"]:
        cells = [
            el(
                "td",
                f"{tables[average][size][score]:.4f}",
                write_range(_interval(report, average, size, score)),
                class_="num stack",
            )
            for average, _, size in columns
        ]
        rows.append(el("tr", _row_head(score, meanings.get(score, "")), *cells))
    table = el(
        "table",
        el("thead", el("tr", el("th", "score", scope="col"), *head)),
        el("tbody", *rows),
        class_="averages",
    )
    return scroller(table, "Averages of all scores")


def _row_head(score: str, meaning: str) -> Html:
    return el("th", _name(score), el("small", meaning) if meaning else None, scope="row")


def _figures(
    figures: Mapping[str, Figure], meanings: Mapping[str, str], label: str, *, unit: str = ""
) -> Html:
    rows = []
    for score, figure in figures.items():
        is_distance = score in ("hd95", "assd")
        digits = 2 if unit == "px" else _DIGITS_OF_MM
        text = f"{figure.value:.{digits}f} {unit}" if is_distance else f"{figure.value:.4f}"
        found = write_range(figure.interval, digits if is_distance else 3)
        value = el("td", text, found, class_="num stack")
        rows.append(el("tr", _row_head(score, meanings.get(score, "")), value))
    return el("table", el("caption", label, class_="unseen"), el("tbody", *rows), class_="figures")


def draw_outline(report: Report, meanings: Mapping[str, str]) -> Html:
    """Draw how near outlines are."""
    label = "Outline scores, mean over images, original size"
    table = _figures(report.outline, meanings, label, unit=report.unit)
    about = f"Mean over images, original size; tolerance {report.tolerance:g} {report.unit}."
    return join((el("p", about, class_="aside"), table))


def draw_objects(report: Report, meanings: Mapping[str, str]) -> Html:
    """Draw how many objects were found, and the scores of the pooled objects."""
    counted = [one.objects for one in report.images if one.objects is not None]
    num_true, num_predicted, num_matched = (
        sum(getattr(one, name) for one in counted)
        for name in ("num_true", "num_predicted", "num_matched")
    )
    about = (
        f"{num_matched:,} of {num_true:,} true objects found, {num_predicted:,} predicted; "
        "original size, objects of all images pooled."
    )
    said = {
        name.removeprefix("objects_"): text
        for name, text in meanings.items()
        if name.startswith("objects_")
    }
    # Recognition quality is F1 by another name.
    figures = {name: figure for name, figure in report.objects.items() if name != "rq"}
    return join((el("p", about, class_="aside"), _figures(figures, said, "Object scores")))


def draw_calibration_figures(report: Report) -> Html:
    """Draw Brier score and calibration error in words."""
    assert report.calibration is not None
    items = []
    for name, figure in (
        ("Brier score", report.calibration.brier),
        ("expected calibration error", report.calibration.ece),
    ):
        found = write_range(figure.interval, 4)
        items.append(el("div", el("dt", name), el("dd", f"{figure.value:.4f}", " ", found)))
    return el("dl", *items, class_="inline")


def draw_thresholds(report: Report, method: str, start: int) -> Html:
    """Draw the slider; the script fills in the figures when it is moved."""
    assert report.sweep is not None
    sweep = report.sweep
    outputs = []
    for key, label, tone in (
        ("mean_dice", "mean Dice", "a"),
        ("dice", "pooled Dice", ""),
        ("iou", "pooled IoU", "b"),
        ("precision", "pooled precision", "c"),
        ("recall", "pooled recall", "d"),
    ):
        value = f"{getattr(sweep, key)[start]:.4f}"
        outputs.append(
            el(
                "div",
                el("dt", label, class_=f"tone {tone}".strip()),
                el(
                    "dd",
                    el("span", value, data_score=key),
                    el("span", "as used", class_="change", data_change=key),
                ),
            )
        )
    slider = el(
        "input",
        type="range",
        id="threshold-slider",
        min=0,
        max=len(sweep.thresholds) - 1,
        step=1,
        value=start,
        autocomplete="off",
        aria_valuetext=f"{sweep.thresholds[start]:.3f}",
    )
    shown = el(
        "output", f"{sweep.thresholds[start]:.3f}", id="threshold-value", for_="threshold-slider"
    )
    back = el("button", f"Back to {report.threshold:.3f}", type="button", id="threshold-reset")
    top = el(
        "div",
        el("label", "Threshold", for_="threshold-slider"),
        shown,
        back,
        class_="slider-head needs-script",
    )
    about = (
        f"The scores above are at {report.threshold:.3f}"
        + (f" ({method})" if method else "")
        + ". Move the slider to see what other thresholds score on these images. It is to look "
        "at, not to choose from: a threshold chosen on the images that judge it flatters."
    )
    return el(
        "div",
        el("p", about, class_="aside"),
        top,
        el("div", slider, class_="needs-script"),
        el("dl", *outputs, class_="readout"),
        class_="thresholds",
    )


def draw_rules(report: Report, method: str) -> Html:
    """Draw the rules that the figures follow: a term and a sentence each."""
    drawn = "whole groups" if report.drawn == "group" else "images"
    items = [
        ("Threshold", f"{report.threshold:.4g}" + (f", {method}" if method else "") + "."),
        (
            "Border class",
            f"counts as {report.border}."
            if report.border in ("foreground", "background")
            else "is ignored."
            if report.border == "ignore"
            else "there is none.",
        ),
        (
            "Intervals",
            f"95%, percentile bootstrap that draws {drawn}: where a figure would mostly lie with "
            "other images of the same kind. They don't tell how another training would turn out."
            if report.intervals
            else "none: they were not asked for.",
        ),
        (
            "Mean and pooled",
            "Mean: the score of each image, averaged, so that every image weighs the same. "
            "Pooled: the score of all pixels together, so that large objects weigh more.",
        ),
        (
            "Sizes",
            "Original: the answer is brought back to the image's own pixels. Model: "
            "image and truth are brought to the model's input, as training counts.",
        ),
    ]
    for note in report.notes:
        term, colon, text = note.partition(": ")
        is_term = bool(colon) and len(term) <= 24
        items.append((term, text) if is_term else ("Note", note))
    return el("dl", *(el("div", el("dt", a), el("dd", b)) for a, b in items), class_="rules")


def draw_facts(facts: Sequence[tuple[str, str]]) -> Html:
    """Draw labels and texts."""
    return el("dl", *(el("div", el("dt", a), el("dd", b)) for a, b in facts), class_="rules facts")


def scroller(table: Html, label: str) -> Html:
    """Let a wide table scroll by itself, by keyboard too, so that the page never does."""
    return el("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)
