"""The page in a real Chromium, without a screen: what readers do with it, and that it is silent.

Needs playwright and a Chromium of the system; skipped where either is absent.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.metrics import count, dice, pool, score_all

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of this file."""
    with playwright.sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, page: Path) -> Iterator[Open]:
    """Open the page; afterwards nothing may be on its console, and nothing have been fetched."""
    opened, said, fetched = [], [], []

    def visit(size: dict[str, int] = DESKTOP, scheme: str = "light", **settings: Any) -> Any:
        tab = browser.new_page(viewport=size, color_scheme=scheme, **settings)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: fetched.append(request.url))
        tab.goto(page.as_uri())
        opened.append(tab)
        return tab

    yield visit
    for tab in opened:
        tab.close()
    assert said == []
    assert {url for url in fetched if not url.startswith("data:image/")} <= {page.as_uri()}


def ids_of(tab: Any) -> list[str]:
    """The names in the table's first column, as they are shown."""
    names: list[str] = tab.locator("#rows .name").all_text_contents()
    return names


def column_of(tab: Any, place: int) -> list[str]:
    """The texts of a column of figures."""
    texts: list[str] = tab.locator(f"#rows td:nth-child({place + 1})").all_text_contents()
    return texts


def test_slider_tells_what_that_threshold_scores(open_page: Open, made_up: Any) -> None:
    """The figures beside the slider are those of counting all images anew at its threshold."""
    tab = open_page()
    for step in (0, 200, 512, 900, 1023):
        _check_threshold(tab, made_up, step)


def _check_threshold(tab: Any, made_up: Any, step: int) -> None:
    tab.locator("#threshold-slider").fill(str(step))
    everywhere = np.ones_like(made_up.truth_NHW[0])
    counts = [
        count(probability_HW > step / 1024, truth_HW, everywhere)
        for probability_HW, truth_HW in zip(made_up.probability_NHW, made_up.truth_NHW, strict=True)
    ]
    total = score_all(pool(counts))
    names = ("dice", "iou", "precision", "recall", "mean_iou")
    mean = float(np.mean([dice(one) for one in counts]))
    expected = {"mean_dice": mean, **{name: total[name] for name in names}}
    for name, value in expected.items():
        shown = tab.locator(f"[data-score={name}]").text_content()
        assert float(shown) == pytest.approx(value, abs=5.1e-5), name
    assert tab.locator("#threshold-value").text_content() == f"{step / 1024:.3f}"
    assert tab.locator("#sweep-line").get_attribute("x1") == f"{100 * step / 1024:.3f}%"


def test_slider_goes_back(open_page: Open, made_up: Any) -> None:
    """Keys move the slider, changes are signed, the button brings the first threshold back."""
    tab = open_page()
    tab.locator("#threshold-slider").focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    assert tab.locator("#threshold-value").text_content() == f"{515 / 1024:.3f}"
    assert tab.locator("[data-change=recall]").text_content()[0] in "+\u2212"
    tab.locator("#threshold-reset").click()
    assert tab.locator("[data-change=recall]").text_content() == "as used"
    shown = tab.locator("[data-score=mean_dice]").text_content()
    assert shown == f"{made_up.report.mean['original']['dice']:.4f}"


def test_table_shows_every_image(open_page: Open, made_up: Any) -> None:
    """All pages together hold each image once, with its own Dice, the worst first."""
    tab = open_page()
    names, scores = ids_of(tab), column_of(tab, 1)
    assert len(names) == 50
    assert tab.locator("#previous").is_disabled()
    tab.locator("#next").click()
    names, scores = names + ids_of(tab), scores + column_of(tab, 1)
    assert tab.locator("#next").is_disabled()
    values = [one.scores["original"]["dice"] for one in made_up.report.images]
    assert scores == [f"{value:.4f}" for value in sorted(values)]
    assert len(set(names)) == len(values)
    by_name = dict(zip(names, scores, strict=True))
    assert by_name["image_7"] == f"{values[7]:.4f}"


def test_hostile_names_are_shown_as_they_are(open_page: Open, made_up: Any) -> None:
    """Names that look like markup stand in the table letter by letter, and nothing runs."""
    tab = open_page()
    names = ids_of(tab)
    tab.locator("#next").click()
    names += ids_of(tab)
    hostile = [one.id for one in made_up.report.images[-6:]]
    assert set(hostile[:4]) <= set(names)
    assert tab.title() == "A <model> & its data"


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_sorting_by_keyboard(open_page: Open, key: str) -> None:
    """A column's button sorts upwards, again downwards, and says so; one column at a time."""
    tab = open_page()
    heads = tab.locator("table.images thead th")
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    heads.nth(3).locator("button").focus()
    tab.keyboard.press(key)
    assert heads.nth(3).get_attribute("aria-sort") == "ascending"
    assert heads.nth(1).get_attribute("aria-sort") is None
    rising = [float(text) for text in column_of(tab, 3)]
    assert rising == sorted(rising)
    tab.keyboard.press(key)
    assert heads.nth(3).get_attribute("aria-sort") == "descending"
    falling = [float(text) for text in column_of(tab, 3)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] >= rising[-1]


def test_names_sort_as_people_count(open_page: Open) -> None:
    """image_2 stands before image_10."""
    tab = open_page()
    tab.locator("table.images thead th").first.locator("button").click()
    names = [name for name in ids_of(tab) if name.startswith("image_")]
    numbers = [int(name.removeprefix("image_")) for name in names]
    assert numbers == sorted(numbers)


def test_filters(open_page: Open, made_up: Any) -> None:
    """Find looks at names and columns; Show takes kinds; both together; a live line counts."""
    tab = open_page()
    status = tab.locator("#status")
    tab.locator("#search").fill("IMAGE_1")
    assert set(ids_of(tab)) == {"image_1", *(f"image_{n}" for n in range(10, 20))}
    assert status.text_content() == "1 to 11 of 11 (70 in all)"
    tab.locator("#search").fill("breed 2")
    assert len(ids_of(tab)) == 23
    tab.locator("#search").fill("")
    tab.locator("#show").select_option("missed")
    assert ids_of(tab) == ["image_1"]
    tab.locator("#show").select_option("alarm")
    assert ids_of(tab) == ["image_0"]
    tab.locator("#show").select_option("poor")
    values = [one.scores["original"]["dice"] for one in made_up.report.images]
    assert len(ids_of(tab)) == min(50, sum(value < 0.5 for value in values))
    tab.locator("#search").fill("no such name")
    assert status.text_content() == "No image fits."
    assert ids_of(tab) == []


def test_viewer_by_keyboard(open_page: Open) -> None:
    """Enter opens an image, arrows move the slider, Escape closes and gives the focus back."""
    tab = open_page()
    card = tab.locator("button.open").nth(1)
    card.focus()
    tab.keyboard.press("Enter")
    viewer = tab.locator("#viewer")
    assert viewer.is_visible()
    assert tab.locator("#viewer-id").text_content() == card.get_attribute("data-id")
    assert tab.evaluate("document.activeElement.id") == "wipe"
    clip = "getComputedStyle(document.getElementById('stage-left')).clipPath"
    assert tab.evaluate(clip) == "inset(0px 50% 0px 0px)"
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(clip) == "inset(0px 49% 0px 0px)"
    tab.locator("[name=mode][value=errors]").check()
    assert tab.locator("#stage-errors").is_visible()
    assert not tab.locator("#stage-left").is_visible()
    before = tab.locator("#stage-image").get_attribute("src")
    tab.locator("#viewer-next").press("Enter")
    assert tab.locator("#stage-image").get_attribute("src") != before
    tab.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert tab.evaluate("document.activeElement.dataset.image") == "1"


def test_viewer_by_pointer(open_page: Open) -> None:
    """Dragging over the image moves the slider; a click beside the viewer closes it."""
    tab = open_page()
    tab.locator("#show").select_option("image")
    tab.locator("#rows button").first.click()
    box = tab.locator("#stage").bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    tab.mouse.up()
    assert tab.locator("#wipe").input_value() == "25"
    tab.mouse.click(5, 5)
    assert not tab.locator("#viewer").is_visible()


def test_no_sideways_scrolling(open_page: Open) -> None:
    """At no width is the page wider than the screen, nor is the open viewer."""
    tab = open_page()
    for width in (320, 360, 768, 1280, 1920):
        tab.set_viewport_size({"width": width, "height": 740})
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        tab.locator("button.open").first.click()
        box = tab.locator("#viewer").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        tab.keyboard.press("Escape")


def test_dark_scheme(open_page: Open) -> None:
    """The page follows the reader's scheme: dark ground with light text, and the other way."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(scheme=scheme).evaluate(ground) for scheme in ("light", "dark"))
    brightness = [sum(int(x) for x in text[4:-1].split(",")) for text in (light, dark)]
    assert brightness[0] > 600
    assert brightness[1] < 120


def test_without_scripts(open_page: Open, made_up: Any) -> None:
    """Figures, charts and images are there where scripts are off, and dead controls are not."""
    tab = open_page(java_script_enabled=False)
    assert f"{made_up.report.mean['original']['dice']:.4f}" in tab.locator(".hero").text_content()
    assert tab.locator("svg.axes").count() >= 5
    assert not tab.locator("#threshold-slider").is_visible()
    assert not tab.locator("#search").is_visible()
    assert tab.locator("noscript").count() == 1


def test_print(open_page: Open) -> None:
    """On paper nothing stays folded but the recipe, and the page prints."""
    tab = open_page(scheme="dark")
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("nav").is_visible()
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details[open] summary").all_text_contents() == ["Data", "Model card"]
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details[open]").count() == 0
    assert tab.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_accessibility(open_page: Open, axe: str, size: dict[str, int], scheme: str) -> None:
    """axe-core finds nothing: names, roles, contrast, order of headings, reach by keyboard."""
    tab = open_page(size, scheme)
    tab.evaluate(axe)
    assert _violations(tab) == []
    tab.locator("button.open").first.click()
    assert _violations(tab) == []


def _violations(tab: Any) -> list[str]:
    found = tab.evaluate("axe.run(document).then(result => result.violations)")
    return [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]]
