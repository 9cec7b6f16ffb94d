"""The doctor's page: findings with their images in one HTML file that opens anywhere, offline."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from binseg.storage import write_text
from binseg.types import Finding, Severity

__all__ = ["MAX_FINDINGS_SHOWN", "MAX_IMAGES_SHOWN", "images_shown", "write_doctor_page"]

MAX_FINDINGS_SHOWN = 24
"""Findings of one kind that are shown in full; the rest are counted."""
MAX_IMAGES_SHOWN = 8
"""Images that are shown for one finding."""
_BINS = 20
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_PLURAL: Mapping[Severity, str] = {"error": "errors", "warning": "warnings", "note": "notes"}
_TITLES: Mapping[str, str] = {
    "all-ignored": "Nothing but ignored pixels",
    "all-shifted": "All masks shifted",
    "contradiction": "One image, different masks",
    "duplicate": "The same image more than once",
    "empty-mask": "Empty masks",
    "full-mask": "Full masks",
    "inverted": "Masks that look inverted",
    "leak": "The same image in two splits",
    "long": "Very long images",
    "misfit": "Masks that don't fit their image",
    "mixed-channels": "Mixed channels",
    "mixed-types": "Mixed pixel types",
    "near-duplicate": "Nearly the same image",
    "near-leak": "Nearly the same image in two splits",
    "no-mask": "Images without a mask",
    "no-mask-file": "Images without a mask",
    "no-image-file": "Masks without an image",
    "outlier": "Masks unlike the others",
    "page-seam": "Neighbouring pages in two splits",
    "pages": "Stacks and masks of different length",
    "patch-seam": "Neighbouring patches in two splits",
    "rare-foreground": "Very little foreground",
    "shared-mask": "One mask, different images",
    "shifted": "Shifted masks",
    "size": "Mask and image of different size",
    "split": "Splits",
    "tiny": "Tiny images",
    "torn-group": "Groups in two splits",
    "turned": "Turned by EXIF",
    "unreadable": "Unreadable files",
    "unusable": "The data set can't be used",
    "values": "Strange mask values",
}


def images_shown(findings: Sequence[Finding]) -> tuple[str, ...]:
    """List the ids whose images the page shows, so that no others need be decoded."""
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
) -> None:
    """Write the page.

    Args:
        path: where to.
        title: what was examined.
        facts: label and text, a line each.
        findings: the worst first.
        shares: of foreground, one a mask, for the histogram.
        thumbs: small images by id, masks laid over; an id without one is named only.

    Raises:
        OutputError: the file can't be written.
    """
    numbers = Counter(finding.severity for finding in findings)
    chips = "".join(
        f'<li class="{severity}"><b>{numbers[severity]}</b> '
        f"{severity if numbers[severity] == 1 else _PLURAL[severity]}</li>"
        for severity in _SEVERITIES
    )
    rows = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in facts)
    verdict = "" if findings else '<p class="well">Nothing wrong found.</p>'
    body = (
        f"<header><p class=over>Dataset check</p><h1>{escape(title)}</h1><ul class=chips>{chips}"
        f"</ul></header>{verdict}<section class=card><h2>What is in it</h2>"
        f"<table>{rows}</table>{_histogram(shares)}</section>{_sections(findings, thumbs)}"
    )
    write_text(path, _PAGE.format(title=escape(title), style=_STYLE, body=body))


def _sections(findings: Sequence[Finding], thumbs: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> str:
    # By severity first: a kind is written once for each severity that it has.
    kinds = dict.fromkeys((finding.severity, finding.code) for finding in findings)
    uris = {id_: _data_uri(thumb) for id_, thumb in thumbs.items()}
    parts = []
    for severity, code in kinds:
        fellows = [x for x in findings if (x.severity, x.code) == (severity, code)]
        shown = "".join(_finding(x, uris) for x in fellows[:MAX_FINDINGS_SHOWN])
        rest = len(fellows) - MAX_FINDINGS_SHOWN
        more = f"<p class=more>and {rest} more of this kind (see --json)</p>" if rest > 0 else ""
        number = f" <span class=num>{len(fellows)}</span>" if len(fellows) > 1 else ""
        advice = next((x.advice for x in fellows if x.advice), "")
        told = f"<p class=advice>{escape(advice)}</p>" if advice else ""
        title = escape(_TITLES.get(code, code))
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
    """Draw how many masks have which share of foreground."""
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


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - dataset check</title><style>{style}</style></head>
<body><main>{body}</main></body></html>
"""
_STYLE = """
:root{--paper:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#dfe3e8;--bar:#2f7fc1;
--error:#b3261e;--warning:#8a5a00;--note:#1f6391;--error-bg:#fbe9e7;--warning-bg:#fdf1d8;
--note-bg:#e4f0f9}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1d2125;--ink:#e8eaed;
--soft:#a2abb5;--line:#343a41;--bar:#5aa9e6;--error:#ff8a80;--warning:#f2c14e;--note:#7cc0f2;
--error-bg:#3b1f1d;--warning-bg:#372b12;--note-bg:#17303f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.6rem;line-height:1.25;margin:.1em 0 .6em;overflow-wrap:anywhere}
h2{font-size:1.1rem;line-height:1.4;margin:0 0 .5em}
p{margin:.3em 0}
.over{color:var(--soft);margin:0}
.chips{display:flex;flex-wrap:wrap;gap:8px;list-style:none;margin:0 0 20px;padding:0}
.chips li,.badge{border-radius:6px;padding:3px 10px;background:var(--bg);color:var(--tone)}
.badge{font-size:.75rem;font-weight:600;margin-right:4px;vertical-align:.1em}
.error{--tone:var(--error);--bg:var(--error-bg)}
.warning{--tone:var(--warning);--bg:var(--warning-bg)}
.note{--tone:var(--note);--bg:var(--note-bg)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;
margin:0 0 16px}
.well{padding:12px 16px;border-radius:10px;background:var(--note-bg);color:var(--note)}
.num{color:var(--soft);font-weight:400}
.advice{color:var(--soft);margin-bottom:.8em}
.more{color:var(--soft)}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:4px 12px 4px 0;overflow-wrap:anywhere}
th{color:var(--soft);font-weight:500;width:7.5rem;overflow-wrap:normal}
article{border-top:1px solid var(--line);padding:10px 0}
article p{overflow-wrap:anywhere}
.strip{display:flex;flex-wrap:wrap;gap:10px;margin:8px 0}
.strip figure{margin:0;width:148px}
.strip img{display:block;width:148px;height:148px;object-fit:contain;border-radius:6px;
background:var(--paper);border:1px solid var(--line)}
figcaption{font-size:.8rem;color:var(--soft);overflow-wrap:anywhere;line-height:1.3;
margin-top:3px}
details{font-size:.85rem;color:var(--soft)}
summary{cursor:pointer;padding:4px 0}
details ul{margin:.2em 0;padding-left:1.2em;overflow-wrap:anywhere}
.histogram{margin:16px 0 0;max-width:640px}
.histogram svg{width:100%;height:120px;display:block;margin-top:6px}
.histogram rect{fill:var(--bar)}
.histogram line{stroke:var(--line);stroke-width:1px;vector-effect:non-scaling-stroke}
.axis{display:flex;justify-content:space-between;font-size:.8rem;color:var(--soft)}
@media(max-width:520px){main{padding:16px 10px 48px}.card{padding:12px}
.strip{gap:8px}.strip figure{width:calc(50% - 4px)}
.strip img{width:100%;height:auto;aspect-ratio:1}
tr{display:block;padding:4px 0}th,td{display:block;width:auto;padding:0}}
@media print{.card{break-inside:avoid}}
"""
