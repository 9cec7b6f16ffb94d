"""What the tests of the data room share: writing small images, listening, the real data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.data import MaskRule
from binseg.progress import SILENT, Task

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


class Listener:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        with SILENT.task(label, total=total) as task:
            yield task


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def save() -> Callable[..., Path]:
    """Write an array as whatever the file's ending says; (pages, H, W) becomes a stack."""

    def write(path: Path, array: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((4, 6), np.uint8) if array is None else array
        if path.suffix == ".tif":
            tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None)
        else:
            Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def fill(save: Callable[..., Path]) -> Callable[..., Path]:
    """Make images/NAME.png and masks/NAME.png, masks half 255."""

    def make(root: Path, *names: str, images: str = "images", masks: str = "masks") -> Path:
        mask_HW = np.zeros((4, 6), np.uint8)
        mask_HW[:2] = 255
        for number, name in enumerate(names):
            save(root / images / f"{name}.png", np.full((4, 6, 3), number, np.uint8))
            save(root / masks / f"{name}.png", mask_HW)
        return root

    return make


@pytest.fixture
def rule() -> MaskRule:
    """Masks of 0 and 255."""
    return MaskRule(kind="values", foreground=frozenset({255}), background=frozenset({0}))


def shared(name: str) -> Path:
    """Give a folder of the real data, or skip the test where it isn't there."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs the real data {name}")
    return path


@pytest.fixture
def pet() -> Path:
    return shared("oxford-pet-256")


@pytest.fixture
def nuclei() -> Path:
    return shared("nuclei")


@pytest.fixture
def mitochondria() -> Path:
    return shared("em-mitochondria")
