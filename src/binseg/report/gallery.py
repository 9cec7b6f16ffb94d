"""Images in rows: the image, the truth, the prediction, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from binseg.report.overlay import ERROR_COLOURS, IGNORED, Rgb, error_map, for_display, small_overlay
from binseg.report.plots import GREY, INK, fonts, new_figure, save_figure, unit
from binseg.types import AnyImage, Mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS_OF_A_BLOCK = 8
_HEADS = ("image", "truth", "prediction", "error map")
_CELL_PIXELS = 320  # a little more than a cell has on paper
_LONGEST_CAPTION = 58
# In inches.
_CELL, _GAP, _CAPTION, _MARGIN = 1.75, 0.06, 0.32, 0.18
_BETWEEN_BLOCKS, _TITLE, _HEAD, _LEGEND = 0.35, 0.42, 0.24, 0.34


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One row: an image with what is true and what was predicted, all of one size."""

    id: str
    image_HWC: AnyImage
    prediction_HW: Mask
    truth_HW: Mask
    valid_HW: Mask  # False where the truth says to ignore
    dice: float


def plot_gallery(items: Sequence[GalleryItem], path: Path, *, title: str) -> None:
    """Plot rows of image, truth, prediction and error map with its Dice as PNG, in two blocks."""
    assert items, "at least one image"
    num_blocks = 1 if len(items) <= _ROWS_OF_A_BLOCK else 2
    num_rows = -(-len(items) // num_blocks)
    across, down = _CELL + _GAP, _CAPTION + _CELL
    block_across = len(_HEADS) * across - _GAP + _BETWEEN_BLOCKS
    top = _MARGIN + _TITLE + _HEAD
    width = 2 * _MARGIN + num_blocks * block_across - _BETWEEN_BLOCKS
    height = top + num_rows * down + _MARGIN + _LEGEND
    figure = new_figure(width, height, purpose="plotting a gallery", placed_by_hand=True)
    write = partial(_write, figure)
    write(title, _MARGIN, _MARGIN, fontsize=13)
    for block in range(num_blocks):
        left = _MARGIN + block * block_across
        for column, head in enumerate(_HEADS):
            middle = left + column * across + _CELL / 2
            write(head, middle, top - _HEAD, ha="center", color=unit(GREY))
        for row, item in enumerate(items[block * num_rows :][:num_rows]):
            upper = top + row * down
            write(_caption(item), left, upper + 0.11)
            for column, panel_HW3 in enumerate(_panels(item)):
                _add_panel(figure, panel_HW3, left + column * across, upper + _CAPTION)
    has_ignored = any(not item.valid_HW.all() for item in items)
    _add_legend(figure, [x for x in ERROR_COLOURS if has_ignored or x != IGNORED])
    save_figure(figure, path)


def _write(figure: "Figure", text: str, left: float, top: float, **own: Any) -> None:
    """Write a text; places are in inches from the top left, and matplotlib counts from below."""
    width, height = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": 9, "va": "top", "fontfamily": fonts(), "color": unit(INK)}
    figure.text(left / width, 1 - top / height, text, parse_math=False, **style | own)


def _add_panel(figure: "Figure", panel_HW3: Rgb, left: float, top: float) -> None:
    width, height = figure.get_size_inches()
    lower = 1 - (top + _CELL) / height
    axes = figure.add_axes((left / width, lower, _CELL / width, _CELL / height))
    axes.imshow(panel_HW3)
    axes.set(anchor="N", xticks=[], yticks=[])
    axes.spines[:].set_color("0.75")  # a white mask must not run into the white paper
    axes.spines[:].set_linewidth(0.6)


def _add_legend(figure: "Figure", names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    edge = unit(GREY)
    place: dict[str, Any] = {"loc": "lower right", "bbox_transform": figure.transFigure}
    place["bbox_to_anchor"] = (1 - _MARGIN / width, 0.08 / height)
    patches = [Patch(facecolor=unit(ERROR_COLOURS[x]), edgecolor=edge, label=x) for x in names]
    look: dict[str, Any] = {"ncols": len(names), "frameon": False, "fontsize": 9}
    figure.legend(handles=patches, borderaxespad=0, **place, **look)


def _caption(item: GalleryItem) -> str:
    name = item.id.encode(errors="replace").decode()  # file names may hold what isn't text
    if len(name) > _LONGEST_CAPTION:
        half = _LONGEST_CAPTION // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    return f"{name}    Dice {item.dice:.3f}"


def _panels(item: GalleryItem) -> list[Rgb]:
    image_HW3 = for_display(item.image_HWC)
    truth_HW3, prediction_HW3 = (
        np.repeat(mask_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
        for mask_HW in (item.truth_HW, item.prediction_HW)
    )
    errors_HW3 = error_map(image_HW3, item.truth_HW, item.prediction_HW, item.valid_HW)
    panels = (image_HW3, truth_HW3, prediction_HW3, errors_HW3)
    return [small_overlay(one, None, _CELL_PIXELS) for one in panels]
