"""The page and the table of a run of predictions: images with outlines, the doubtful first."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from binseg.report.overlay import AnyImage, Mask, for_display, overlay
from binseg.storage import write_text
from binseg.transforms.geometry import resize_image, resize_mask

THUMB_SIDE = 296
"""Pixels; longer side of the page's images, sharp on a phone's screen at half that size."""
_ORDER = ("unlike the training data", "look", "ok", "not judged")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One prediction on the page, and as a line of the table."""

    name: str
    thumb: str = ""
    """The image with the mask's outline, as a `data:` address; empty where it isn't in memory."""
    num_objects: int | None = None
    foreground: float
    """Share of the pixels."""
    area: float | None = None
    """Area of the foreground in `unit`, where the size of a pixel is known."""
    unit: str = ""
    flag: str = "not judged"
    expected_dice: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def thumbnail(image_HWC: AnyImage, mask_HW: Mask) -> str:
    """Draw a small image with the outline of its mask, as a `data:` address."""
    from PIL import Image

    from binseg.report.rendering import data_uri  # Jinja's import would slow every start

    scale = min(1.0, THUMB_SIDE / max(mask_HW.shape))
    height, width = (max(1, round(side * scale)) for side in mask_HW.shape)
    small_HW3 = resize_image(for_display(image_HWC), height, width)
    drawn = overlay(small_HW3, resize_mask(mask_HW, height, width), strength=0.15)
    return data_uri(Image.fromarray(drawn), "jpeg", quality=82)


def write_predictions_page(folder: Path, entries: Sequence[Entry], *, model: str) -> Path:
    """Write `report.html` and `summary.csv` into a folder, and return the page's path."""
    from binseg.report.rendering import asset, render

    ordered = sorted(
        entries, key=lambda one: (_ORDER.index(one.flag), one.expected_dice or 0.0, one.name)
    )
    numbers = Counter(one.flag for one in ordered)
    page = render(
        "predictions.html",
        style=asset("doctor.css"),
        model=model,
        entries=ordered,
        flags=[(name, numbers[name]) for name in _ORDER if numbers[name]],
        tones={"unlike the training data": "error", "look": "warning"},
    )
    write_text(folder / "report.html", page)
    text = io.StringIO()
    names = [name for name in Entry.__dataclass_fields__ if name != "thumb"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(one) for one in entries)
    write_text(folder / "summary.csv", text.getvalue())
    return folder / "report.html"
