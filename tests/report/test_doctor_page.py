"""The doctor's page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from binseg.report.rendering import (
    MAX_FINDINGS_SHOWN,
    MAX_IMAGES_SHOWN,
    images_shown,
    write_doctor_page,
)
from binseg.types import Finding


def finding(number: int) -> Finding:
    return Finding(
        severity="warning", code="shifted", text=f"number {number}", ids=(f"id{number}",)
    )


class Balance(HTMLParser):
    """Refuses tags that are closed in another order than they were opened."""

    VOID = frozenset({"meta", "img", "rect", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone(tmp_path: Path) -> None:
    """Nothing is fetched, names can't become markup, images are in the file, tags balance."""
    path = tmp_path / "check.html"
    evil = Finding(severity="error", code="odd<", text="<script>x</script>", ids=("a&b",))
    write_doctor_page(
        path,
        title="<b>data</b>",
        facts=[("kind", "folder <i>")],
        findings=[evil],
        shares=[0.1, 0.1, 1.0],
        thumbs={"a&b": np.zeros((5, 7, 3), np.uint8)},
        titles={"odd<": "Odd <i>"},
    )
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>data</b>" not in text
    assert "Odd &lt;i&gt;" in text
    assert 'src="data:image/jpeg;base64,' in text
    assert not re.search(r"(src|href)=\"?(http|/|\.)", text)
    reader = Balance()
    reader.feed(text)
    assert reader.open == []


def test_long_lists_are_cut_and_said() -> None:
    """Only what is shown is asked for."""
    findings = [finding(number) for number in range(MAX_FINDINGS_SHOWN + 3)]
    assert len(images_shown(findings)) == MAX_FINDINGS_SHOWN
    many = Finding(severity="note", code="turned", text="", ids=tuple(map(str, range(50))))
    assert images_shown([many]) == tuple(map(str, range(MAX_IMAGES_SHOWN)))


def test_the_rest_is_counted(tmp_path: Path) -> None:
    """A page says how many findings it leaves out; a sound data set says so."""
    path = tmp_path / "check.html"
    findings = [finding(number) for number in range(MAX_FINDINGS_SHOWN + 3)]
    write_doctor_page(path, title="x", facts=[], findings=findings, shares=[], thumbs={}, titles={})
    assert "and 3 more of this kind" in path.read_text(encoding="utf-8")
    write_doctor_page(path, title="x", facts=[], findings=[], shares=[], thumbs={}, titles={})
    assert "Nothing wrong found" in path.read_text(encoding="utf-8")
