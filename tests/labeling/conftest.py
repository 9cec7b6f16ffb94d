"""A folder of images with discs on them, and the truth about them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from binseg.labeling.cold_engine import ColdEngine
from binseg.labeling.project import Project
from binseg.labeling.session import Session

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


def colours(rgb: np.ndarray) -> np.ndarray:
    """Cheap features: the colour, and that of the surroundings."""
    soft = ndimage.gaussian_filter(rgb.astype(np.float32), (2, 2, 0))
    return np.concatenate([rgb.astype(np.float32), soft], axis=2).astype(np.float16)


def noise(rgb: np.ndarray) -> np.ndarray:
    """Features that tell nothing."""
    return np.random.default_rng(0).normal(size=(*rgb.shape[:2], 6)).astype(np.float16)


class Known:
    """A network that somebody has trained elsewhere, without the process around it."""

    def __init__(self, answers: dict[str, np.ndarray]) -> None:
        self.answers = answers
        self.woken: list[list[str]] = []
        self.new_scores: list[tuple[str, list[float]]] = []
        self.trained: list[float] = []

    def predicted(self, name: str) -> np.ndarray | None:
        return self.answers.get(name)

    def version(self) -> str | None:
        return "warm 1" if self.answers else None

    def wake(self, *, first: Sequence[str]) -> None:
        self.woken.append(list(first))

    def scores(self) -> list[tuple[str, list[float]]]:
        taken, self.new_scores = self.new_scores, []
        return taken

    def train(self, minutes: float) -> None:
        self.trained.append(minutes)

    def training(self) -> Mapping[str, object]:
        return {}

    def close(self) -> None:
        pass


Opened = Callable[..., Session]


@pytest.fixture
def open_session(photos: Path) -> Iterator[Opened]:
    """Opens sessions on the photos, with cheap features; closed at the end."""
    opened: list[Session] = []

    def open_one(network: Known | None = None) -> Session:
        engine = ColdEngine({"noise": noise, "colours": colours})
        opened.append(Session(Project(photos), engine=engine, network=network))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
