"""The page's text and tables: headline, averages, outlines, objects, slices, rules, facts."""

from collections.abc import Mapping, Sequence

from binseg.metrics.registry import METRICS, PixelMetric, metrics_of
from binseg.report.page.markup import Html, el, join
from binseg.report.page.svg import Axis
from binseg.types import Figure, Interval, Report, Size, Slice, Sweep

_AVERAGES = (("mean", "mean over images"), ("pooled", "pooled pixels"))
_DIGITS_OF_MM = 4
"""A tenth of a micrometre."""
TONES = "abcde"
"""Classes of lines in the style sheet."""


def _range(found: Interval | None, digits: int = 3) -> Html | None:
    """Write an interval, if there is one, in a way that stays on one line."""
    if found is None:
        return None
    return el("span", f"{found.low:.{digits}f}\u2013{found.high:.{digits}f}", class_="range")


def _average(report: Report, average: str, size: Size, score: str) -> Figure:
    table = report.mean if average == "mean" else report.pooled
    found = report.intervals.get(average, {}).get(size, {}).get(score)
    return Figure(value=table[size][score], interval=found)


def headline(report: Report) -> Html:
    """Show the figures that are read first."""
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
    trust = el("p", told, class_="trust")
    cards.append(_card("Images", f"{len(report.images):,}", trust, failures))
    return el("div", *cards, class_="hero")


def _outline_hero(report: Report) -> Html:
    boundary, hd95, assd = (report.outline[name] for name in ("boundary_f1", "hd95", "assd"))
    digits = 1 if report.unit == "px" else _DIGITS_OF_MM
    rows = [
        ("HD95", f"{hd95.value:.{digits}f} {report.unit}", _range(hd95.interval, digits)),
        ("mean distance", f"{assd.value:.{digits}f} {report.unit}", None),
    ]
    title = f"Boundary F1 within {report.tolerance:g} {report.unit}"
    return _card(title, f"{boundary.value:.4f}", _trust(boundary), rows)


def _hero(report: Report, score: str) -> Html:
    mean, pooled = (_average(report, name, "original", score) for name in ("mean", "pooled"))
    rows = [("pooled", f"{pooled.value:.4f}", _range(pooled.interval))]
    if "model" in report.mean:
        # Their intervals are in the table below.
        rows.append(("mean at model size", f"{report.mean['model'][score]:.4f}", None))
        rows.append(("pooled at model size", f"{report.pooled['model'][score]:.4f}", None))
    return _card(f"Mean {METRICS[score].label}", f"{mean.value:.4f}", _trust(mean), rows)


def _trust(figure: Figure) -> Html:
    """Tell the interval, and draw the score on the way from 0 to 1."""
    found = figure.interval
    size = {"y": "3", "height": "8", "rx": "4"}
    marks = [
        el("rect", class_="track", x="0", width="100%", **size),
        el("rect", class_="filled", x="0", width=f"{100 * figure.value:.2f}%", **size),
    ]
    told = el("p", "one image or group tells no interval", class_="trust")
    if found is not None:
        told = el("p", "95%: ", _range(found), class_="trust")
        width = f"{max(0.5, 100 * (found.high - found.low)):.2f}%"
        marks.append(
            el("rect", class_="band", x=f"{100 * found.low:.2f}%", width=width, y="0",
               height="14", rx="2")
        )  # fmt: skip
    return join((told, el("svg", *marks, class_="gauge", aria_hidden="true")))


def _card(
    title: str, value: str, trust: Html, rows: Sequence[tuple[str, str, Html | None]]
) -> Html:
    lines = [
        el("div", el("dt", label), el("dd", figure, " " if about else None, about))
        for label, figure, about in rows
    ]
    return el("section", el("h2", title), el("p", value, class_="value"), trust, el("dl", *lines))


def averages_table(report: Report) -> Html:
    """Show all averages at all sizes: a row a score, a column an average."""
    columns: list[tuple[str, str, Size]] = [
        (average, label, size) for average, label in _AVERAGES for size in report.mean
    ]
    head = [
        el("th", label, el("small", f"{size} size"), scope="col", class_="num")
        for _, label, size in columns
    ]
    rows = []
    for score in report.mean["original"]:
        figures = [_average(report, average, size, score) for average, _, size in columns]
        cells = [
            el("td", f"{one.value:.4f}", _range(one.interval), class_="num stack")
            for one in figures
        ]
        rows.append(el("tr", _row_head(score), *cells))
    table = el(
        "table",
        el("thead", el("tr", el("th", "score", scope="col"), *head)),
        el("tbody", *rows),
        class_="averages",
    )
    return scroller(table, "Averages of all scores")


def _row_head(score: str) -> Html:
    metric = METRICS[score]
    return el("th", metric.label, el("small", metric.meaning), scope="row")


def _figures_table(figures: Mapping[str, Figure], label: str, unit: str) -> Html:
    rows = []
    for score, figure in figures.items():
        text, digits = f"{figure.value:.4f}", 3
        if METRICS[score].is_distance:
            digits = 2 if unit == "px" else _DIGITS_OF_MM
            text = f"{figure.value:.{digits}f} {unit}"
        value = el("td", text, _range(figure.interval, digits), class_="num stack")
        rows.append(el("tr", _row_head(score), value))
    return el("table", el("caption", label, class_="unseen"), el("tbody", *rows), class_="figures")


def outlines_table(report: Report) -> Html:
    """Show how near outlines are."""
    label = "Outline scores, mean over images, original size"
    about = f"Mean over images, original size; tolerance {report.tolerance:g} {report.unit}."
    return join(
        (el("p", about, class_="aside"), _figures_table(report.outline, label, report.unit))
    )


def objects_table(report: Report) -> Html:
    """Show how many objects were found, and the scores of the pooled objects."""
    counted = [one.objects for one in report.images if one.objects is not None]
    num_true, num_predicted, num_matched = (
        sum(getattr(one, name) for one in counted)
        for name in ("num_true", "num_predicted", "num_matched")
    )
    about = (
        f"{num_matched:,} of {num_true:,} true objects found, {num_predicted:,} predicted; "
        "original size, objects of all images pooled."
    )
    table = _figures_table(report.objects, "Object scores", report.unit)
    return join((el("p", about, class_="aside"), table))


def calibration_figures(report: Report) -> Html:
    """Show the scores of probabilities in a line."""
    assert report.calibration is not None
    items = [
        el(
            "div",
            el("dt", METRICS[name].label),
            el("dd", f"{figure.value:.4f}", " ", _range(figure.interval, 4)),
        )
        for name, figure in report.calibration.scores.items()
    ]
    return el("dl", *items, class_="inline")


def readouts(sweep: Sweep) -> list[tuple[str, str, str]]:
    """List the curves of a sweep that are shown: name, label, and the tone of those that are drawn.

    Pooled Dice is read beside the slider only, since its curve would hide that of the mean.
    """
    shown = [("mean_dice", "mean Dice")]
    shown += [
        (metric.name, f"pooled {metric.label}")
        for metric in metrics_of(PixelMetric)
        if metric.is_main and metric.name in sweep.curves
    ]
    tones = iter(TONES * len(shown))
    return [(name, label, "" if name == "dice" else next(tones)) for name, label in shown]


def threshold_slider(report: Report, method: str, start: int) -> Html:
    """Make the slider; the script fills in the figures when it is moved."""
    assert report.sweep is not None
    sweep = report.sweep
    outputs = [
        el(
            "div",
            el("dt", label, class_=f"tone {tone}".strip()),
            el(
                "dd",
                el("span", f"{sweep.curves[name][start]:.4f}", data_score=name),
                el("span", "as used", class_="change", data_change=name),
            ),
        )
        for name, label, tone in readouts(sweep)
    ]
    told, id_ = f"{sweep.thresholds[start]:.3f}", "threshold-slider"
    slider = el("input", type="range", id=id_, min=0, max=len(sweep.thresholds) - 1, step=1,
                value=start, autocomplete="off", aria_valuetext=told)  # fmt: skip
    top = el(
        "div",
        el("label", "Threshold", for_=id_),
        el("output", told, id="threshold-value", for_=id_),
        el("button", f"Back to {report.threshold:.3f}", type="button", id="threshold-reset"),
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


def slices_table(slices: Sequence[Slice]) -> Html:
    """Show parts of the data, with dots and whiskers on one scale."""
    # What a handful of images scored must not squeeze the rest.
    large = [one for one in slices if not one.is_small] or slices
    x = Axis.around([*(end for one in large for end in _ends(one.dice)), 1.0], "Dice")
    bodies = []
    for kind in dict.fromkeys(one.by for one in slices):
        rows = [el("tr", el("th", kind, colspan=3, scope="rowgroup"), class_="kind")]
        rows += [_slice_row(one, x) for one in slices if one.by == kind]
        bodies.append(el("tbody", *rows))
    ticks = [
        el("text", text, class_=f"tick mid{' odd' * (place % 2)}",
           x=f"{100 * x.share(value):.2f}%", y="12")
        for place, (value, text) in enumerate(x.ticks)
    ]  # fmt: skip
    said = f"Dice from {x.low:g} to {x.high:g}"
    scale = el("svg", *ticks, class_="whisker", role="img", aria_label=said)
    head = el(
        "tr",
        el("th", "part", scope="col"),
        el("th", "mean Dice", scope="col", class_="num"),
        el("th", scale, scope="col", class_="whiskers"),
    )
    return scroller(el("table", el("thead", head), *bodies, class_="slices"), "Slices")


def _ends(figure: Figure) -> tuple[float, ...]:
    found = figure.interval
    return (figure.value,) if found is None else (figure.value, found.low, found.high)


def _slice_row(one: Slice, x: Axis) -> Html:
    def place(value: float) -> str:
        return f"{100 * x.share(value):.2f}%"

    marks = [
        el("line", class_="grid", x1=place(value), x2=place(value), y1="0", y2="100%")
        for value, _ in x.ticks
    ]
    found = one.dice.interval
    if found is not None and found.high > x.low:
        low, high = place(max(x.low, found.low)), place(max(x.low, found.high))
        marks.append(el("line", class_="reach", x1=low, x2=high, y1="50%", y2="50%"))
    if one.dice.value >= x.low:
        marks.append(el("circle", class_="dot a", cx=place(one.dice.value), cy="50%", r="4.5"))
    else:
        marks.append(el("text", "\u2190", class_="tick", x="0", y="50%", dx="10", dy=".35em"))
    about = f"{one.num_images:,} image" + ("s" if one.num_images > 1 else "")
    few = ", too few to tell" if one.is_small else ""
    return el(
        "tr",
        el("th", el("bdi", one.value or "no value"), el("small", about + few), scope="row"),
        el("td", f"{one.dice.value:.4f}", _range(found), class_="num stack"),
        el("td", el("svg", *marks, class_="whisker", aria_hidden="true"), class_="whiskers"),
        class_="small" if one.is_small else None,
    )


_BORDERS = {
    "foreground": "counts as foreground.",
    "background": "counts as background.",
    "ignore": "is ignored.",
}


def rules_list(report: Report, method: str) -> Html:
    """Tell the rules that the figures follow: a term and a sentence each."""
    units = "whole groups" if report.resampled == "group" else "images"
    items = [
        ("Threshold", f"{report.threshold:.4g}" + (f", {method}" if method else "") + "."),
        ("Border class", _BORDERS.get(report.border, "there is none.")),
        (
            "Intervals",
            f"95%, percentile bootstrap that resamples {units}: where a figure would mostly lie "
            "with other images of the same kind. They don't tell how another training would turn "
            "out."
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
            "Original: the probability is resized back to the image's own pixels. Model: "
            "image and truth are brought to the model's input, as training counts.",
        ),
    ]
    for note in report.notes:
        term, colon, text = note.partition(": ")
        is_term = bool(colon) and len(term) <= 24
        items.append((term, text) if is_term else ("Note", note))
    return facts_list(items, class_="rules")


def facts_list(facts: Sequence[tuple[str, str]], class_: str = "rules facts") -> Html:
    """List labels and texts."""
    return el("dl", *(el("div", el("dt", a), el("dd", b)) for a, b in facts), class_=class_)


def scroller(table: Html, label: str) -> Html:
    """Let a wide table scroll by itself, by keyboard too, so that the page never does."""
    return el("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)
