"""Charts of the page as data: scales, lines, bars and dots, which `assets/charts.html` draws.

They are inline SVG that keeps its text size at any width, without a script.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from binseg.metrics.registry import PixelMetric, metrics_of
from binseg.report.plots import NUM_BINS, POOR, Row, best_epoch, column
from binseg.types import Calibration, Figure, Slice, Sweep

_TONES = "abcde"  # classes of lines in the style sheet


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
        ticks = tuple((at / 5, f"{at / 5:g}") for at in range(6))
        return cls(low=0, high=1, title=title, ticks=ticks)

    @classmethod
    def around(cls, values: Iterable[float], title: str, *, whole: bool = False) -> "Axis":
        """Put round numbers around all values; none gives 0 to 1; `whole` writes no fractions."""
        kept = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(kept), max(kept)
        rough = (high - low) / 4 or abs(high) / 4 or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        if whole:
            step = max(1.0, round(step))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        ticks = tuple((at * step, f"{at * step:.6g}") for at in range(first, last + 1))
        return cls(low=first * step, high=last * step, ticks=ticks, title=title)

    def share(self, value: float) -> float:
        """The place of a value on the axis, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def right(self, value: float, digits: int = 3) -> str:
        """The place of a value from the left, in percent."""
        return f"{100 * self.share(value):.{digits}f}%"

    def down(self, value: float) -> str:
        """The place of a value from the top, in percent."""
        return f"{100 * (1 - self.share(value)):.3f}%"


class Bar(NamedTuple):
    """A bar from `low` to `high`, whose title is shown when it is pointed at."""

    low: float
    high: float
    height: float
    tone: str
    title: str


class Dot(NamedTuple):
    """A dot at a point; the script finds it by its id."""

    x: float
    y: float
    tone: str
    title: str = ""
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Two axes and what stands between them; a tone is a class of the style sheet."""

    label: str  # a description for those who can't see it
    x: Axis
    y: Axis
    is_low: bool = False
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
    """Tone, xs and ys; a missing value (nan) interrupts the line."""
    bars: Sequence[Bar] = ()
    uprights: Sequence[tuple[str, float, str]] = ()  # lines from bottom to top: tone, x and id
    dots: Sequence[Dot] = ()
    legend: Sequence[tuple[str, str]] = ()  # tone and name of each line

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Give the points of a curve, in percent, in SVG's words."""
        path, letter = "", "M"
        for x, y in zip(xs, ys, strict=True):
            is_there = math.isfinite(x) and math.isfinite(y)
            if is_there:
                path += f"{letter}{100 * self.x.share(x):.2f} {100 * (1 - self.y.share(y)):.2f}"
            letter = "L" if is_there else "M"
        return path


def dice_chart(scores: Sequence[float]) -> Chart:
    """Plot how many images have which Dice, with mean and median."""
    counts, edges = np.histogram(np.asarray(scores), bins=NUM_BINS, range=(0.0, 1.0))
    heights, ends = counts.tolist(), edges.tolist()
    mean, median = float(np.mean(scores)), float(np.median(scores))
    num_poor = sum(score < POOR for score in scores)
    below = f"below {POOR:g}: {_images(num_poor)} ({num_poor / len(scores):.1%})"
    return Chart(
        label=f"Histogram of Dice over {_images(len(scores))}: mean {mean:.4f}, median "
        f"{median:.4f}, {num_poor} below {POOR:g}.",
        x=Axis.unit("Dice of an image"),
        y=Axis.around([0, *heights], "images", whole=True),
        bars=[
            Bar(low, high, height, "poor" if high <= POOR + 1e-9 else "good",
                f"{low:.2f} to {high:.2f}: {_images(height)}")
            for low, high, height in zip(ends, ends[1:], heights, strict=False)
        ],
        uprights=[("mean", mean, ""), ("median", median, "")],
        legend=[("mean", f"mean {mean:.4f}"), ("median", f"median {median:.4f}"), ("poor", below)],
    )  # fmt: skip


def readouts(sweep: Sweep) -> list[tuple[str, str, str]]:
    """List the curves of a sweep that are shown: name, label, and the tone of those with a line."""
    pooled = [x for x in metrics_of(PixelMetric) if x.is_main and x.name in sweep.curves]
    shown = [("mean_dice", "mean Dice"), *((x.name, f"pooled {x.label}") for x in pooled)]
    tones = iter(_TONES * len(shown))
    return [(name, label, "" if name == "dice" else next(tones)) for name, label in shown]


def nearest_threshold(sweep: Sweep, threshold: float) -> int:
    """Find the swept threshold next to the one that was used."""
    return min(range(len(sweep.thresholds)), key=lambda at: abs(sweep.thresholds[at] - threshold))


def sweep_chart(sweep: Sweep, threshold: float) -> Chart:
    """Plot what each threshold scores; the script moves the line with the id `sweep-line`."""
    shown = [(name, label, tone) for name, label, tone in readouts(sweep) if tone]
    mean_dice = sweep.curves["mean_dice"]
    best = int(np.argmax(mean_dice))
    return Chart(
        label=f"Scores by threshold. Mean Dice is highest, {mean_dice[best]:.4f}, at "
        f"{sweep.thresholds[best]:.3f}; the model uses {threshold:.3f}.",
        x=Axis.unit("threshold"),
        y=Axis.unit("score"),
        curves=[(tone, sweep.thresholds, sweep.curves[name]) for name, _, tone in shown],
        uprights=[("used", threshold, ""), ("cursor", threshold, "sweep-line")],
        legend=[(tone, label) for _, label, tone in shown],
    )


def precision_recall_chart(sweep: Sweep, threshold: float) -> Chart:
    """Plot precision over recall, with the model's own point; the script moves `pr-point`."""
    recalls, precisions = sweep.curves["recall"], sweep.curves["precision"]
    at = nearest_threshold(sweep, threshold)
    recall, precision = recalls[at], precisions[at]
    # Where nothing is predicted any more, precision is no figure.
    points = [(r, p) for r, p in zip(recalls, precisions, strict=True) if r > 0]
    return Chart(
        label="Precision over recall of the pooled pixels, average precision "
        f"{sweep.average_precision:.4f}. The model's threshold gives precision {precision:.4f} "
        f"and recall {recall:.4f}.",
        x=Axis.unit("recall"),
        y=Axis.unit("precision"),
        curves=[("a", [r for r, _ in points], [p for _, p in points])],
        dots=[
            Dot(recall, precision, "used", title=f"threshold {threshold:.3f}"),
            Dot(recall, precision, "cursor", id="pr-point"),
        ],
    )


def reliability_charts(calibration: Calibration) -> tuple[Chart, Chart]:
    """Plot the share of foreground over the probability, and the number of pixels of each bin."""
    bins = [one for one in calibration.bins if one.num_pixels]
    reliability = Chart(
        label="Reliability: "
        + "; ".join(
            f"where {one.mean_probability:.2f} was said, {one.share:.2f} is so" for one in bins
        ),
        x=Axis.unit(""),
        y=Axis.unit("share that is foreground"),
        curves=[
            ("ideal", [0, 1], [0, 1]),
            ("a", [one.mean_probability for one in bins], [one.share for one in bins]),
        ],
        dots=[
            Dot(x := one.mean_probability, one.share, "a",
                f"said {x:.3f}, is {one.share:.3f}: {one.num_pixels:,} pixels")
            for one in bins
        ],
        legend=[("a", "model"), ("ideal", "ideal")],
    )  # fmt: skip
    # By powers of ten: the ends hold nearly all.
    powers = [math.log10(one.num_pixels) if one.num_pixels else 0.0 for one in calibration.bins]
    top = max(1, math.ceil(max(powers)))
    ticks = tuple((at, f"{10**at:,}" if at < 4 else f"1e{at}") for at in sorted({0, top // 2, top}))
    pixels = Chart(
        label="Number of pixels by probability, in powers of ten.",
        x=Axis.unit("probability that was said"),
        y=Axis(low=0, high=top, ticks=ticks, title="pixels"),
        is_low=True,
        bars=[
            Bar(one.low, one.high, power, "good",
                f"{one.low:.2f} to {one.high:.2f}: {one.num_pixels:,} pixels")
            for one, power in zip(calibration.bins, powers, strict=True)
        ],
    )  # fmt: skip
    return reliability, pixels


def training_charts(rows: Sequence[Row], *, by_loss: bool) -> list[Chart]:
    """Plot loss and Dice by epoch, with the best one by validation Dice, or by loss, marked."""
    epochs = column(rows, "epoch").tolist()
    best = best_epoch(rows, monitor="loss" if by_loss else "dice")
    legend = [("a", "training"), ("v", "validation")]
    if best is not None:
        by = "loss" if by_loss else "Dice"
        legend.append(("used", f"best epoch by validation {by}: {epochs[best]:g}"))
    charts = []
    for name, title in (("loss", "Loss"), ("dice", "Dice")):
        train, val = (column(rows, f"{part}_{name}").tolist() for part in ("train", "val"))
        label = f"{title} of training and validation by epoch."
        if best is not None and math.isfinite(val[best]):
            label += f" Validation has {val[best]:.4f} at epoch {epochs[best]:g}."
        curves = [("a", epochs, train), ("v", epochs, val)]
        charts.append(
            Chart(
                label=label,
                x=_epoch_axis(epochs),
                y=Axis.around([*train, *val], title),
                curves=curves,
                uprights=[] if best is None else [("used", epochs[best], "")],
                # Points for short runs: a line through a single epoch can't be seen.
                dots=[
                    Dot(epoch, value, tone, f"epoch {epoch:g}: {value:.4f}")
                    for tone, _, values in curves
                    for epoch, value in zip(epochs, values, strict=True)
                    if len(rows) <= 12 and math.isfinite(epoch) and math.isfinite(value)
                ],
                legend=legend,
            )
        )
    return charts


def _epoch_axis(epochs: Sequence[float]) -> Axis:
    first, last = min(epochs), max(epochs)
    if first == last:
        return Axis(low=first - 1, high=last + 1, ticks=((first, f"{first:g}"),), title="epoch")
    rounded = [at for at, _ in Axis.around(epochs, "epoch", whole=True).ticks]
    room = (rounded[1] - rounded[0]) / 2
    inside = [at for at in rounded if min(at - first, last - at) >= room]
    ticks = tuple((at, f"{at:g}") for at in sorted({first, *inside, last}))
    return Axis(low=first, high=last, ticks=ticks, title="epoch")


def slice_axis(slices: Sequence[Slice]) -> Axis:
    """Span all parts but small ones: what a handful of images scored must not squeeze the rest."""
    figures = [one.dice for one in slices if not one.is_small] or [one.dice for one in slices]
    return Axis.around([*(end for one in figures for end in _ends(one)), 1.0], "Dice")


def _ends(figure: Figure) -> tuple[float, ...]:
    found = figure.interval
    return (figure.value,) if found is None else (figure.value, found.low, found.high)


def _images(num: int) -> str:
    return f"{num:,} image" if num == 1 else f"{num:,} images"
