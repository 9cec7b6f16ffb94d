"""Images in rows: the image, the truth, the prediction, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from binseg.report.overlay import (
    ERROR_COLOURS,
    IGNORED,
    AnyImage,
    Mask,
    Rgb,
    error_map,
    for_display,
    overlay,
)
from binseg.report.plots import GREY, INK, Colour, fonts, new_figure, save_figure, unit
from binseg.transforms.geometry import resize_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ROWS = 24
_HEADS_WITH_TRUTH = ("image", "truth", "prediction", "error map")
_HEADS_WITHOUT = ("image", "prediction", "overlay")
_CELL_PIXELS = 320  # a little more than a cell has on paper
_LONGEST_CAPTION = 58
# In inches.
_CELL = 1.75
_GAP = 0.06
_CAPTION = 0.32
_MARGIN = 0.18
_BETWEEN_BLOCKS = 0.35
_TITLE = 0.42
_HEADS = 0.24
_LEGEND = 0.34


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One row: an image with what is true and what was predicted, all of one size."""

    id: str
    image_HWC: AnyImage
    prediction_HW: Mask
    truth_HW: Mask | None = None
    """None where there is no truth: the row then shows image, prediction and overlay."""
    valid_HW: Mask | None = None  # False where the truth says to ignore; None means all valid
    dice: float | None = None


def plot_gallery(items: Sequence[GalleryItem], path: Path, *, title: str = "") -> None:
    """Plot rows of image, truth, prediction and error map with its Dice as PNG, the first 24."""
    assert items, "at least one image"
    shown = items[:MAX_ROWS]
    with_truth = any(item.truth_HW is not None for item in shown)
    heads = _HEADS_WITH_TRUTH if with_truth else _HEADS_WITHOUT
    num_blocks = 1 if len(shown) <= 8 else 2
    num_rows = -(-len(shown) // num_blocks)
    across, down = _CELL + _GAP, _CAPTION + _CELL
    block_across = len(heads) * across - _GAP + _BETWEEN_BLOCKS
    top = _MARGIN + (_TITLE if title else 0) + _HEADS
    width = 2 * _MARGIN + num_blocks * block_across - _BETWEEN_BLOCKS
    height = top + num_rows * down + _MARGIN + (_LEGEND if with_truth else 0)
    figure = new_figure(width, height, purpose="plotting a gallery", placed_by_hand=True)
    write = partial(_write, figure)
    if title:
        write(title, _MARGIN, _MARGIN, size=13)
    if len(items) > MAX_ROWS:
        note = f"the first {MAX_ROWS} of {len(items)} images"
        write(note, width - _MARGIN, _MARGIN, align="right", colour=GREY)
    for block in range(num_blocks):
        left = _MARGIN + block * block_across
        for column, head in enumerate(heads):
            middle = left + column * across + _CELL / 2
            write(head, middle, top - _HEADS, align="center", colour=GREY)
        for row, item in enumerate(shown[block * num_rows :][:num_rows]):
            upper = top + row * down
            write(_caption(item), left, upper + 0.11)
            for column, panel_HW3 in enumerate(_panels(item, heads)):
                if panel_HW3 is not None:
                    _add_panel(figure, panel_HW3, left + column * across, upper + _CAPTION)
    if with_truth:
        has_ignored = any(item.valid_HW is not None and not item.valid_HW.all() for item in shown)
        _add_legend(figure, [x for x in ERROR_COLOURS if has_ignored or x != IGNORED])
    save_figure(figure, path)


def _write(
    figure: "Figure",
    text: str,
    left: float,
    top: float,
    *,
    size: float = 9,
    align: str = "left",
    colour: Colour = INK,
) -> None:
    """Write a text; places are in inches from the top left, and matplotlib counts from below."""
    width, height = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": size, "ha": align, "va": "top", "fontfamily": fonts()}
    figure.text(left / width, 1 - top / height, text, color=unit(colour), parse_math=False, **style)


def _add_panel(figure: "Figure", panel_HW3: Rgb, left: float, top: float) -> None:
    width, height = figure.get_size_inches()
    lower = 1 - (top + _CELL) / height
    axes = figure.add_axes((left / width, lower, _CELL / width, _CELL / height))
    axes.imshow(panel_HW3)
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("0.75")  # a white mask must not run into the white paper
    axes.spines[:].set_linewidth(0.6)


def _add_legend(figure: "Figure", names: Sequence[str]) -> None:
    """Explain the colours of the error map."""
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    edge = unit(GREY)
    figure.legend(
        handles=[Patch(facecolor=unit(ERROR_COLOURS[x]), edgecolor=edge, label=x) for x in names],
        loc="lower right",
        bbox_to_anchor=(1 - _MARGIN / width, 0.08 / height),
        bbox_transform=figure.transFigure,
        borderaxespad=0,
        ncols=len(names),
        frameon=False,
        fontsize=9,
    )


def _caption(item: GalleryItem) -> str:
    """Give the image's id, its middle cut out where it is long, and its Dice."""
    name = item.id.encode(errors="replace").decode()  # file names may hold what isn't text
    if len(name) > _LONGEST_CAPTION:
        half = _LONGEST_CAPTION // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    return name if item.dice is None else f"{name}    Dice {item.dice:.3f}"


def _panels(item: GalleryItem, heads: Sequence[str]) -> list[Rgb | None]:
    """Make the row's image under each head; None where it needs a truth that isn't there."""
    image_HW3 = for_display(item.image_HWC)
    panels = {
        "image": image_HW3,
        "prediction": _white_on_black(item.prediction_HW),
        "overlay": overlay(image_HW3, item.prediction_HW),
    }
    if item.truth_HW is not None:
        panels["truth"] = _white_on_black(item.truth_HW)
        panels["error map"] = error_map(image_HW3, item.truth_HW, item.prediction_HW, item.valid_HW)
    return [_shrink(panels[head]) if head in panels else None for head in heads]


def _white_on_black(mask_HW: Mask) -> Rgb:
    return np.repeat(mask_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)


def _shrink(panel_HW3: Rgb) -> UInt8[np.ndarray, "h w 3"]:
    """Bring large images to about the size of a cell: memory stays small, edges smooth."""
    height, width = panel_HW3.shape[:2]
    factor = _CELL_PIXELS / max(height, width)
    if factor >= 1:
        return panel_HW3
    smaller: UInt8[np.ndarray, "h w 3"] = resize_image(
        panel_HW3, max(1, round(height * factor)), max(1, round(width * factor))
    )
    return smaller
