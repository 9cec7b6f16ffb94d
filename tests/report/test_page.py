"""The page as text: nothing in it can run but its own script, and all parts are optional."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.evaluation.report_files import NUM_IMAGES
from binseg.report.charts import Axis
from binseg.report.page import write_page
from binseg.report.rendering import environment, readable
from binseg.types import Report


class Outline(HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))


def test_plain_text_is_escaped() -> None:
    """Only what a template says is markup; quotes and brackets of what it inserts are not."""
    made = (
        environment()
        .from_string('<p title="{{ a }}">{{ b }}</p>')
        .render(a='"><script>', b="<&\x00")
    )
    assert made == '<p title="&#34;&gt;&lt;script&gt;">&lt;&amp;\ufffd</p>'
    data = environment().from_string("{{ x|tojson }}").render(x="</script><!--")
    assert "<" not in data


def test_names_that_are_no_text_can_be_written() -> None:
    """Control characters and stray bytes of file names become something that UTF-8 can hold."""
    assert readable("a\x00\udc80\n").encode() == "a\ufffd\\udc80\n".encode()


def test_hostile_names_add_nothing(page: Path) -> None:
    """A page of hostile names has the one script that runs, no handlers, and no foreign address."""
    outline = Outline(page.read_text("utf-8"))
    running = [a for tag, a in outline.tags if tag == "script" and "type" not in a]
    assert len(running) == 1
    for tag, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, tag
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/")), address
    cards = [a for tag, a in outline.tags if tag == "button" and a.get("class") == "open"]
    num_images = sum(tag == "img" for tag, _ in outline.tags)
    assert num_images == 2 * len(cards) + 4, "two a card, and four layers of the viewer"


def test_ids_are_unique(page: Path) -> None:
    """Every id is there once, and every label, link and description points to one."""
    tags = Outline(page.read_text("utf-8")).tags
    ids = Counter(a["id"] for _, a in tags if "id" in a)
    assert [name for name, times in ids.items() if times > 1] == []
    for _, attributes in tags:
        for name in ("for", "aria-labelledby"):
            assert attributes.get(name) is None or attributes[name] in ids
        link = attributes.get("href")
        assert link is None or link.removeprefix("#") in ids


def test_policy_names_style_and_script(page: Path) -> None:
    """The hashes in the security policy are those of the one style and the one script."""
    text = page.read_text("utf-8")
    for tag in ("style", "script"):
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        assert len(inner) == 1
        digest = base64.b64encode(hashlib.sha256(inner[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}" in unescape(text)


def test_figures_are_on_the_page(page: Path, made_up: Any) -> None:
    """Headline, intervals and rules can be read without a script."""
    report = made_up.report
    text = re.sub(r"<script.*?</script>", "", page.read_text("utf-8"), flags=re.DOTALL)
    for average in (report.mean, report.pooled):
        for name in ("dice", "iou"):
            assert f"{average['original'][name]:.4f}" in text
    interval = report.intervals["mean"]["original"]["dice"]
    assert f"{interval.low:.3f}\u2013{interval.high:.3f}" in text
    for rule in ("Empty masks", "Border class", "tuned on validation", "1 with an object of which"):
        assert rule in text


def test_a_bare_report_makes_a_page(made_up: Any, tmp_path: Path) -> None:
    """Without intervals, outlines, objects, sweep, slices, images and background."""
    full: Report = made_up.report
    images = tuple(replace(one, outline=None, objects=None, columns={}) for one in full.images)
    bare = replace(full, images=images, intervals={}, outline={}, objects={}, calibration=None,
                   sweep=None, slices=())  # fmt: skip
    write_page(tmp_path / "bare.html", report=bare)
    text = (tmp_path / "bare.html").read_text("utf-8")
    ids = [a.get("id") for tag, a in Outline(text).tags if tag == "section"]
    assert [name for name in ids if name] == ["scores", "histogram", "images", "rules"]


def test_one_image_makes_a_page(invent: Callable[[Sequence[str]], Any], tmp_path: Path) -> None:
    """One image has no interval; its page says so."""
    report: Report = invent(["alone"]).report
    write_page(tmp_path / "one.html", report=report)
    assert "tells no interval" in (tmp_path / "one.html").read_text("utf-8")


def test_size_stays_small(made_up: Any, tmp_path: Path) -> None:
    """368 images with 48 images of a megapixel, of noise, stay below sixteen megabytes."""
    report: Report = made_up.report
    item = made_up.items[5]
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    mask = noise[:, :, 0] > 128
    masks = {"truth_HW": mask, "prediction_HW": ~mask, "valid_HW": np.ones_like(mask)}
    large = [replace(item, id=str(n), image_HWC=noise, **masks) for n in range(NUM_IMAGES)]
    images = tuple(replace(report.images[n % 70], id=f"image {n:09}") for n in range(368))
    write_page(tmp_path / "p.html", report=replace(report, images=images), galleries=[("", large)])
    assert (tmp_path / "p.html").stat().st_size < 16_000_000


def tokens(css: str) -> list[dict[str, tuple[int, ...]]]:
    """The colours of the light and the dark scheme."""
    found = []
    for block in re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[:2]:
        pairs = re.findall(r"--([a-z-]+): #([0-9a-f]{3,6})", block)
        whole = {n: c if len(c) == 6 else "".join(2 * x for x in c) for n, c in pairs}
        found.append({n: tuple(bytes.fromhex(c)) for n, c in whole.items()})
    return found


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG 2 contrast of two colours."""

    def luminance(colour: tuple[int, ...]) -> float:
        unit = np.array(colour) / 255
        linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(scheme: int) -> None:
    """Text has 4.5 to 1 on all grounds it stands on; lines and controls have 3 to 1."""
    css = resources.files("binseg.report").joinpath("assets", "page.css").read_text("utf-8")
    colour = tokens(css)[scheme]
    for text, ground in (
        *((text, ground) for text in ("ink", "soft") for ground in ("paper", "card", "raised")),
        ("accent", "card"), ("accent", "tint"), ("accent", "raised"), ("warn", "warn-bg"),
        ("good", "good-bg"), ("ink", "tint"),
    ):  # fmt: skip
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    for line in ("a", "b", "c", "d", "ink", "control"):
        assert contrast(colour[line], colour["card"]) >= 3, line


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.62, 0.88], [0.6, 0.7, 0.8, 0.9]),
        ([0, 77], [0, 20, 40, 60, 80]),
        ([3, 3], [3, 4]),
        ([], [0, 0.5, 1]),
    ],
)
def test_axes_have_round_numbers(values: list[float], ticks: list[float]) -> None:
    """All values have their place between round ticks."""
    axis = Axis.around(values, "")
    assert [at for at, _ in axis.ticks] == pytest.approx(ticks)
    assert all(0 <= axis.share(value) <= 1 for value in values)
