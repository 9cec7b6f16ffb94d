"""The page of `binseg check`: findings with their images in one HTML file that works offline."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from binseg.report.rendering import asset, data_uri, render
from binseg.storage import write_text
from binseg.types import Finding

MAX_FINDINGS_SHOWN = 24
"""Findings of one code that are shown in full; the rest are counted."""
MAX_IMAGES_SHOWN = 8
"""Images of one finding that are shown."""


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
    """Write the page of the data set `title`; OutputError if the disk refuses.

    `facts` are label and text, `findings` the worst first, `shares` the share of foreground of each
    mask, `thumbs` small images by id with their masks, `titles` headings by code of the findings.
    """
    of_code: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        of_code[finding.code].append(finding)
    counts, _ = np.histogram(np.asarray(shares), bins=20, range=(0.0, 1.0))
    page = render(
        "doctor.html",
        title=title,
        style=asset("doctor.css"),
        numbers=Counter(finding.severity for finding in findings),
        facts=facts,
        num_masks=len(shares),
        bars=counts.tolist(),
        kinds=[(titles.get(code, code), alike) for code, alike in of_code.items()],
        uris={
            id_: data_uri(Image.fromarray(thumb), "jpeg", quality=82)
            for id_, thumb in thumbs.items()
        },
        most_findings=MAX_FINDINGS_SHOWN,
        most_images=MAX_IMAGES_SHOWN,
    )
    write_text(path, page)
