"""The page of `binseg label` in a Chromium: paint, undo, accept, next, by mouse, touch, keys."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .driving import DESKTOP, PHONE, Open, until

pytestmark = pytest.mark.slow  # trees are grown anew at each stroke: minutes on a busy machine

SIDE = 128


def truth_of(number: int) -> np.ndarray:
    random = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.asarray(np.hypot(*(np.array([y, x]) - random.uniform(50, 78, (2, 1, 1)))) < 24)


@pytest.fixture(scope="module")
def labelled(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server on twenty images without masks; its address, and the project's folder."""
    assert chromium
    home = tmp_path_factory.mktemp("label")
    (home / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        grey = np.where(truth_of(number), 180, 70) + random.normal(0, 8, (SIDE, SIDE))
        rgb = np.repeat(np.clip(grey, 0, 255)[..., None], 3, axis=2).astype(np.uint8)
        Image.fromarray(rgb).save(home / "photos" / f"disc{number:02d}.png")
    command = [sys.executable, "-m", "binseg", "label", str(home / "photos")]
    child = subprocess.Popen(
        [*command, "--port", "0", "--no-open", "--cold"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BINSEG_CACHE": str(home / "cache")},
    )
    assert child.stderr is not None
    for line in child.stderr:
        if "http://" in line:
            url = line.split()[2]
            break
    else:
        pytest.fail("the server did not start")
    yield url, home
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 0
    child.stderr.close()


@pytest.fixture
def visit(labelled: tuple[str, Path], open_page: Open) -> Callable[..., Any]:
    """Open the page and wait for its image."""

    def opened(**settings: Any) -> Any:
        tab = open_page(url=labelled[0], **settings)
        until(tab, "document.getElementById('image-title').textContent !== '\\u2013'")
        until(tab, "document.getElementById('working').hidden")
        until(tab, "document.getElementById('engine').textContent !== '\\u2013'")
        return tab

    return opened


def text(tab: Any, name: str) -> str:
    return str(tab.locator(f"#{name}").inner_text())


def place(tab: Any, x: float, y: float) -> tuple[float, float]:
    """A pixel of the image on the screen, where the whole image is shown."""
    box = tab.locator("#canvas").bounding_box()
    scale = min(box["width"], box["height"]) / SIDE
    left = box["x"] + (box["width"] - scale * SIDE) / 2
    top = box["y"] + (box["height"] - scale * SIDE) / 2
    return left + scale * x, top + scale * y


def draw(tab: Any, points: list[tuple[float, float]], button: str = "left") -> None:
    tab.mouse.move(*place(tab, *points[0]))
    tab.mouse.down(button=button)
    for point in points[1:]:
        tab.mouse.move(*place(tab, *point), steps=5)
    tab.mouse.up(button=button)


def teach(tab: Any) -> None:
    """A stroke on the disc and one beside it, and the answer to both."""
    number = int(text(tab, "image-title").removeprefix("disc"))
    rows, columns = np.nonzero(truth_of(number))
    x, y = float(columns.mean()), float(rows.mean())
    draw(tab, [(x - 8, y), (x + 8, y)])
    draw(tab, [(6, 6), (120, 6)], button="right")
    until(tab, "document.getElementById('engine').textContent === 'trees'")
    until(tab, "document.getElementById('saved').textContent === 'Saved'")
    share = truth_of(number).mean()
    until(
        tab,
        "wanted => Math.abs(parseFloat(document.getElementById('share').textContent) - wanted) < 2",
        100 * share,
    )


def test_paint_accept_and_next(labelled: tuple[str, Path], visit: Any) -> None:
    """Two strokes mark the disc; one key accepts it, and the next image opens."""
    tab = visit()
    name = text(tab, "image-title")
    teach(tab)
    tab.keyboard.press("Enter")
    until(tab, "name => document.getElementById('image-title').textContent !== name", name)
    mask = np.asarray(Image.open(labelled[1] / "masks" / f"{name}.png")) > 0
    truth = truth_of(int(name.removeprefix("disc")))
    assert (mask != truth).mean() < 0.02


def test_undo_and_redo_by_keys(visit: Any) -> None:
    """Ctrl+Z takes the strokes back one by one, Ctrl+Shift+Z brings them back."""
    tab = visit()
    teach(tab)
    full = text(tab, "share")
    tab.keyboard.press("Control+z")
    tab.keyboard.press("Control+z")
    until(
        tab,
        "before => document.getElementById('engine').textContent === 'no help yet'"
        " || document.getElementById('share').textContent !== before",
        full,
    )
    tab.keyboard.press("Control+Shift+z")
    tab.keyboard.press("Control+Shift+z")
    until(tab, "before => document.getElementById('share').textContent === before", full)


def test_the_keyboard_alone_is_enough(labelled: tuple[str, Path], visit: Any) -> None:
    """Without a mouse: arrows and space draw, brackets set the size, Enter accepts."""
    tab = visit()
    name = text(tab, "image-title")
    tab.locator("#stage").focus()
    size = text(tab, "size-value")
    tab.keyboard.press("]")
    assert text(tab, "size-value") != size
    tab.keyboard.press("[")
    tab.keyboard.press(" ")
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press(" ")
    tab.keyboard.press("g")
    for _ in range(16):
        tab.keyboard.press("ArrowUp")
    tab.keyboard.press(" ")
    for _ in range(8):
        tab.keyboard.press("ArrowLeft")
    tab.keyboard.press(" ")
    until(tab, "document.getElementById('engine').textContent === 'trees'")
    tab.keyboard.press("m")  # nothing in here
    until(tab, "name => document.getElementById('image-title').textContent !== name", name)
    assert np.asarray(Image.open(labelled[1] / "masks" / f"{name}.png")).max() == 0


def test_a_finger_draws_and_two_move(visit: Any) -> None:
    """On a phone one finger draws; the page has no sideways scroll, and all buttons are there."""
    tab = visit(size=PHONE, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    x, y = place(tab, 64, 64)
    tab.touchscreen.tap(x, y)
    until(tab, "document.getElementById('saved').textContent === 'Saved'")
    until(tab, "parseFloat(document.getElementById('share').textContent) > 0")
    for name in ("accept", "empty", "skip", "next", "undo"):
        assert tab.locator(f"#{name}").count() == 1
        assert tab.locator(f"#{name}").is_enabled()


def test_a_server_that_is_gone_loses_no_stroke(visit: Any) -> None:
    """Strokes wait in the page until the server answers again, and are then kept once."""
    tab = visit()
    tab.route("**/v1/label/stroke", lambda route: route.abort())
    draw(tab, [(20, 20), (40, 20)])
    until(tab, "document.getElementById('saved').textContent.startsWith('Not saved yet (1)')")
    tab.unroute("**/v1/label/stroke")
    until(tab, "document.getElementById('saved').textContent === 'Saved'")
    until(tab, "parseFloat(document.getElementById('share').textContent) > 0")


def test_controls_have_names(visit: Any) -> None:
    """Every control says what it is to a screen reader, and none is smaller than 24 pixels."""
    tab = visit(size=DESKTOP)
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [role=radio]")]
        .filter((one) => !(one.innerText || one.ariaLabel || one.labels?.length || one.title))
        .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    small = tab.evaluate(
        """() => [...document.querySelectorAll("button")].filter((one) => one.offsetParent)
        .map((one) => [one.id, one.getBoundingClientRect()])
        .filter(([, box]) => Math.min(box.width, box.height) < 24).map(([id]) => id)"""
    )
    assert small == []
