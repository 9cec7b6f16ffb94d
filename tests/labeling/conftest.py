"""A folder of images with discs on them, and the truth about them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (60, 80)


def disc(number: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on a dark ground, with noise; and where it is."""
    random = np.random.default_rng(number)
    height, width = size
    y, x = np.mgrid[:height, :width]
    middle = random.uniform(0.3, 0.7, 2) * size
    truth = np.hypot(y - middle[0], x - middle[1]) < 0.2 * height
    grey = np.where(truth, 170, 70) + random.normal(0, 12, size)
    rgb = np.repeat(grey[..., None], 3, axis=2) * [1.0, 0.9, 0.8]
    return np.clip(rgb, 0, 255).astype(np.uint8), truth


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images without a single mask."""
    folder = tmp_path / "photos" / "discs"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(disc(number)[0]).save(folder / f"disc{number:02d}.png")
    return folder
