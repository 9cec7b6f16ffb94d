"""The image on the stage: previews, the wipe, zoom and the ways to show a mask."""

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .drawings import HEIGHT, WIDTH, draw_discs, encode, png
from .driving import Open, set_level, settle, show, until


def test_what_browsers_cannot_show(open_page: Open) -> None:
    """A 16-bit TIFF is seen by the server's preview, in its units; a turned photo as meant."""
    tab = open_page()
    deep = draw_discs()[:, :, 0].astype(np.uint16) * 16
    exif = _turned()
    scale = {"resolution_unit": "cm", "x_resolution": 20_000, "y_resolution": 10_000}
    cells = encode(deep, "TIFF", **scale)
    show(tab, ("cells.tif", "image/tiff", cells), ("photo.jpg", "image/jpeg", exif))
    until(tab, "document.querySelectorAll('.tile.drawn').length === 2")
    facts = tab.locator("#facts").text_content()
    assert f"of {WIDTH} \u00d7 {HEIGHT}" in facts
    real, pixels = re.match(r"([0-9,.]+) \u00b5m\u00b2: ([0-9,]+) px of", facts).groups()  # type: ignore[union-attr]
    assert float(real.replace(",", "")) == pytest.approx(int(pixels.replace(",", "")) / 2, rel=1e-3)
    assert _colours(tab) > 20
    tab.locator(".tile").nth(1).click()
    settle(tab)
    facts = tab.locator("#facts").text_content()
    assert f"of {HEIGHT} \u00d7 {WIDTH}" in facts
    assert "\u00b5m" not in facts


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn, as phones store what is held upright
    return encode(draw_discs(), "JPEG", exif=exif)


def _colours(tab: Any) -> int:
    """How many colours are in the middle of the stage."""
    found: int = tab.evaluate(
        """() => {
          const canvas = document.getElementById("canvas");
          const [x, y] = [canvas.width / 2 - 100, canvas.height / 2 - 100];
          const copy = new OffscreenCanvas(200, 200).getContext("2d", { willReadFrequently: true });
          copy.drawImage(canvas, -x, -y);
          const { data } = copy.getImageData(0, 0, 200, 200);
          return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    return found


def test_wipe(open_page: Open) -> None:
    """Left of the line is the image alone, right of it the mask; keys and pointer move it."""
    tab = open_page()
    show(tab, png())
    set_level(tab, 0)
    tab.locator("#opacity").fill("100")
    tab.locator("#wipe").click()
    handle = tab.locator("#wipe-handle")
    assert handle.get_attribute("aria-valuenow") == "50"
    left, right = _tinted(tab)
    assert left < 0.02
    assert right > 0.9
    handle.press("End")
    assert handle.get_attribute("aria-valuetext") == "100 % before, 0 % after"
    assert max(_tinted(tab)) < 0.02
    handle.press("Home")
    assert min(_tinted(tab)) > 0.9
    handle.press("PageUp")
    assert handle.get_attribute("aria-valuenow") == "10"
    box = tab.locator("#stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] * 0.1, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.25, middle, steps=3)
    tab.mouse.up()
    assert handle.get_attribute("aria-valuenow") == "25"


def _tinted(tab: Any) -> tuple[float, float]:
    """The share of orange among the image's pixels left and right of the stage's middle."""
    shares = tab.evaluate(
        """() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(() => {
          const canvas = document.getElementById("canvas");
          const share = (x) => {
            const often = { willReadFrequently: true };
            const copy = new OffscreenCanvas(120, 40).getContext("2d", often);
            copy.drawImage(canvas, -x, -canvas.height / 2);
            const { data } = copy.getImageData(0, 0, 120, 40);
            let orange = 0;
            for (let i = 0; i < data.length; i += 4) {
              if (data[i] === 230 && data[i + 1] === 159 && data[i + 2] === 0) orange += 1;
            }
            return orange / (data.length / 4);
          };
          resolve([share(canvas.width / 2 - 160), share(canvas.width / 2 + 40)]);
        })))"""
    )
    return shares[0], shares[1]


def test_zoom_to_pixels(open_page: Open) -> None:
    """Wheel, buttons and keys zoom; enlarged pixels are squares of one colour."""
    tab = open_page()
    show(tab, png())
    tab.locator("#opacity").fill("0")
    zoom = tab.locator("#zoom")
    whole = zoom.text_content()
    box = tab.locator("#stage").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.wheel(0, -2000)
    tab.locator("#zoom-in").click()
    tab.locator("#stage").focus()
    for _ in range(20):
        tab.keyboard.press("+")
    assert zoom.text_content() == "6,400 %"
    assert 6 <= _colours(tab) <= 25  # 200 screen pixels are 4 to 5 image pixels, each way
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("1")
    assert zoom.text_content() == "100 %"
    tab.keyboard.press("0")
    assert zoom.text_content() == whole
    assert tab.locator("#zoom-fit").is_disabled()
    assert re.match(
        r"x \d+, y \d+ · probability [01]\.\d\d", tab.locator("#readout").text_content()
    )


def test_modes_and_colours(open_page: Open) -> None:
    """Each way to show the mask changes the image, and so does a colour."""
    tab = open_page()
    show(tab, png())
    seen = set()
    for mode in ("fill", "outline", "cutout", "probability"):
        tab.locator(f"[name=mode][value={mode}]").check()
        seen.add(_image(tab))
    tab.locator("[name=mode][value=fill]").check()
    tab.locator("[name=colour][value='#56b4e9']").check()
    seen.add(_image(tab))
    tab.locator("#own-colour").fill("#ff00ff")
    seen.add(_image(tab))
    assert len(seen) == 6


def _image(tab: Any) -> str:
    return str(
        tab.evaluate(
            """() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(
              () => resolve(document.getElementById("canvas").toDataURL()))))"""
        )
    )
