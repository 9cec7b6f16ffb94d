"""Images for the eye: any image as RGB, a mask laid over it, a cut-out, a map of errors.

Models never see what these functions give. The colours of the error map are of Okabe & Ito's set,
told apart with any kind of colour vision (https://jfly.uni-koeln.de/color/), and differ in
brightness too, for print in grey.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num, UInt8

from binseg.report.plots import (
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    WHITE,
    Colour,
    fonts,
    new_figure,
    save_figure,
    unit,
)
from binseg.transforms.geometry import resize_image, resize_mask
from binseg.types import AnyImage, Mask, Probability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rgb = UInt8[np.ndarray, "H W 3"]
Rgba = UInt8[np.ndarray, "H W 4"]
FADE = 2
"""Pixels to each side of an outline over which cut-outs fade."""
_DARKEST, _BRIGHTEST = 0.5, 99.5  # percentiles: a few hot pixels must not turn the rest black

FOUND, MISSED, EXTRA, IGNORED = "found", "missed", "extra", "ignored"
ERROR_COLOURS: dict[str, Colour] = {FOUND: WHITE, MISSED: ORANGE, EXTRA: SKY_BLUE, IGNORED: PURPLE}
"""The colours of an error map, in the order of its legend."""


def for_display(image_HWC: AnyImage) -> Rgb:
    """Turn any image into RGB; 8 bits stay, others are stretched between percentiles."""
    channels = image_HWC.shape[2]
    if channels == 2:
        image_HWC = image_HWC.mean(axis=2, keepdims=True)
    image_HWC = image_HWC[:, :, :3]
    bytes_HWC = image_HWC if image_HWC.dtype == np.uint8 else _stretch(image_HWC)
    return np.array(np.broadcast_to(bytes_HWC, (*bytes_HWC.shape[:2], 3)), order="C")


def _stretch(image_HWC: AnyImage) -> UInt8[np.ndarray, "H W C"]:
    values_HWC = image_HWC.astype(np.float64)
    finite = values_HWC[np.isfinite(values_HWC)]
    if finite.size == 0:
        return np.zeros(image_HWC.shape, dtype=np.uint8)
    low, high = np.percentile(finite, [_DARKEST, _BRIGHTEST])
    # A flat image has nothing to stretch: it is shown as middle grey.
    unit_HWC = (values_HWC - low) / (high - low) if high > low else np.full(image_HWC.shape, 0.5)
    unit_HWC = np.nan_to_num(unit_HWC, nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray(np.rint(unit_HWC.clip(0, 1) * 255), np.uint8)


def small_overlay(
    image_hwC: Num[np.ndarray, "h w C"], mask_HW: Mask | None, side: int, *, strength: float = 0.25
) -> UInt8[np.ndarray, "high wide 3"]:
    """Draw an image of up to `side` pixels a side, with its mask, of which it may be reduced."""
    size = image_hwC.shape[:2] if mask_HW is None else mask_HW.shape
    scale = min(1.0, side / max(size))
    height, width = (max(1, round(length * scale)) for length in size)
    small_HW3: Rgb = resize_image(for_display(image_hwC), height, width)
    if mask_HW is None:
        return small_HW3
    return overlay(small_HW3, resize_mask(mask_HW, height, width), strength=strength)


def overlay(
    image_HWC: AnyImage, mask_HW: Mask, *, colour: Colour = SKY_BLUE, strength: float = 0.4
) -> Rgb:
    """Lay a colour over the masked part of any image, with an outline seen on all ground."""
    assert image_HWC.shape[:2] == mask_HW.shape, "image and mask are of one size"
    painted_HW3 = _tint(for_display(image_HWC), mask_HW, colour, strength)
    width = max(1, round(min(mask_HW.shape) / 160))  # as broad to the eye in small and large
    painted_HW3 = _tint(painted_HW3, _inner_edge(~mask_HW, max(1, width // 2)), INK, 0.6)
    painted_HW3[_inner_edge(mask_HW, width)] = colour
    return painted_HW3


def soft_alpha(mask_HW: Mask, probability_HW: Probability, threshold: float) -> Probability:
    """Fade a mask over `FADE` pixels by the probability's distance to threshold over slope."""
    from scipy import ndimage  # its import would slow every start

    inner_HW = ndimage.binary_erosion(mask_HW, iterations=FADE, border_value=1)
    near_HW = ndimage.binary_dilation(mask_HW, iterations=FADE) & ~inner_HW
    alpha_HW: Probability = inner_HW.astype(np.float32)
    if near_HW.any():
        slope_HW = np.hypot(*np.gradient(ndimage.gaussian_filter(probability_HW, 1.0)))
        distance_N = (probability_HW[near_HW] - threshold) / np.maximum(slope_HW[near_HW], 1e-3)
        alpha_HW[near_HW] = np.clip(0.5 + distance_N / (2 * FADE), 0.0, 1.0)
    return alpha_HW


def cutout(image_HWC: AnyImage, alpha_HW: Probability) -> Rgba:
    """Cut an object out of any image by an opacity in [0, 1]; all else is transparent."""
    from scipy import ndimage

    # The background shines through the colours where alpha is between 0 and 1: the mean of the
    # object's own colours near by replaces them, so that no rim of the old background stays.
    assert image_HWC.shape[:2] == alpha_HW.shape, "image and alpha are of one size"
    image_HW3, solid_HW = for_display(image_HWC), alpha_HW >= 1
    weight_HW = ndimage.gaussian_filter(solid_HW.astype(np.float32), 2 * FADE)
    mixed_HW = (alpha_HW > 0) & ~solid_HW & (weight_HW > 1e-3)
    share_N = np.clip(2 * alpha_HW[mixed_HW] - 1, 0, 1)
    for channel in range(3):
        own_HW = ndimage.gaussian_filter(image_HW3[:, :, channel] * np.float32(solid_HW), 2 * FADE)
        own_N = own_HW[mixed_HW] / weight_HW[mixed_HW]
        seen_N = image_HW3[:, :, channel][mixed_HW]
        image_HW3[:, :, channel][mixed_HW] = np.rint(share_N * seen_N + (1 - share_N) * own_N)
    return np.dstack([image_HW3, np.rint(alpha_HW * 255).astype(np.uint8)])


def cropped(mask_HW: Mask, padding: int) -> tuple[slice, slice]:
    """Give the rows and columns around a mask; all of them where it is empty."""
    ends = [np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (
        slice(max(0, one[0] - padding), one[-1] + 1 + padding) if len(one) else slice(None)
        for one in ends
    )
    return rows, columns


def on_colour(cut_HW4: Rgba, colour: Colour) -> Rgb:
    """Lay a cut-out on ground of one colour."""
    alpha_HW1 = cut_HW4[:, :, 3:] / np.float32(255)
    mixed_HW3 = alpha_HW1 * cut_HW4[:, :, :3] + (1 - alpha_HW1) * np.array(colour, np.float32)
    return np.asarray(np.rint(mixed_HW3), np.uint8)


def _tint(image_HW3: Rgb, mask_HW: Mask, colour: Colour, strength: float) -> Rgb:
    painted_HW3 = image_HW3.copy()
    mixed_N3 = (1 - strength) * image_HW3[mask_HW] + strength * np.array(colour)
    painted_HW3[mask_HW] = np.rint(mixed_N3).astype(np.uint8)
    return painted_HW3


def _inner_edge(mask_HW: Mask, width: int) -> Mask:
    """Pixels of the mask within `width` steps of its outside; the image's edge is none."""
    from scipy import ndimage  # its import would slow every start

    inside_HW = ndimage.binary_erosion(mask_HW, iterations=width, border_value=1)
    return np.asarray(mask_HW & ~inside_HW)


def error_map(
    image_HWC: AnyImage, truth_HW: Mask, prediction_HW: Mask, valid_HW: Mask | None = None
) -> Rgb:
    """Colour a dimmed grey copy of the image by what the prediction did there."""
    assert image_HWC.shape[:2] == truth_HW.shape == prediction_HW.shape, "all are of one size"
    valid_HW = np.ones(truth_HW.shape, dtype=np.bool_) if valid_HW is None else valid_HW
    grey_HW1 = for_display(image_HWC).mean(axis=2, keepdims=True)
    map_HW3 = np.repeat((grey_HW1 * 0.45).astype(np.uint8), 3, axis=2)
    right_HW = truth_HW & prediction_HW & valid_HW
    map_HW3 = _tint(map_HW3, right_HW, ERROR_COLOURS[FOUND], 0.5)
    map_HW3 = _tint(map_HW3, ~valid_HW, ERROR_COLOURS[IGNORED], 0.6)
    map_HW3 = _tint(map_HW3, truth_HW & ~prediction_HW & valid_HW, ERROR_COLOURS[MISSED], 0.95)
    return _tint(map_HW3, prediction_HW & ~truth_HW & valid_HW, ERROR_COLOURS[EXTRA], 0.95)


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
    patches = [Patch(facecolor=unit(ERROR_COLOURS[x]), edgecolor=edge, label=x) for x in names]
    figure.legend(
        handles=patches,
        loc="lower right",
        bbox_to_anchor=(1 - _MARGIN / width, 0.08 / height),
        bbox_transform=figure.transFigure,
        borderaxespad=0,
        ncols=len(names),
        frameon=False,
        fontsize=9,
    )


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
