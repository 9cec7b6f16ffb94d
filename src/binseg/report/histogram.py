"""Dice of every image in one image: where the mean comes from, and how many images failed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from binseg.report.figure import (
    BLUE,
    INK,
    ORANGE,
    VERMILLION,
    new_figure,
    save_figure,
    set_title,
    style_axes,
    unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_histogram"]

_NUM_BINS = 20
_POOR = 0.5


def draw_histogram(
    scores: Sequence[float], path: Path, *, title: str = "Dice of each image", name: str = "Dice"
) -> None:
    """Draw how many images have which score, with mean, median and the count below 0.5.

    Args:
        scores: one per image, in [0, 1].
        path: of the PNG.
        title: above the image.
        name: of the score.
    """
    scores_N = np.asarray(scores, dtype=np.float64)
    assert scores_N.size, "at least one image"
    assert ((scores_N >= 0) & (scores_N <= 1)).all(), "scores are in [0, 1]"
    figure = new_figure(7.5, 4.4, purpose="drawing a histogram")
    axes = figure.subplots()
    style_axes(axes, x=f"{name} of an image", y="number of images")
    axes.grid(visible=False, axis="x")
    edges = np.linspace(0, 1, _NUM_BINS + 1)
    heights, _ = np.histogram(scores_N, bins=edges)
    poor = edges[:-1] < _POOR - 1e-9
    axes.bar(
        edges[:-1],
        heights,
        width=1 / _NUM_BINS,
        align="edge",
        color=[unit(ORANGE) if is_poor else unit(BLUE) for is_poor in poor],
        edgecolor="white",
        linewidth=1,
    )
    mean, median = float(scores_N.mean()), float(np.median(scores_N))
    axes.axvline(mean, color=unit(VERMILLION), label=f"mean {mean:.4f}")
    axes.axvline(median, color=unit(INK), linestyle="--", label=f"median {median:.4f}")
    num_poor = int((scores_N < _POOR).sum())
    below = f"below {_POOR:g}: {num_poor} of {scores_N.size} ({num_poor / scores_N.size:.1%})"
    axes.plot([], [], "s", color=unit(ORANGE), label=below)
    _set_ticks(axes)
    # Between the title and the bars, where it can hide none.
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0,
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    set_title(figure, title)
    save_figure(figure, path)


def _set_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 11))
