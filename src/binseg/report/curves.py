"""A training run in one image: loss, Dice and learning rate by epoch, the best epoch marked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float64

from binseg.report.figure import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    Colour,
    new_figure,
    save_figure,
    set_title,
    style_axes,
    unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["best_epoch", "draw_curves"]

Row = Mapping[str, float | str | None]


def draw_curves(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str = "Training",
    monitor: Literal["dice", "loss"] = "dice",
) -> None:
    """Draw loss, Dice and learning rate by epoch, and mark the best epoch in all three.

    Args:
        rows: the lines of metrics.csv: epoch, lr, train_loss, train_dice, val_loss, val_dice; a
            missing or empty figure leaves a gap.
        path: of the PNG.
        title: above the image.
        monitor: the validation figure that chose the best epoch.
    """
    assert rows, "at least one epoch"
    figure = new_figure(13, 4.2, purpose="drawing curves")
    set_title(figure, title)
    loss_axes, dice_axes, rate_axes = figure.subplots(1, 3)
    epochs_E = _column(rows, "epoch")
    best = best_epoch(rows, monitor=monitor)
    for axes, name, label in ((loss_axes, "loss", "Loss"), (dice_axes, "dice", "Dice")):
        validation_E = _column(rows, f"val_{name}")
        style_axes(axes, title=_head(label, validation_E, best), x="epoch")
        _line(axes, epochs_E, _column(rows, f"train_{name}"), BLUE)
        _line(axes, epochs_E, validation_E, VERMILLION)
        _mark_best(axes, epochs_E, validation_E, best)
    style_axes(rate_axes, title="Learning rate", x="epoch")
    _line(rate_axes, epochs_E, _column(rows, "lr"), INK)
    _mark_best(rate_axes, epochs_E, np.full(len(rows), np.nan), best)
    # One short label a tick, without a factor above the axis that would push the title up.
    rate_axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    for axes in (loss_axes, dice_axes, rate_axes):
        _epoch_ticks(axes, epochs_E)
    _add_legend(figure, None if best is None else epochs_E[best], monitor)
    save_figure(figure, path)


def best_epoch(rows: Sequence[Row], *, monitor: Literal["dice", "loss"] = "dice") -> int | None:
    """Find the row of the best validation figure, the earlier of two equals; None without any.

    >>> best_epoch([{"val_dice": 0.8}, {"val_dice": 0.9}, {"val_dice": 0.9}])
    1
    """
    values_E = _column(rows, f"val_{monitor}") * (1 if monitor == "dice" else -1)
    return None if np.isnan(values_E).all() else int(np.nanargmax(values_E))


def _column(rows: Sequence[Row], name: str) -> Float64[np.ndarray, " E"]:
    """One figure of every epoch; nan where it is absent or empty."""
    values = [row.get(name) for row in rows]
    return np.array([float(value) if value not in (None, "") else np.nan for value in values])


def _head(label: str, values_E: Float64[np.ndarray, " E"], best: int | None) -> str:
    """Title of a panel, with the validation figure of the best epoch."""
    if best is None or not np.isfinite(values_E[best]):
        return label
    return f"{label}: validation {values_E[best]:.4f} at the best epoch"


def _line(
    axes: "Axes",
    epochs_E: Float64[np.ndarray, " E"],
    values_E: Float64[np.ndarray, " E"],
    colour: Colour,
) -> None:
    # Points for short runs: a line through a single epoch can't be seen.
    marker = "o" if len(values_E) <= 12 else ""
    axes.plot(epochs_E, values_E, color=unit(colour), marker=marker, markersize=4)


def _mark_best(
    axes: "Axes",
    epochs_E: Float64[np.ndarray, " E"],
    values_E: Float64[np.ndarray, " E"],
    best: int | None,
) -> None:
    if best is None:
        return
    axes.axvline(epochs_E[best], color=unit(GREY), linestyle="--", linewidth=1, zorder=1)
    if np.isfinite(values_E[best]):
        axes.plot(
            [epochs_E[best]], [values_E[best]], "o", color=unit(VERMILLION), markersize=7, zorder=3
        )


def _add_legend(figure: "Figure", epoch: float | None, monitor: str) -> None:
    """One legend for all panels, at the top right, where it hides no curve."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=unit(BLUE), label="training"),
        Line2D([], [], color=unit(VERMILLION), label="validation"),
    ]
    if epoch is not None:
        by = {"dice": "Dice", "loss": "loss"}[monitor]
        said = f"best epoch by validation {by}: {epoch:g}"
        lines.append(Line2D([], [], color=unit(GREY), linestyle="--", linewidth=1, label=said))
    figure.legend(handles=lines, loc="upper right", ncols=len(lines), frameon=False, fontsize=9)


def _epoch_ticks(axes: "Axes", epochs_E: Float64[np.ndarray, " E"]) -> None:
    """Ticks at whole epochs of the run only, and room around a single one."""
    from matplotlib.ticker import MaxNLocator

    first, last = epochs_E[0], epochs_E[-1]
    # Less than an epoch on either side, so that no tick stands where no epoch was.
    room = min(max(0.02 * (last - first), 0.1), 0.9) if last > first else 1
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    if first == last:
        axes.set_xticks([first])
