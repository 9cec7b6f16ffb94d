"""The one door to matplotlib: figures without global state, and the plots of runs and scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float64

from binseg.errors import MissingExtraError
from binseg.progress import hushed
from binseg.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]  # red, green and blue, 0 to 255

# Okabe & Ito's colours, told apart with any kind of colour vision.
BLUE: Colour = (0, 114, 178)
SKY_BLUE: Colour = (86, 180, 233)
ORANGE: Colour = (230, 159, 0)
VERMILLION: Colour = (213, 94, 0)
PURPLE: Colour = (204, 121, 167)
# And what goes with them.
INK: Colour = (38, 38, 38)
GREY: Colour = (140, 140, 140)
WHITE: Colour = (255, 255, 255)

_DPI = 120
_EAST_ASIAN_FONTS = (
    *("Noto Sans CJK TC", "Noto Sans TC", "Noto Sans CJK JP", "PingFang TC"),
    *("Microsoft JhengHei", "WenQuanYi Zen Hei", "Arial Unicode MS"),
)


def unit(colour: Colour) -> tuple[float, float, float]:
    """Give a colour with parts in [0, 1], as matplotlib takes it."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def new_figure(
    width: float, height: float, *, purpose: str, placed_by_hand: bool = False
) -> "Figure":
    """Open a white figure (inches) of nobody else's; `purpose` is for MissingExtraError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="train", purpose=purpose) from error
    # Pads are inches of air around axes and titles.
    engine = None if placed_by_hand else ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout=engine)
    FigureCanvasAgg(figure)
    return figure


def fonts() -> list[str]:
    """Name the fonts for titles and captions: file names may be in Chinese, Japanese or Korean."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _EAST_ASIAN_FONTS if name in installed)]


def set_title(figure: "Figure", title: str) -> None:
    """Write the title at the top left; its characters mean themselves, no formulas."""
    figure.suptitle(
        title, x=0.01, ha="left", fontsize=13, color=unit(INK), parse_math=False, fontfamily=fonts()
    )


def style_axes(axes: "Axes", *, x: str, y: str = "", title: str = "") -> None:
    """Give axes the house style: quiet frame, light grid, dark text, title at the left."""
    ink = unit(INK)
    axes.set_title(title, loc="left", fontsize=11, color=ink, parse_math=False, fontfamily=fonts())
    axes.set_xlabel(x, color=ink, fontsize=9)
    axes.set_ylabel(y, color=ink, fontsize=9)
    axes.tick_params(colors=ink, labelsize=9, length=3, color=unit(GREY))
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(unit(GREY))


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    # A letter that no installed font has is a box, without a warning for each.
    quiet = hushed("matplotlib.font_manager", ("Glyph .* missing from font", Warning))
    with atomic_path(path) as temporary, quiet:
        figure.savefig(temporary, format="png", dpi=_DPI)


Row = Mapping[str, float | str | None]
Column = Float64[np.ndarray, " E"]  # One figure of every epoch
Monitor = Literal["dice", "loss"]
NUM_BINS = 20
POOR = 0.5


def plot_curves(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str = "Training",
    monitor: Monitor = "dice",
    full: float | None = None,
) -> None:
    """Plot loss, Dice and rate by epoch; `monitor` chose the best, `full` is all images' Dice."""
    assert rows, "at least one epoch"
    figure = new_figure(13, 4.2, purpose="plotting curves")
    set_title(figure, title)
    loss_axes, dice_axes, rate_axes = figure.subplots(1, 3)
    epochs_E = column(rows, "epoch")
    best = best_epoch(rows, monitor=monitor)
    scored, inputs = rows[-1].get("val_scored"), rows[-1].get("val_inputs")
    some = "" if scored == inputs else f" on {float(scored or 0):.0f} of {float(inputs or 0):.0f}"
    for axes, name, label in ((loss_axes, "loss", "Loss"), (dice_axes, "dice", "Dice")):
        validation_E = column(rows, f"val_{name}")
        has_best = best is not None and np.isfinite(validation_E[best])
        told = f": validation {validation_E[best]:.4f} at the best epoch{some}" if has_best else ""
        style_axes(axes, title=f"{label}{told}", x="epoch")
        _line(axes, epochs_E, column(rows, f"train_{name}"), BLUE)
        _line(axes, epochs_E, validation_E, VERMILLION)
        if has_best:
            point = [epochs_E[best]], [validation_E[best]]
            axes.plot(*point, "o", color=unit(VERMILLION), markersize=7, zorder=3)
    if full is not None:
        dice_axes.plot([epochs_E[-1]], [full], "*", color=unit(VERMILLION), markersize=12, zorder=4)
        told = f"all images: {full:.4f}"
        dice_axes.annotate(told, (epochs_E[-1], full), (-8, -12), textcoords="offset points",
            ha="right", fontsize=9)  # fmt: skip
    style_axes(rate_axes, title="Learning rate", x="epoch")
    _line(rate_axes, epochs_E, column(rows, "lr"), INK)
    # One short label a tick, without a factor above the axis that would push the title up.
    rate_axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    for axes in (loss_axes, dice_axes, rate_axes):
        if best is not None:
            axes.axvline(epochs_E[best], color=unit(GREY), linestyle="--", linewidth=1, zorder=1)
        _epoch_ticks(axes, epochs_E)
    _add_legend(figure, None if best is None else epochs_E[best], monitor)
    save_figure(figure, path)


def best_epoch(rows: Sequence[Row], *, monitor: Monitor = "dice") -> int | None:
    """Find the row of the best validation figure, the earlier of two equals; None without any.

    >>> best_epoch([{"val_dice": 0.8}, {"val_dice": 0.9}, {"val_dice": 0.9}])
    1
    """
    values_E = column(rows, f"val_{monitor}") * (1 if monitor == "dice" else -1)
    return None if np.isnan(values_E).all() else int(np.nanargmax(values_E))


def column(rows: Sequence[Row], name: str) -> Column:
    """One figure of every epoch; nan where it is absent or empty."""
    values = [row.get(name) for row in rows]
    return np.array([float(value) if value not in (None, "") else np.nan for value in values])


def _line(axes: "Axes", epochs_E: Column, values_E: Column, colour: Colour) -> None:
    # Points for short runs: a line through a single epoch can't be seen.
    marker = "o" if len(values_E) <= 12 else ""
    axes.plot(epochs_E, values_E, color=unit(colour), marker=marker, markersize=4)


def _add_legend(figure: "Figure", epoch: float | None, monitor: Monitor) -> None:
    """Add one legend for all panels, at the top right, where it hides no curve."""
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


def _epoch_ticks(axes: "Axes", epochs_E: Column) -> None:
    """Put ticks at whole epochs of the run only, with room around a single one."""
    from matplotlib.ticker import MaxNLocator

    first, last = epochs_E[0], epochs_E[-1]
    # Less than an epoch on either side, so that no tick stands where no epoch was.
    room = min(max(0.02 * (last - first), 0.1), 0.9) if last > first else 1
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    if first == last:
        axes.set_xticks([first])


def plot_histogram(
    scores: Sequence[float], path: Path, *, title: str = "Dice of each image", name: str = "Dice"
) -> None:
    """Plot how many images have which score, with mean, median and the count below 0.5."""
    from matplotlib.ticker import MaxNLocator

    scores_N = np.asarray(scores, dtype=np.float64)
    assert scores_N.size, "at least one image"
    assert ((scores_N >= 0) & (scores_N <= 1)).all(), "scores are in [0, 1]"
    figure = new_figure(7.5, 4.4, purpose="plotting a histogram")
    axes = figure.subplots()
    style_axes(axes, x=f"{name} of an image", y="number of images")
    axes.grid(visible=False, axis="x")
    heights, edges = np.histogram(scores_N, bins=np.linspace(0, 1, NUM_BINS + 1))
    colours = [unit(ORANGE if low < POOR - 1e-9 else BLUE) for low in edges[:-1]]
    look: dict[str, Any] = {"color": colours, "edgecolor": "white", "linewidth": 1}
    axes.bar(edges[:-1], heights, width=1 / NUM_BINS, align="edge", **look)
    mean, median, num_poor = scores_N.mean(), np.median(scores_N), int((scores_N < POOR).sum())
    axes.axvline(mean, color=unit(VERMILLION), label=f"mean {mean:.4f}")
    axes.axvline(median, color=unit(INK), linestyle="--", label=f"median {median:.4f}")
    below = f"below {POOR:g}: {num_poor} of {scores_N.size} ({num_poor / scores_N.size:.1%})"
    axes.plot([], [], "s", color=unit(ORANGE), label=below)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 11))
    # Between the title and the bars, where it can hide none.
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(**place, borderpad=0, ncols=3, frameon=False, fontsize=9)
    set_title(figure, title)
    save_figure(figure, path)
