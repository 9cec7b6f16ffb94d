"""Images in rows: the image, the truth, the prediction, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Num, UInt8

from binseg.report.figure import GREY, INK, fonts, new_figure, save_figure, unit
from binseg.report.overlay import ERROR_COLOURS, IGNORED, error_map, for_display, overlay
from binseg.transforms.geometry import resize_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MAX_ROWS", "GalleryItem", "plot_gallery"]

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
    image_HWC: Num[np.ndarray, "H W C"]
    prediction_HW: Bool[np.ndarray, "H W"]
    truth_HW: Bool[np.ndarray, "H W"] | None = None
    """None where there is no truth: the row then shows image, prediction and overlay."""
    valid_HW: Bool[np.ndarray, "H W"] | None = None
    """False where the truth says to ignore; None means all valid."""
    dice: float | None = None


def plot_gallery(items: Sequence[GalleryItem], path: Path, *, title: str = "") -> None:
    """Plot a row per image: image, truth, prediction and error map, with its Dice above.

    Args:
        items: the first 24 are shown; from 9 on they stand in two blocks.
        path: of the PNG.
        title: above the images.
    """
    assert items, "at least one image"
    shown = items[:MAX_ROWS]
    with_truth = any(item.truth_HW is not None for item in shown)
    heads = _HEADS_WITH_TRUTH if with_truth else _HEADS_WITHOUT
    num_blocks = 1 if len(shown) <= 8 else 2
    sheet = _Sheet(
        title=title,
        heads=heads,
        num_rows=-(-len(shown) // num_blocks),
        num_blocks=num_blocks,
        has_legend=with_truth,
    )
    figure = new_figure(
        sheet.width, sheet.height, purpose="plotting a gallery", placed_by_hand=True
    )
    left_out = f"the first {MAX_ROWS} of {len(items)} images" if len(items) > MAX_ROWS else ""
    sheet.add_frame(figure, note=left_out)
    for number, item in enumerate(shown):
        block, row = divmod(number, sheet.num_rows)
        sheet.add_row(figure, block, row, caption=_caption(item), panels=_panels(item, heads))
    if sheet.has_legend:
        sheet.add_legend(figure, ignored=any(_has_ignored(item) for item in shown))
    save_figure(figure, path)


def _caption(item: GalleryItem) -> str:
    """Give the image's id, its middle cut out where it is long, and its Dice."""
    name = item.id.encode(errors="replace").decode()  # file names may hold what isn't text
    if len(name) > _LONGEST_CAPTION:
        half = _LONGEST_CAPTION // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    return name if item.dice is None else f"{name}    Dice {item.dice:.3f}"


def _has_ignored(item: GalleryItem) -> bool:
    return item.valid_HW is not None and not item.valid_HW.all()


def _panels(item: GalleryItem, heads: Sequence[str]) -> list[UInt8[np.ndarray, "H W 3"] | None]:
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


def _white_on_black(mask_HW: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.repeat(mask_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)


def _shrink(panel_HW3: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Bring large images to about the size of a cell: memory stays small, edges smooth."""
    height, width = panel_HW3.shape[:2]
    factor = _CELL_PIXELS / max(height, width)
    if factor >= 1:
        return panel_HW3
    smaller: UInt8[np.ndarray, "h w 3"] = resize_image(
        panel_HW3, max(1, round(height * factor)), max(1, round(width * factor))
    )
    return smaller


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """The layout of a gallery, in inches from the top left; matplotlib counts from below."""

    title: str
    heads: tuple[str, ...]
    num_rows: int
    num_blocks: int
    has_legend: bool

    @property
    def block_width(self) -> float:
        return len(self.heads) * _CELL + (len(self.heads) - 1) * _GAP

    @property
    def width(self) -> float:
        between = (self.num_blocks - 1) * _BETWEEN_BLOCKS
        return 2 * _MARGIN + self.num_blocks * self.block_width + between

    @property
    def top(self) -> float:
        """The upper edge of the first row."""
        return _MARGIN + (_TITLE if self.title else 0) + _HEADS

    @property
    def height(self) -> float:
        rows = self.num_rows * (_CAPTION + _CELL)
        return self.top + rows + _MARGIN + (_LEGEND if self.has_legend else 0)

    def left_of(self, block: int, column: int) -> float:
        return _MARGIN + block * (self.block_width + _BETWEEN_BLOCKS) + column * (_CELL + _GAP)

    def write(
        self,
        figure: "Figure",
        text: str,
        *,
        left: float,
        top: float,
        size: float = 9,
        align: str = "left",
        grey: bool = False,
    ) -> None:
        figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            fontsize=size,
            ha=align,
            va="top",
            color=unit(GREY if grey else INK),
            parse_math=False,
            fontfamily=fonts(),
        )

    def add_frame(self, figure: "Figure", *, note: str) -> None:
        """Write the title, the note of what is left out, and the heads of the columns."""
        if self.title:
            self.write(figure, self.title, left=_MARGIN, top=_MARGIN, size=13)
        if note:
            right = self.width - _MARGIN
            self.write(figure, note, left=right, top=_MARGIN, align="right", grey=True)
        for block in range(self.num_blocks):
            for column, head in enumerate(self.heads):
                middle = self.left_of(block, column) + _CELL / 2
                top = self.top - _HEADS
                self.write(figure, head, left=middle, top=top, align="center", grey=True)

    def add_row(
        self,
        figure: "Figure",
        block: int,
        row: int,
        *,
        caption: str,
        panels: Sequence[UInt8[np.ndarray, "H W 3"] | None],
    ) -> None:
        top = self.top + row * (_CAPTION + _CELL)
        self.write(figure, caption, left=self.left_of(block, 0), top=top + 0.11)
        for column, panel in enumerate(panels):
            if panel is None:
                continue
            axes = figure.add_axes(
                (
                    self.left_of(block, column) / self.width,
                    1 - (top + _CAPTION + _CELL) / self.height,
                    _CELL / self.width,
                    _CELL / self.height,
                )
            )
            axes.imshow(panel)
            axes.set_anchor("N")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("0.75")  # a white mask must not run into the white paper
            axes.spines[:].set_linewidth(0.6)

    def add_legend(self, figure: "Figure", *, ignored: bool) -> None:
        """Explain the colours of the error map."""
        from matplotlib.patches import Patch

        names = [name for name in ERROR_COLOURS if ignored or name != IGNORED]
        figure.legend(
            handles=[
                Patch(facecolor=unit(ERROR_COLOURS[name]), edgecolor=unit(GREY), label=name)
                for name in names
            ],
            title=None,
            loc="lower right",
            bbox_to_anchor=(1 - _MARGIN / self.width, 0.08 / self.height),
            bbox_transform=figure.transFigure,
            borderaxespad=0,
            ncols=len(names),
            frameon=False,
            fontsize=9,
        )
