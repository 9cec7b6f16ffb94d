"""The page of `binseg label` in a Chromium: paint, undo, accept, train, by mouse, touch, keys.

Each test draws on images of its own, and the truth: what one teaches helps the others.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from .driving import DESKTOP, PHONE, Open, until
from .test_readers import violations

pytestmark = pytest.mark.slow  # trees are grown anew at each stroke: minutes on a busy machine

SIDE = 128


def truth_of(number: int) -> np.ndarray:
    random = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.asarray(np.hypot(*(np.array([y, x]) - random.uniform(58, 70, (2, 1, 1)))) < 24)


@pytest.fixture(scope="module")
def labelled(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server on images of discs, and empty ones; its address, and the project's folder."""
    assert chromium
    home = tmp_path_factory.mktemp("label")
    (home / "photos").mkdir()
    random = np.random.default_rng(0)
    pictures = {f"disc{number:02d}": truth_of(number) for number in range(20)}
    pictures |= {f"empty{number}": np.zeros((SIDE, SIDE), bool) for number in range(4)}
    for name, truth in pictures.items():
        grey = np.where(truth, 180, 70) + random.normal(0, 8, (SIDE, SIDE))
        rgb = np.repeat(np.clip(grey, 0, 255)[..., None], 3, axis=2).astype(np.uint8)
        Image.fromarray(rgb).save(home / "photos" / f"{name}.png")
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
def service() -> None:
    """No server of predictions: each test names the address."""


@pytest.fixture
def visit(labelled: tuple[str, Path], open_page: Open) -> Callable[..., Any]:
    """Open the page at an image, and wait for it."""

    def opened(name: str, **settings: Any) -> Any:
        tab = open_page(url=labelled[0], **settings)
        until(tab, "document.getElementById('image-title').textContent !== '\\u2013'")
        tab.locator("#images").select_option(name)
        until(tab, "name => document.getElementById('image-title').textContent === name", name)
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


def comes(tab: Any, name: str, text: str) -> None:
    """Wait until an element says so."""
    until(tab, "([id, text]) => document.getElementById(id).textContent === text", [name, text])


def shares(tab: Any, share: float) -> None:
    """Wait until about that share of the image is marked."""
    until(
        tab,
        "share => Math.abs(parseFloat(document.getElementById('share').textContent) - share) < 2",
        100 * share,
    )


def on_disc(number: int) -> list[tuple[float, float]]:
    """Both ends of a stroke on the disc."""
    rows, columns = np.nonzero(truth_of(number))
    x, y = float(columns.mean()), float(rows.mean())
    return [(x - 8, y), (x + 8, y)]


def teach(tab: Any) -> None:
    """A stroke on the disc and one beside it, and the answer to both."""
    number = int(text(tab, "image-title").removeprefix("disc"))
    draw(tab, on_disc(number))
    draw(tab, [(6, 6), (120, 6)], button="right")
    comes(tab, "engine", "trees")
    comes(tab, "saved", "Saved")
    shares(tab, truth_of(number).mean())


def kept(labelled: tuple[str, Path], name: str) -> np.ndarray:
    return np.asarray(Image.open(labelled[1] / "masks" / f"{name}.png")) > 0


def goes_on(tab: Any, name: str) -> None:
    """Wait for another image than this one."""
    until(tab, "name => document.getElementById('image-title').textContent !== name", name)


@pytest.fixture(scope="module")
def unlabelled(labelled: tuple[str, Path]) -> Iterator[int]:
    """Numbers of discs to label with help, each given once."""
    rows = requests.get(f"{labelled[0]}v1/label/images", timeout=60).json()
    names = [row["name"] for row in rows if not row["check"]]
    return iter([int(name[4:]) for name in names if name.startswith("disc")])


def test_paint_accept_and_next(labelled: tuple[str, Path], visit: Any, unlabelled: Any) -> None:
    """Two strokes mark the disc; one key accepts it, and the next image opens."""
    number = next(unlabelled)
    name = f"disc{number:02d}"
    tab = visit(name)
    teach(tab)
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")  # a nervous hand accepts no image that it hasn't seen
    goes_on(tab, name)
    assert (kept(labelled, name) != truth_of(number)).mean() < 0.02
    other = text(tab, "image-title")
    comes(tab, "saved", "Saved")
    assert not (labelled[1] / "masks" / f"{other}.png").exists()


def test_undo_and_redo_by_keys(visit: Any, unlabelled: Any) -> None:
    """Ctrl+Z takes the strokes back one by one, Ctrl+Shift+Z brings them back."""
    number = next(unlabelled)
    tab = visit(f"disc{number:02d}")
    teach(tab)
    draw(tab, [(6, 120), (120, 120)])  # a third one, wrong
    until(tab, "parseFloat(document.getElementById('share').textContent) > 25")
    tab.keyboard.press("Control+z")
    shares(tab, truth_of(number).mean())
    tab.keyboard.press("Control+Shift+z")
    until(tab, "parseFloat(document.getElementById('share').textContent) > 25")
    for _ in range(3):
        tab.keyboard.press("Control+z")
    comes(tab, "saved", "Saved")
    tab.keyboard.press("Control+z")
    comes(tab, "note", "Nothing to undo.")


def test_the_keyboard_alone_is_enough(
    labelled: tuple[str, Path], visit: Any, unlabelled: Any
) -> None:
    """Without a mouse: arrows and space draw, brackets set the size, Enter accepts, M empties."""
    number = next(unlabelled)
    name = f"disc{number:02d}"
    tab = visit(name)
    tab.locator("#stage").focus()
    size = text(tab, "size-value")
    tab.keyboard.press("]")
    assert text(tab, "size-value") != size
    tab.keyboard.press("[")
    for keys in ("  ", "g" + "^" * 16, " " + "<" * 8 + " "):
        for key in keys:
            tab.keyboard.press({"^": "ArrowUp", "<": "ArrowLeft"}.get(key, key))
    comes(tab, "engine", "trees")
    shares(tab, truth_of(number).mean())
    tab.keyboard.press("Enter")
    goes_on(tab, name)
    assert (kept(labelled, name) != truth_of(number)).mean() < 0.02
    tab = visit("empty1")
    tab.keyboard.press("m")  # nothing in here
    goes_on(tab, "empty1")
    assert not kept(labelled, "empty1").any()


def test_a_finger_draws_and_two_move(visit: Any, unlabelled: Any) -> None:
    """On a phone one finger draws; the page has no sideways scroll, and all buttons are there."""
    number = next(unlabelled)
    tab = visit(f"disc{number:02d}", size=PHONE, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.touchscreen.tap(*place(tab, *on_disc(number)[0]))
    comes(tab, "saved", "Saved")
    until(tab, "parseFloat(document.getElementById('share').textContent) > 0")
    for name in ("accept", "empty", "skip", "next", "undo"):
        assert tab.locator(f"#{name}").count() == 1
        assert tab.locator(f"#{name}").is_enabled()


def test_a_server_that_is_gone_loses_no_stroke(visit: Any, unlabelled: Any) -> None:
    """Strokes wait in the page until the server answers again, and are then kept once."""
    number = next(unlabelled)
    tab = visit(f"disc{number:02d}")
    tab.route("**/v1/label/stroke", lambda route: route.abort())
    draw(tab, on_disc(number))
    until(tab, "document.getElementById('saved').textContent.startsWith('Not saved yet (1)')")
    tab.unroute("**/v1/label/stroke")
    comes(tab, "saved", "Saved")
    until(tab, "parseFloat(document.getElementById('share').textContent) > 0")


def test_a_full_disk_is_one_sentence(visit: Any, unlabelled: Any) -> None:
    """A stroke that the disk refuses waits with the server's sentence, until there is room."""
    number = next(unlabelled)
    tab = visit(f"disc{number:02d}")
    error = {"code": "storage", "message": "The disk is full: make room, and draw on."}
    full = {"status": 507, "json": {"error": error}}
    tab.route("**/v1/label/stroke", lambda route: route.fulfill(**full))
    draw(tab, on_disc(number))
    comes(tab, "saved", f"Not saved yet (1): {error['message']}")
    tab.unroute("**/v1/label/stroke")
    comes(tab, "saved", "Saved")


def test_two_windows_lose_nothing(labelled: tuple[str, Path], visit: Any, unlabelled: Any) -> None:
    """An accept of what another window has drawn on is refused; then both strokes are in it."""
    number = next(unlabelled)
    name = f"disc{number:02d}"
    tab = visit(name)
    teach(tab)
    other = visit(name)
    draw(other, [(20, 112), (100, 112)])
    comes(other, "saved", "Saved")
    tab.bring_to_front()
    tab.keyboard.press("Enter")
    until(tab, "/another window/.test(document.getElementById('note').textContent)")
    assert not (labelled[1] / "masks" / f"{name}.png").exists()
    tab.keyboard.press("Enter")
    goes_on(tab, name)
    assert kept(labelled, name)[112, 20:100].all()


def test_controls_have_names(visit: Any) -> None:
    """Every control says what it is to a screen reader, and none is smaller than 24 pixels."""
    tab = visit("empty2", size=DESKTOP)
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


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_accessibility(visit: Any, axe: str, size: dict[str, int], scheme: str) -> None:
    """axe-core finds nothing wrong, neither with an image nor with the keys."""
    tab = visit("empty3", size=size, scheme=scheme)
    tab.evaluate(axe)
    assert violations(tab) == []
    tab.keyboard.press("?")
    assert violations(tab) == []


def test_train_for_real(labelled: tuple[str, Path], visit: Any, unlabelled: Any) -> None:
    """From accepted images to a model and its Dice, by a press of a button."""
    url = f"{labelled[0]}v1/label/"
    for number in (next(unlabelled) for _ in range(6)):
        name = f"disc{number:02d}"
        middle = np.mean(on_disc(number), axis=0).tolist()
        dot = {"name": name, "tool": "brush", "value": 1, "points": [middle], "radius": 24}
        line = requests.post(f"{url}stroke", json=dot, timeout=60).json()["line"]
        done = requests.post(f"{url}accept", json={"name": name, "seen": line}, timeout=60)
        assert done.status_code == 200, done.text
    tab = visit("empty2")
    tab.locator("#minutes").fill("1")
    tab.locator("#train").click()
    is_done = "/^Done: Dice 0/.test(document.getElementById('train-text').textContent)"
    until(tab, is_done, seconds=600)
    assert [*(labelled[1] / "runs").glob("*/best.pt")]
