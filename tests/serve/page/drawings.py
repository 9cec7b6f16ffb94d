"""Images drawn for the page's tests."""

import io
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 72, 96
Given = tuple[str, str, bytes]
"""Name, media type and bytes of a file."""
TEXT: Given = ("notes.txt", "text/plain", b"this is no image")


def draw_discs(seed: int = 0) -> np.ndarray:
    """Bright discs, one of them with a hole, and specks on dark noise, as (72, 96, 3) uint8."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside_HW = random.random((HEIGHT, WIDTH)) > 0.985
    for top, left, radius in ((20, 24, 12), (50, 60, 15), (14, 80, 7)):
        inside_HW |= (rows - top) ** 2 + (columns - left) ** 2 < radius**2
    inside_HW &= (rows - 50) ** 2 + (columns - 60) ** 2 >= 16
    noise_HW3 = random.integers(0, 80, (HEIGHT, WIDTH, 3))
    image_HW3: np.ndarray = np.where(inside_HW[:, :, None], noise_HW3 + 150, noise_HW3)
    return image_HW3.astype(np.uint8)


def encode(image: np.ndarray, kind: str = "PNG", **settings: Any) -> bytes:
    """An image's bytes in a format of Pillow's."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, format=kind, **settings)
    return out.getvalue()


def decode(content: bytes) -> np.ndarray:
    """The pixels of an image's bytes, as they are stored."""
    with Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened)


def png(seed: int = 0, name: str | None = None) -> Given:
    """A drawing as a file."""
    return name or f"discs{seed}.png", "image/png", encode(draw_discs(seed))
