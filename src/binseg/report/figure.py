"""The one door to matplotlib: figures without global state (no `pyplot`), whole files or none."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from binseg.errors import MissingExtraError
from binseg.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

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
    "Noto Sans CJK TC",
    "Noto Sans TC",
    "Noto Sans CJK JP",
    "PingFang TC",
    "Microsoft JhengHei",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)


def unit(colour: Colour) -> tuple[float, float, float]:
    """Give a colour with parts in [0, 1], as matplotlib takes it."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def new_figure(
    width: float, height: float, *, purpose: str, placed_by_hand: bool = False
) -> "Figure":
    """Open a white figure, `width` x `height` inches, that belongs to nobody else.

    `purpose` goes into the MissingExtraError where matplotlib is missing. Axes are fitted to their
    labels, unless the caller places them by hand.
    """
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
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(unit(GREY))


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary, _quiet_fonts():
        figure.savefig(temporary, format="png", dpi=_DPI)


@contextmanager
def _quiet_fonts() -> Iterator[None]:
    """Let a letter that no installed font has be drawn as a box, without a warning for each."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            yield
    finally:
        logger.setLevel(level)
