"""The table of slices: parts of the data, each with its mean Dice on one scale."""

from collections.abc import Sequence

from binseg.report.page.axes import Axis
from binseg.report.page.markup import Html, el
from binseg.report.page.sections import scroller, write_range
from binseg.types import Figure, Slice

__all__ = ["draw_slices"]


def draw_slices(slices: Sequence[Slice]) -> Html:
    """Draw a table of parts, with dots and whiskers on one scale."""
    # What a handful of images scored must not squeeze the rest.
    large = [one for one in slices if not one.is_small] or slices
    x = Axis.around([*(end for one in large for end in _ends(one.dice)), 1.0], "Dice")
    bodies = []
    for kind in dict.fromkeys(one.by for one in slices):
        rows = [el("tr", el("th", kind, colspan=3, scope="rowgroup"), class_="kind")]
        rows += [_slice_row(one, x) for one in slices if one.by == kind]
        bodies.append(el("tbody", *rows))
    head = el(
        "thead",
        el(
            "tr",
            el("th", "part", scope="col"),
            el("th", "mean Dice", scope="col", class_="num"),
            el("th", _scale(x), scope="col", class_="whiskers"),
        ),
    )
    return scroller(el("table", head, *bodies, class_="slices"), "Slices")


def _ends(figure: Figure) -> tuple[float, ...]:
    found = figure.interval
    return (figure.value,) if found is None else (figure.value, found.low, found.high)


def _scale(x: Axis) -> Html:
    ticks = [
        el(
            "text",
            text,
            class_="tick mid odd" if place % 2 else "tick mid",
            x=f"{100 * x.share(value):.2f}%",
            y="12",
        )
        for place, (value, text) in enumerate(x.ticks)
    ]
    said = f"Dice from {x.low:g} to {x.high:g}"
    return el("svg", *ticks, class_="whisker", role="img", aria_label=said)


def _slice_row(one: Slice, x: Axis) -> Html:
    marks = [
        el("line", class_="grid", x1=at, x2=at, y1="0", y2="100%")
        for at in (f"{100 * x.share(value):.2f}%" for value, _ in x.ticks)
    ]
    found = one.dice.interval
    if found is not None and found.high > x.low:
        low, high = (f"{100 * x.share(max(x.low, end)):.2f}%" for end in (found.low, found.high))
        marks.append(el("line", class_="reach", x1=low, x2=high, y1="50%", y2="50%"))
    if one.dice.value >= x.low:
        at = f"{100 * x.share(one.dice.value):.2f}%"
        marks.append(el("circle", class_="dot a", cx=at, cy="50%", r="4.5"))
    else:
        marks.append(el("text", "\u2190", class_="tick", x="0", y="50%", dx="10", dy=".35em"))
    about = f"{one.num_images:,} image" + ("s" if one.num_images > 1 else "")
    few = ", too few to tell" if one.is_small else ""
    return el(
        "tr",
        el("th", el("bdi", one.value or "no value"), el("small", about + few), scope="row"),
        el("td", f"{one.dice.value:.4f}", write_range(found), class_="num stack"),
        el("td", el("svg", *marks, class_="whisker", aria_hidden="true"), class_="whiskers"),
        class_="small" if one.is_small else None,
    )
