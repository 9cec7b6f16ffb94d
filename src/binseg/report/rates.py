"""A learning-rate range test in one image."""

from collections.abc import Sequence
from pathlib import Path

from binseg.report.figure import (
    BLUE,
    VERMILLION,
    new_figure,
    save_figure,
    set_title,
    style_axes,
    unit,
)

__all__ = ["draw_rates"]


def draw_rates(
    rates: Sequence[float], losses: Sequence[float], path: Path, *, suggested: float | None
) -> None:
    """Draw the smoothed loss over the learning rate, and mark the suggested one.

    Args:
        rates: learning rates, rising.
        losses: of the same length.
        path: of the PNG.
        suggested: the rate to mark; None for none.
    """
    assert len(rates) == len(losses) > 0
    figure = new_figure(7, 4.2, purpose="drawing the learning-rate test")
    set_title(figure, "Learning-rate range test")
    axes = figure.subplots(1, 1)
    style_axes(axes, title="Loss while the rate rises", x="learning rate")
    axes.set_xscale("log")
    axes.plot(list(rates), list(losses), color=unit(BLUE), linewidth=1.8)
    if suggested is not None:
        axes.axvline(suggested, color=unit(VERMILLION), linewidth=1.2, linestyle="--")
        axes.annotate(
            f"suggested {suggested:.1e}",
            (suggested, max(losses)),
            xytext=(4, -4),
            textcoords="offset points",
            color=unit(VERMILLION),
            va="top",
        )
    save_figure(figure, path)
