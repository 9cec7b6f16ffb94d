"""HTML from text, where nothing is markup unless this module made it.

Names of files and columns come from strangers. Whatever is a plain `str` is escaped on its way into
an element; only what `el` returned goes in as it is.
"""

import json
import unicodedata
from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "img", "input", "meta"})


class Html(str):
    """Markup that `el` made, and that needs no escaping any more."""

    __slots__ = ()


def readable(text: str) -> str:
    r"""Replace what can't be written or shown: control characters, bytes that were no UTF-8.

    >>> readable("cat\x1b[31m\udcff")
    'cat\ufffd[31m\\udcff'
    """
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(
        "\ufffd" if unicodedata.category(letter) == "Cc" and letter not in "\n\t" else letter
        for letter in whole
    )


def join(parts: Iterable[str | None]) -> Html:
    """Put pieces one after another; plain text among them is escaped."""
    return Html("".join(_escaped(part) for part in parts if part is not None))


def el(name: str, *children: str | None, **attributes: str | float | bool | None) -> Html:
    """Make an element.

    Args:
        name: of the tag.
        children: elements, or text to be escaped; None is left out.
        attributes: `class_` is class, `aria_label` is aria-label; None and False are left out.

    >>> el("a", "<b>", href="#x", class_="link")
    '<a href="#x" class="link">&lt;b&gt;</a>'
    """
    head = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        head += " " + key.rstrip("_").replace("_", "-")
        if value is not True:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            head += f'="{escape(readable(text))}"'
    if name in _VOID:
        assert not children, f"{name} holds nothing"
        return Html(f"<{head}>")
    return Html(f"<{head}>{join(children)}</{name}>")


def json_block(id: str, data: object) -> Html:
    """Make a script element that holds data, and that no text in the data can end."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Html(f'<script type="application/json" id="{id}">{text}</script>')


def _escaped(part: str) -> str:
    return part if isinstance(part, Html) else escape(readable(part))
