"""Charts of the page: histogram, threshold sweep, precision and recall, reliability, training."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from binseg.report.page.markup import Html, el, join
from binseg.report.page.page_parts import readouts
from binseg.report.page.svg import Axis, Chart, legend
from binseg.report.plots import NUM_BINS, POOR, best_epoch
from binseg.types import Calibration, Sweep


def dice_chart(scores: Sequence[float]) -> Html:
    """Draw how many images have which Dice, with mean and median."""
    counts, edges = np.histogram(np.asarray(scores), bins=NUM_BINS, range=(0.0, 1.0))
    heights, ends = counts.tolist(), edges.tolist()
    chart = Chart(Axis.unit("Dice of an image"), Axis.around([0, *heights], "images", whole=True))
    for low, high, height in zip(ends, ends[1:], heights, strict=False):
        tone = "poor" if high <= POOR + 1e-9 else "good"
        title = f"{low:.2f} to {high:.2f}: {_images(height)}"
        chart.bar(low, high, height, tone=tone, title=title)
    mean, median = float(np.mean(scores)), float(np.median(scores))
    chart.upright(mean, tone="mean")
    chart.upright(median, tone="median")
    num_poor = sum(score < POOR for score in scores)
    below = f"below {POOR:g}: {_images(num_poor)} ({num_poor / len(scores):.1%})"
    said = (
        f"Histogram of Dice over {_images(len(scores))}: mean {mean:.4f}, median {median:.4f}, "
        f"{num_poor} below {POOR:g}."
    )
    entries = (("mean", f"mean {mean:.4f}"), ("median", f"median {median:.4f}"), ("poor", below))
    return join((chart.html(said), legend(*entries)))


def nearest_threshold(sweep: Sweep, threshold: float) -> int:
    """Find the swept threshold next to the one that was used."""
    return min(range(len(sweep.thresholds)), key=lambda at: abs(sweep.thresholds[at] - threshold))


def sweep_chart(sweep: Sweep, threshold: float) -> Html:
    """Draw what each threshold scores; the script moves the line with the id `sweep-line`."""
    chart = Chart(Axis.unit("threshold"), Axis.unit("score"))
    shown = [(name, label, tone) for name, label, tone in readouts(sweep) if tone]
    for name, _, tone in shown:
        chart.curve(sweep.thresholds, sweep.curves[name], tone=tone)
    chart.upright(threshold, tone="used")
    chart.upright(threshold, tone="cursor", id="sweep-line")
    mean_dice = sweep.curves["mean_dice"]
    best = int(np.argmax(mean_dice))
    said = (
        f"Scores by threshold. Mean Dice is highest, {mean_dice[best]:.4f}, at "
        f"{sweep.thresholds[best]:.3f}; the model uses {threshold:.3f}."
    )
    return join((chart.html(said), legend(*((tone, label) for _, label, tone in shown))))


def precision_recall_chart(sweep: Sweep, threshold: float) -> Html:
    """Draw precision over recall, with the model's own point; the script moves `pr-point`."""
    recalls, precisions = sweep.curves["recall"], sweep.curves["precision"]
    at = nearest_threshold(sweep, threshold)
    recall, precision = recalls[at], precisions[at]
    chart = Chart(Axis.unit("recall"), Axis.unit("precision"))
    # Where nothing is predicted any more, precision is no figure.
    points = [(r, p) for r, p in zip(recalls, precisions, strict=True) if r > 0]
    chart.curve([r for r, _ in points], [p for _, p in points], tone="a")
    chart.dot(recall, precision, tone="used", title=f"threshold {threshold:.3f}")
    chart.dot(recall, precision, tone="cursor", id="pr-point")
    return chart.html(
        f"Precision over recall of the pooled pixels, average precision "
        f"{sweep.average_precision:.4f}. The model's threshold gives precision {precision:.4f} "
        f"and recall {recall:.4f}."
    )


def reliability_chart(calibration: Calibration) -> Html:
    """Draw the share of foreground over the probability, and below it the number of pixels."""
    bins = [one for one in calibration.bins if one.num_pixels]
    chart = Chart(Axis.unit(""), Axis.unit("share that is foreground"))
    chart.curve([0, 1], [0, 1], tone="ideal")
    chart.curve([one.mean_probability for one in bins], [one.share for one in bins], tone="a")
    for one in bins:
        told = f"said {one.mean_probability:.3f}, is {one.share:.3f}: {one.num_pixels:,} pixels"
        chart.dot(one.mean_probability, one.share, tone="a", title=told)
    said = "; ".join(
        f"where {one.mean_probability:.2f} was said, {one.share:.2f} is so" for one in bins
    )
    lines = legend(("a", "model"), ("ideal", "ideal"))
    return join((chart.html(f"Reliability: {said}"), _pixels_chart(calibration), lines))


def _pixels_chart(calibration: Calibration) -> Html:
    """Draw the number of pixels in each bin, by powers of ten: the ends hold nearly all."""
    powers = [math.log10(one.num_pixels) if one.num_pixels else 0.0 for one in calibration.bins]
    top = max(1, math.ceil(max(powers)))
    ticks = tuple((at, _power(at)) for at in sorted({0, top // 2, top}))
    y = Axis(low=0, high=top, ticks=ticks, title="pixels")
    chart = Chart(Axis.unit("probability that was said"), y, height="low")
    for one, power in zip(calibration.bins, powers, strict=True):
        title = f"{one.low:.2f} to {one.high:.2f}: {one.num_pixels:,} pixels"
        chart.bar(one.low, one.high, power, tone="good", title=title)
    return chart.html("Number of pixels by probability, in powers of ten.")


def _power(at: int) -> str:
    return "1" if at == 0 else f"{10**at:,}" if at < 4 else f"1e{at}"


def training_charts(rows: Sequence[Mapping[str, float | str | None]], *, by_loss: bool) -> Html:
    """Draw loss and Dice by epoch, the best epoch marked.

    Args:
        rows: the lines of metrics.csv, at least one.
        by_loss: True where validation loss, not Dice, chose the best epoch.
    """
    epochs = [_number(row.get("epoch")) for row in rows]
    x = _epoch_axis(epochs)
    best = best_epoch(rows, monitor="loss" if by_loss else "dice")
    panels = []
    for name, title in (("loss", "Loss"), ("dice", "Dice")):
        train = [_number(row.get(f"train_{name}")) for row in rows]
        val = [_number(row.get(f"val_{name}")) for row in rows]
        chart = Chart(x, Axis.around([*train, *val], title))
        if best is not None:
            chart.upright(epochs[best], tone="used")
        for tone, values in (("a", train), ("v", val)):
            chart.curve(epochs, values, tone=tone)
            for epoch, value in zip(epochs, values, strict=True):
                if len(rows) <= 12 and math.isfinite(epoch) and math.isfinite(value):
                    chart.dot(epoch, value, tone=tone, title=f"epoch {epoch:g}: {value:.4f}")
        said = f"{title} of training and validation by epoch."
        if best is not None and math.isfinite(val[best]):
            said += f" Validation has {val[best]:.4f} at epoch {epochs[best]:g}."
        panels.append(chart.html(said))
    entries = [("a", "training"), ("v", "validation")]
    if best is not None:
        by = "loss" if by_loss else "Dice"
        entries.append(("used", f"best epoch by validation {by}: {epochs[best]:g}"))
    return join((el("div", *panels, class_="pair"), legend(*entries)))


def _epoch_axis(epochs: Sequence[float]) -> Axis:
    """Span the first epoch to the last; a single one stands in the middle."""
    first, last = min(epochs), max(epochs)
    if first == last:
        return Axis(low=first - 1, high=last + 1, ticks=((first, f"{first:g}"),), title="epoch")
    rounded = Axis.around(epochs, "epoch", whole=True)
    inside = {first, last, *(at for at, _ in rounded.ticks if first < at < last)}
    step = rounded.ticks[1][0] - rounded.ticks[0][0]
    crowd = {at for at in inside - {first, last} if min(at - first, last - at) < step / 2}
    ticks = tuple((at, f"{at:g}") for at in sorted(inside - crowd))
    return Axis(low=first, high=last, ticks=ticks, title="epoch")


def _number(value: float | str | None) -> float:
    return float(value) if value not in (None, "") else math.nan


def _images(num: int) -> str:
    return f"{num:,} image" if num == 1 else f"{num:,} images"
