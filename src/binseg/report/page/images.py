"""The galleries: small images inside the page, with layers for truth and prediction."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from binseg.report.errors import ERROR_COLOURS, EXTRA, IGNORED, MISSED, error_map
from binseg.report.figure import Colour
from binseg.report.gallery import GalleryItem
from binseg.report.page.markup import Html, el
from binseg.report.pixels import for_display
from binseg.transforms.geometry import resize_image, resize_mask

__all__ = ["LONGEST_SIDE", "draw_gallery_section"]

LONGEST_SIDE = 256
_JPEG_QUALITY = 84
_STRENGTH = 0.55
# In the error map orange is what only the truth has, and blue what only the prediction has: so the
# two layers bear these colours too.
_TRUTH, _PREDICTION = ERROR_COLOURS[MISSED], ERROR_COLOURS[EXTRA]


def draw_gallery_section(galleries: Sequence[tuple[str, Sequence[GalleryItem]]]) -> Html:
    """Draw cards of image and error map, each a button that opens it large."""
    number = 0
    blocks = []
    for title, items in galleries:
        cards = []
        for item in items:
            cards.append(_card(item, number))
            number += 1
        blocks.append(el("h3", title))
        blocks.append(el("ul", *cards, class_="cards"))
    has_ignored = any(
        item.valid_HW is not None and not item.valid_HW.all()
        for _, items in galleries
        for item in items
    )
    return el("div", _legend(ignored=has_ignored), *blocks)


def _legend(*, ignored: bool) -> Html:
    entries = [
        el("li", el("i", class_=f"swatch {name}"), name)
        for name in ERROR_COLOURS
        if ignored or name != IGNORED
    ]
    return el("ul", *entries, class_="legend")


def _card(item: GalleryItem, number: int) -> Html:
    assert item.truth_HW is not None, "an evaluation has a truth"
    height, width = item.image_HWC.shape[:2]
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    image_HW3 = resize_image(for_display(item.image_HWC), *size)
    valid_HW = np.ones(item.truth_HW.shape, bool) if item.valid_HW is None else item.valid_HW
    truth_HW, prediction_HW, valid_HW = (
        resize_mask(mask_HW, *size) for mask_HW in (item.truth_HW, item.prediction_HW, valid_HW)
    )
    errors_HW3 = error_map(image_HW3, truth_HW, prediction_HW, valid_HW)
    dice = "" if item.dice is None else f"Dice {item.dice:.4f}"
    shape = {"width": size[1], "height": size[0]}
    button = el(
        "button",
        el("img", src=_jpeg(image_HW3), alt="", **shape),
        el("img", src=_jpeg(errors_HW3), alt="", **shape),
        type="button",
        class_="open",
        aria_haspopup="dialog",
        aria_label=f"Open {item.id}, {dice}",
        data_image=number,
        data_id=item.id,
        data_dice=dice,
        data_truth=_layer(truth_HW & valid_HW, _TRUTH),
        data_prediction=_layer(prediction_HW, _PREDICTION),
    )
    caption = el("p", el("bdi", item.id, class_="name"), el("b", dice), class_="caption")
    return el("li", button, caption)


def _jpeg(image_HW3: UInt8[np.ndarray, "H W 3"]) -> str:
    out = io.BytesIO()
    # Full colour resolution: coarse colour would smear the thin parts of an error map.
    Image.fromarray(image_HW3).save(out, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return _uri("jpeg", out.getvalue())


def _layer(mask_HW: Bool[np.ndarray, "H W"], colour: Colour) -> str:
    """Make a mask a see-through colour with a firm outline, as a PNG of three palette entries."""
    inner_HW = mask_HW.copy()
    inner_HW[1:] &= mask_HW[:-1]
    inner_HW[:-1] &= mask_HW[1:]
    inner_HW[:, 1:] &= mask_HW[:, :-1]
    inner_HW[:, :-1] &= mask_HW[:, 1:]
    image = Image.fromarray(mask_HW.astype(np.uint8) + (mask_HW & ~inner_HW))
    image.putpalette([0, 0, 0, *colour, *colour])
    out = io.BytesIO()
    alpha = bytes([0, round(255 * _STRENGTH), 255])
    image.save(out, format="PNG", optimize=True, transparency=alpha)
    return _uri("png", out.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
