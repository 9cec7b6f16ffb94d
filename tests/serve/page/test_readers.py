"""The page for every reader: phones, dark rooms, keyboards, screen readers, careful owners."""

import re
from typing import Any

import pytest

from .drawings import TEXT, png
from .driving import DESKTOP, PHONE, Open, give, settle, show, until

WATCH_BITMAPS = """
window.numOpen = 0;
const make = window.createImageBitmap;
window.createImageBitmap = async (...given) => {
  const bitmap = await make(...given);
  window.numOpen += 1;
  return bitmap;
};
const close = ImageBitmap.prototype.close;
ImageBitmap.prototype.close = function () { window.numOpen -= 1; close.call(this); };
"""


def test_no_sideways_scrolling(open_page: Open) -> None:
    """At no width is the page wider than the screen, at the start or with an image."""
    tab = open_page()
    tab.locator("#card-body .facts").wait_for()
    for shown in (False, True):
        if shown:
            show(tab, png(0, "a_very_long_name_" * 8 + ".png"), png(1), png(2))
        for width in (320, 360, 899, 900, 1920):
            tab.set_viewport_size({"width": width, "height": 740})
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            box = tab.locator("#stage" if shown else "#start").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_the_result_and_its_files_are_above_the_fold(open_page: Open) -> None:
    """On a laptop of 1280 x 800 all downloads are seen without scrolling."""
    tab = open_page({"width": 1280, "height": 800})
    show(tab, png(0), png(1))
    until(tab, "!document.getElementById('save-all-cutouts').hidden")
    for button in ("mask", "cutout", "overlay", "polygons", "all", "all-cutouts"):
        box = tab.locator(f"#save-{button}").bounding_box()
        assert box["y"] + box["height"] <= 800, button


def test_dark(open_page: Open) -> None:
    """The page follows the reader's scheme; the button chooses the other one, and that is kept."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(scheme=scheme) for scheme in ("light", "dark"))
    brightness = [
        sum(int(value) for value in re.findall(r"\d+", tab.evaluate(ground))[:3])
        for tab in (light, dark)
    ]
    assert brightness[0] > 600
    assert brightness[1] < 120
    seen = light.evaluate(ground)
    button = dark.locator("#theme")
    button.click()
    assert button.get_attribute("aria-label") == "Colours: light"
    assert dark.evaluate(ground) == seen
    dark.reload()
    assert dark.evaluate(ground) == seen


def test_keyboard_only(open_page: Open) -> None:
    """Skip link, example, zoom, threshold, switches and download need no pointer."""
    tab = open_page()
    tab.locator("#example-list button").first.wait_for()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the image"
    tab.keyboard.press("Enter")
    _tab_to(tab, "#example-list button")
    tab.keyboard.press("Enter")
    settle(tab)
    _tab_to(tab, "#stage")
    tab.keyboard.press("+")
    assert not tab.locator("#zoom-fit").is_disabled()
    _tab_to(tab, "#save-mask")
    with tab.expect_download():
        tab.keyboard.press("Enter")
    until(tab, "document.getElementById('status').textContent === 'Saved.'")
    _tab_to(tab, "#threshold")
    before = tab.locator("#threshold-value").text_content()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#threshold-value").text_content() != before
    _tab_to(tab, "[name=mode]")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("[value=outline]").is_checked()
    _tab_to(tab, "#largest")
    tab.keyboard.press("Space")
    assert tab.locator("#largest").is_checked()


def _tab_to(tab: Any, wanted: str, most: int = 40) -> None:
    for _ in range(most):
        tab.keyboard.press("Tab")
        if tab.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
            return
    raise AssertionError(f"{wanted} isn't reached by the keyboard")


def test_memory_is_given_back(open_page: Open) -> None:
    """After all images were removed, no bitmap is open."""
    tab = open_page()
    tab.add_init_script(WATCH_BITMAPS)
    tab.reload()
    tab.locator("#example-list button").first.wait_for()
    show(tab, png(1), png(2), png(3))
    until(tab, "document.querySelectorAll('.tile.drawn').length === 3")
    tab.locator(".tile").nth(2).click()
    settle(tab)
    tab.locator("#clear").click()
    until(tab, "window.numOpen === 0")


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_accessibility(open_page: Open, axe: str, size: dict[str, int], scheme: str) -> None:
    """axe-core finds nothing wrong: light at the start, dark with a mask, both with a failure."""
    tab = open_page(size, scheme)
    tab.locator("#example-list button").first.wait_for()
    tab.evaluate(axe)
    if scheme == "light":
        assert violations(tab) == []
    show(tab, png())
    tab.locator("#wipe").click()
    if scheme == "dark":
        assert violations(tab) == []
    give(tab, TEXT)
    tab.locator("#trouble").wait_for()
    assert violations(tab) == []


def violations(tab: Any) -> list[str]:
    """What axe-core finds wrong with the page as it is."""
    found = tab.evaluate("axe.run(document).then(result => result.violations)")
    return [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]]
