"""What a reader does with the page, and what it then shows."""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from binseg.postprocess import find_objects

from .drawings import Given, decode
from .server import Service

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
PATIENCE_S = 60  # of a machine that has other things to do
Open = Callable[..., Any]
_GIVE = """([files, kind]) => {
  const transfer = new DataTransfer();
  for (const [name, type, text] of files) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


def give(tab: Any, *files: Given, kind: str = "drop") -> None:
    """Drop files on the page, or paste them."""
    packed = [[name, type_, base64.b64encode(data).decode()] for name, type_, data in files]
    tab.evaluate(_GIVE, [packed, kind])


def until(tab: Any, condition: str, given: Any = None, *, seconds: float = PATIENCE_S) -> None:
    """Wait until a condition holds. Playwright's own way needs eval, which the page forbids."""
    end = time.monotonic() + seconds
    while not tab.evaluate(condition, given):
        assert time.monotonic() < end, condition
        tab.wait_for_timeout(20)


def show(tab: Any, *files: Given, kind: str = "drop") -> None:
    """Give images to the page and wait for the first one's mask."""
    tab.locator("#card-body .facts").wait_for()
    give(tab, *files, kind=kind)
    settle(tab)


def settle(tab: Any) -> None:
    """Wait until the objects have been counted for what is set now."""
    until(tab, "/^[0-9]/.test(document.getElementById('objects').textContent)")
    until(tab, "document.getElementById('working').hidden")


def set_level(tab: Any, level: int) -> float:
    """Move the slider; tell the threshold that it stands for."""
    tab.locator("#threshold").fill(str(level))
    return (level + 0.5) / 255


def shows(tab: Any, mask_HW: np.ndarray) -> None:
    """The page's figures come to be those of this mask."""
    area = int((mask_HW > 0).sum())
    count = len(find_objects(mask_HW > 0))
    until(
        tab,
        """([area, count]) => document.getElementById("share").dataset.pixels === String(area)
        && document.getElementById("objects").textContent === String(count)""",
        [area, count],
    )


def save(tab: Any, button: str) -> tuple[str, bytes]:
    """Press a download button: the file's name and bytes."""
    with tab.expect_download() as waited:
        tab.locator(button).click()
    return waited.value.suggested_filename, Path(waited.value.path()).read_bytes()


def levels_of(service: Service, image: bytes, share: float) -> int:
    """A slider's step at which about this share of the image is taken."""
    probability_HW = decode(service.ask(image, output="probability").content)
    return int(np.clip(np.quantile(probability_HW, 1 - share), 0, 254))
