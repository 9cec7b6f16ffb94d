"""What the doctor's tests share: textured images with discs, and folders of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter


def draw(seed: int, *, height: int = 96, width: int = 112) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright disc on soft texture: an image (H, W, 3) and its mask (H, W)."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    top, left = random.uniform(30, height - 30), random.uniform(30, width - 30)
    mask_HW = (rows - top) ** 2 + (columns - left) ** 2 < random.uniform(14, 22) ** 2
    texture_HW = gaussian_filter(random.normal(0, 1, (height, width)), 4) * 140
    grey_HW = 70 + texture_HW + 90 * mask_HW + random.normal(0, 4, (height, width))
    image_HW3 = np.repeat(grey_HW.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    return image_HW3, mask_HW


def write_folder(root: Path, seeds: dict[str, int]) -> Path:
    """Write pairs as train/images/NAME.png and so on; keys are `split/name`."""
    for key, seed in seeds.items():
        split, name = key.split("/")
        image_HW3, mask_HW = draw(seed)
        for kind, pixels in (("images", image_HW3), ("masks", mask_HW.astype(np.uint8) * 255)):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{name}.png")
    return root


@pytest.fixture(scope="session")
def photo() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A function that draws one image and its mask."""
    return draw


@pytest.fixture(scope="session")
def folder_of() -> Callable[[Path, dict[str, int]], Path]:
    """A function that writes pairs by `split/name` and seed."""
    return write_folder


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A folder of 16 sound pairs in train/ and 8 in val/."""
    seeds = {f"train/t{n:02d}": n for n in range(16)} | {f"val/v{n}": 100 + n for n in range(8)}
    return write_folder(tmp_path / "data", seeds)
