"""Charts as inline SVG that keep their text size at any width, without a script.

The outer SVG has no viewBox: lines, dots and text stand at percentages. Curves, which can't, are
drawn in an inner one that is stretched to the same area.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from binseg.report.page.markup import Html, el, join

__all__ = ["Axis", "bars", "chart", "curve", "dot", "legend", "upright"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale: the place of each value, and those that are written beside it."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str

    @classmethod
    def unit(cls, title: str) -> "Axis":
        """Run from 0 to 1, as all scores and probabilities do."""
        return cls(
            low=0, high=1, title=title, ticks=tuple((at / 5, f"{at / 5:g}") for at in range(6))
        )

    @classmethod
    def around(cls, values: Iterable[float], title: str, *, whole: bool = False) -> "Axis":
        """Put round numbers around all values.

        Args:
            values: what must have its place; none of them gives 0 to 1.
            title: what they are.
            whole: write no fractions.
        """
        kept = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(kept), max(kept)
        step = _round_step((high - low) / 4 or abs(high) / 4 or 1.0)
        if whole:
            step = max(1.0, round(step))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        ticks = tuple((at * step, f"{at * step:.6g}") for at in range(first, last + 1))
        return cls(low=first * step, high=last * step, ticks=ticks, title=title)

    def share(self, value: float) -> float:
        """The place of a value on the axis, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def _round_step(step: float) -> float:
    """Find the next number of the kind 1, 2, 5, 10, 20 ..."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def chart(
    *content: Html,
    label: str,
    x: Axis,
    y: Axis,
    overlay: Sequence[Html] = (),
    height: str = "",
) -> Html:
    """Draw axes around curves.

    Args:
        content: curves and bars, in the stretched area.
        label: what the chart says, for those who can't see it.
        x: the axis to the right.
        y: the axis upwards.
        overlay: lines, dots and texts that stand at percentages.
        height: "low" for a flat chart.
    """
    grid = []
    for value, text in y.ticks:
        at = _percent(1 - y.share(value))
        grid.append(el("line", class_="grid", x1="0", x2="100%", y1=at, y2=at))
        grid.append(el("text", text, class_="tick", x="0", y=at, dx="-8", dy=".32em"))
    for value, text in x.ticks:
        at = _percent(x.share(value))
        grid.append(el("text", text, class_="tick mid", x=at, y="100%", dy="18"))
    inner = Html(
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">'
        f"{join(content)}</svg>"
    )
    base = el("line", class_="base", x1="0", x2="100%", y1="100%", y2="100%")
    drawing = el(
        "svg",
        *grid,
        inner,
        base,
        *overlay,
        class_=f"axes {height}".strip(),
        role="img",
        aria_label=label,
    )
    titles = (el("p", y.title, class_="ytitle"), el("p", x.title, class_="xtitle"))
    return el("div", titles[0] if y.title else None, drawing, titles[1] if x.title else None,
              class_="plot")  # fmt: skip


def curve(
    xs: Sequence[float], ys: Sequence[float], *, x: Axis, y: Axis, tone: str, id: str | None = None
) -> Html:
    """Draw a line through points, interrupted where a value is missing (nan).

    `x` and `y` are the scales of `xs` and `ys`; `tone` is the class of its colour and dashes.
    """
    path, pen_down = [], False
    for across, up in zip(xs, ys, strict=True):
        if not (math.isfinite(across) and math.isfinite(up)):
            pen_down = False
            continue
        point = f"{100 * x.share(across):.2f} {100 * (1 - y.share(up)):.2f}"
        path.append(("L" if pen_down else "M") + point)
        pen_down = True
    return el("path", d="".join(path), class_=f"line {tone}", id=id)


def bars(
    edges: Sequence[tuple[float, float]],
    heights: Sequence[float],
    *,
    x: Axis,
    y: Axis,
    tones: Sequence[str],
    titles: Sequence[str],
) -> list[Html]:
    """Draw upright bars from the left and right ends and the heights of all.

    `titles` are shown when a bar is pointed at.
    """
    drawn = []
    for (left, right), height, tone, title in zip(edges, heights, tones, titles, strict=True):
        width = x.share(right) - x.share(left)
        drawn.append(
            el(
                "rect",
                el("title", title),
                class_=f"bar {tone}",
                x=_percent(x.share(left) + 0.06 * width),
                width=_percent(0.88 * width),
                y=_percent(1 - y.share(height)),
                height=_percent(y.share(height)),
            )
        )
    return drawn


def upright(value: float, *, x: Axis, tone: str, id: str | None = None) -> Html:
    """Draw a line from bottom to top at a value of the scale `x`."""
    at = _percent(x.share(value))
    return el("line", class_=f"upright {tone}", x1=at, x2=at, y1="0", y2="100%", id=id)


def dot(
    across: float, up: float, *, x: Axis, y: Axis, tone: str, title: str = "", id: str | None = None
) -> Html:
    """Draw a dot at a point."""
    return el(
        "circle",
        el("title", title) if title else None,
        class_=f"dot {tone}",
        cx=_percent(x.share(across)),
        cy=_percent(1 - y.share(up)),
        r="4.5",
        id=id,
    )


def legend(*entries: tuple[str, str]) -> Html:
    """Explain lines: tone and name of each."""
    items = []
    for tone, name in entries:
        key = Html(
            '<svg class="key" aria-hidden="true" viewBox="0 0 24 8"><path d="M0 4L24 4" '
            f'class="line {tone}"></path></svg>'
        )
        items.append(el("li", key, name))
    return el("ul", *items, class_="legend")


def _percent(share: float) -> str:
    return f"{100 * share:.3f}%"
