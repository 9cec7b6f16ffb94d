"""The page of `binseg check`: findings with their images in one HTML file that works offline."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from binseg.storage import write_text
from binseg.types import Finding, Severity

MAX_FINDINGS_SHOWN = 24
"""Findings of one code that are shown in full; the rest are counted."""
MAX_IMAGES_SHOWN = 8
"""Images of one finding that are shown."""
_BINS = 20
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


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
    """Write the page.

    Args:
        path: the file to write.
        title: the data set that was checked.
        facts: label and text, a line each.
        findings: the worst first.
        shares: share of foreground of each mask, for the histogram.
        thumbs: small images by id, masks laid over; an id without one is only named.
        titles: heading of each code of the findings.

    Raises:
        OutputError: the file can't be written.
    """
    numbers = Counter(finding.severity for finding in findings)
    chips = "".join(
        f'<li class="{severity}"><b>{numbers[severity]}</b> '
        f"{severity}{'' if numbers[severity] == 1 else 's'}</li>"
        for severity in _SEVERITIES
    )
    rows = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in facts)
    verdict = "" if findings else '<p class="well">Nothing wrong found.</p>'
    body = (
        f"<header><p class=over>Dataset check</p><h1>{escape(title)}</h1><ul class=chips>{chips}"
        f"</ul></header>{verdict}<section class=card><h2>What is in it</h2>"
        f"<table>{rows}</table>{_histogram(shares)}</section>{_sections(findings, thumbs, titles)}"
    )
    page, style = (
        resources.files("binseg.report").joinpath(f"doctor.{kind}").read_text("utf-8")
        for kind in ("html", "css")
    )
    write_text(path, Template(page).substitute(title=escape(title), style=style, body=body))


def _sections(
    findings: Sequence[Finding],
    thumbs: Mapping[str, UInt8[np.ndarray, "h w 3"]],
    titles: Mapping[str, str],
) -> str:
    of_code: dict[str, list[Finding]] = {}
    for finding in findings:
        of_code.setdefault(finding.code, []).append(finding)
    uris = {id_: _data_uri(thumb) for id_, thumb in thumbs.items()}
    parts = []
    for code, alike in of_code.items():
        severity = alike[0].severity
        shown = "".join(_finding(x, uris) for x in alike[:MAX_FINDINGS_SHOWN])
        rest = len(alike) - MAX_FINDINGS_SHOWN
        more = f"<p class=more>and {rest} more of this kind (see --json)</p>" if rest > 0 else ""
        number = f" <span class=num>{len(alike)}</span>" if len(alike) > 1 else ""
        advice = next((x.advice for x in alike if x.advice), "")
        told = f"<p class=advice>{escape(advice)}</p>" if advice else ""
        title = escape(titles.get(code, code))
        parts.append(
            f'<section class="card {severity}"><h2><span class=badge>{severity}</span> '
            f"{title}{number}</h2>{told}{shown}{more}</section>"
        )
    return "".join(parts)


def _finding(finding: Finding, uris: Mapping[str, str]) -> str:
    figures = "".join(
        f'<figure><img src="{uris[id_]}" alt="{escape(id_)}" loading=lazy>'
        f"<figcaption>{escape(id_)}</figcaption></figure>"
        for id_ in finding.ids[:MAX_IMAGES_SHOWN]
        if id_ in uris
    )
    strip = f"<div class=strip>{figures}</div>" if figures else ""
    files = "".join(f"<li>{escape(name)}</li>" for name in finding.files)
    word = "file" if len(finding.files) == 1 else "files"
    # A name or two need no click.
    opened = " open" if len(finding.files) <= 2 and not figures else ""
    named = (
        f"<details{opened}><summary>{len(finding.files)} {word}</summary><ul>{files}</ul></details>"
        if files
        else ""
    )
    return f"<article><p>{escape(finding.text)}</p>{strip}{named}</article>"


def _histogram(shares: Sequence[float]) -> str:
    """Show how many masks have which share of foreground."""
    if not shares:
        return ""
    counts, _ = np.histogram(np.asarray(shares), bins=_BINS, range=(0.0, 1.0))
    highest = max(1, int(counts.max()))
    bars = "".join(
        f'<rect x="{100 * at / _BINS + 0.4:.2f}" y="{30 - 28 * num / highest:.2f}" '
        f'width="{100 / _BINS - 0.8:.2f}" height="{28 * num / highest:.2f}">'
        f"<title>{at / _BINS:.0%} to {(at + 1) / _BINS:.0%}: {num} masks</title></rect>"
        for at, num in enumerate(counts.tolist())
    )
    return (
        f"<figure class=histogram><figcaption>Foreground share of {len(shares)} masks (highest "
        f"bar: {highest})</figcaption>"
        f'<svg viewBox="0 0 100 30.4" preserveAspectRatio="none" role="img" '
        f'aria-label="Histogram of foreground shares">{bars}'
        '<line x1="0" x2="100" y1="30.2" y2="30.2"/></svg>'
        "<div class=axis><span>0%</span><span>50%</span><span>100%</span></div></figure>"
    )


def _data_uri(thumb_HW3: UInt8[np.ndarray, "h w 3"]) -> str:
    out = io.BytesIO()
    Image.fromarray(thumb_HW3).save(out, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
