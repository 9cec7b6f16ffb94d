"""HTML pages from the templates in `assets/`, where no text of strangers is markup.

Here are those of a data set's check and of a run of predictions.
"""

import base64
import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

from binseg.report.overlay import small_overlay
from binseg.storage import csv_text, write_text
from binseg.types import AnyImage, Finding, Mask

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """Fill in a template of the folder `assets`."""
    return environment().get_template(template).render(values)


@cache
def environment() -> "Environment":
    """Set up Jinja; `0.98765|fixed` is 0.9877, and `1234|comma` is 1,234."""
    # Imported here, since predictions import this module: it would slow every start.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("binseg.report", "assets"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else readable(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["fixed"] = lambda value, digits=4: f"{value:.{digits}f}"
    found.filters["comma"] = lambda value: f"{value:,}"
    # Scripts stand alone; no figure may be NaN, which isn't JSON.
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return found


def readable(text: str) -> str:
    r"""Replace what can't be written or shown: control characters, bytes that were no UTF-8.

    >>> readable("cat\x1b[31m\udcff")
    'cat\ufffd[31m\\udcff'
    """
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    odd = {x for x in whole if unicodedata.category(x) == "Cc" and x not in "\n\t"}
    return whole.translate(dict.fromkeys(map(ord, odd), "\ufffd"))


@cache
def asset(name: str) -> Markup:
    """Read a style or a script, which goes into a page as it is."""
    return Markup(resources.files(__package__).joinpath("assets", name).read_text("utf-8"))


def data_uri(image: Image.Image, kind: str, **options: object) -> str:
    """Encode an image, as "jpeg" or "png" with Pillow's options, as an address that holds it."""
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


MAX_FINDINGS_SHOWN = 24  # findings of one code that are shown in full; the rest are counted
MAX_IMAGES_SHOWN = 8  # images of one finding that are shown


def images_shown(findings: Sequence[Finding]) -> tuple[str, ...]:
    """List the ids whose images the page shows, so that no others need decoding."""
    num_of: Counter[str] = Counter()
    ids: dict[str, None] = {}
    for finding in findings:
        num_of[finding.code] += 1
        if num_of[finding.code] <= MAX_FINDINGS_SHOWN:
            ids |= dict.fromkeys(finding.ids[:MAX_IMAGES_SHOWN])
    return tuple(ids)


def write_doctor_page(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    findings: Sequence[Finding],
    shares: Sequence[float],
    thumbs: Mapping[str, UInt8[np.ndarray, "h w 3"]],
    titles: Mapping[str, str],
) -> None:
    """Write a data set's page: facts, findings, shares of foreground, thumbs; OutputError."""
    of_code: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        of_code[finding.code].append(finding)
    counts, _ = np.histogram(np.asarray(shares), bins=20, range=(0.0, 1.0))
    drawn = {id_: Image.fromarray(thumb) for id_, thumb in thumbs.items()}
    page = render(
        "doctor.html",
        title=title,
        style=asset("doctor.css"),
        numbers=Counter(finding.severity for finding in findings),
        facts=facts,
        num_masks=len(shares),
        bars=counts.tolist(),
        kinds=[(titles.get(code, code), alike) for code, alike in of_code.items()],
        uris={id_: data_uri(one, "jpeg", quality=82) for id_, one in drawn.items()},
        most_findings=MAX_FINDINGS_SHOWN,
        most_images=MAX_IMAGES_SHOWN,
    )
    write_text(path, page)


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
    foreground: float  # share of the pixels
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
    drawn = small_overlay(image_HWC, mask_HW, THUMB_SIDE, strength=0.15)
    return data_uri(Image.fromarray(drawn), "jpeg", quality=82)


def write_predictions_page(folder: Path, entries: Sequence[Entry], *, model: str) -> Path:
    """Write `report.html` and `summary.csv` into a folder, and return the page's path."""
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
    names = [name for name in Entry.__dataclass_fields__ if name != "thumb"]
    write_text(folder / "summary.csv", csv_text(map(vars, entries), names))
    return folder / "report.html"
