"""Charts as inline SVG that keep their text size at any width, without a script.

The outer SVG has no viewBox: lines, dots and text stand at percentages. Curves, which can't, are
drawn in an inner one that is stretched to the same area.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from binseg.report.page.markup import Html, el, join


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


class Chart:
    """Axes to draw curves, bars, lines and dots between; `html` gives the whole."""

    def __init__(self, x: Axis, y: Axis, *, height: str = "") -> None:
        self._x, self._y, self._height = x, y, height
        self._curves: list[Html] = []
        self._marks: list[Html] = []

    def curve(self, xs: Iterable[float], ys: Iterable[float], *, tone: str) -> None:
        """Draw a line through points, interrupted where a value is missing (nan).

        Args:
            xs: to the right.
            ys: upwards.
            tone: class of its colour and dashes.
        """
        path, pen_down = [], False
        for across, up in zip(xs, ys, strict=True):
            if not (math.isfinite(across) and math.isfinite(up)):
                pen_down = False
                continue
            point = f"{100 * self._x.share(across):.2f} {100 * (1 - self._y.share(up)):.2f}"
            path.append(("L" if pen_down else "M") + point)
            pen_down = True
        self._curves.append(el("path", d="".join(path), class_=f"line {tone}"))

    def bar(self, left: float, right: float, height: float, *, tone: str, title: str) -> None:
        """Draw an upright bar, whose title is shown when it is pointed at."""
        start, width = self._x.share(left), self._x.share(right) - self._x.share(left)
        self._marks.append(
            el(
                "rect",
                el("title", title),
                class_=f"bar {tone}",
                x=_percent(start + 0.06 * width),
                width=_percent(0.88 * width),
                y=_percent(1 - self._y.share(height)),
                height=_percent(self._y.share(height)),
            )
        )

    def upright(self, value: float, *, tone: str, id: str | None = None) -> None:
        """Draw a line from bottom to top."""
        at = _percent(self._x.share(value))
        self._marks.append(
            el("line", class_=f"upright {tone}", x1=at, x2=at, y1="0", y2="100%", id=id)
        )

    def dot(
        self, across: float, up: float, *, tone: str, title: str = "", id: str | None = None
    ) -> None:
        """Draw a dot at a point."""
        told, tones = el("title", title) if title else None, f"dot {tone}"
        cx, cy = _percent(self._x.share(across)), _percent(1 - self._y.share(up))
        self._marks.append(el("circle", told, class_=tones, cx=cx, cy=cy, r="4.5", id=id))

    def html(self, label: str) -> Html:
        """Put axes around it all; the label tells it to those who can't see it."""
        grid = []
        for value, text in self._y.ticks:
            at = _percent(1 - self._y.share(value))
            grid.append(el("line", class_="grid", x1="0", x2="100%", y1=at, y2=at))
            grid.append(el("text", text, class_="tick", x="0", y=at, dx="-8", dy=".32em"))
        for value, text in self._x.ticks:
            at = _percent(self._x.share(value))
            grid.append(el("text", text, class_="tick mid", x=at, y="100%", dy="18"))
        inner = Html(
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">'
            f"{join(self._curves)}</svg>"
        )
        base = el("line", class_="base", x1="0", x2="100%", y1="100%", y2="100%")
        class_ = f"axes {self._height}".strip()
        drawing = el(
            "svg", *grid, inner, base, *self._marks, class_=class_, role="img", aria_label=label
        )
        above = el("p", self._y.title, class_="ytitle") if self._y.title else None
        below = el("p", self._x.title, class_="xtitle") if self._x.title else None
        return el("div", above, drawing, below, class_="plot")


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
