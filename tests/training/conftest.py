"""What the tests of training share: tiny pixels, a tiny network, a listener."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.models import create_model
from binseg.training.loop import FitResult, fit

SIZE = 16


class Listener:
    """Keeps what was said and shown, and can do something at a step or a line."""

    def __init__(
        self,
        *,
        at_step: Callable[[int], None] = lambda step: None,
        at_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.lines: list[str] = []
        self.figures: list[dict[str, float]] = []
        self.done = 0
        self.total: int | None = None
        self._at_step = at_step
        self._at_line = at_line

    def say(self, line: str) -> None:
        self.lines.append(line)
        self._at_line(line)

    def advance(self, num: int = 1, /, **figures: float) -> None:
        self.done += num
        if figures:
            self.figures.append(figures)
        self._at_step(self.done)

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator["Listener"]:
        del label
        self.total = total
        yield self


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def listen() -> type[Listener]:
    return Listener


def draw(num: int, *, seed: int = 0, size: int = SIZE) -> PixelCache:
    """Bright rectangles on noise, with one ignored row at the top."""
    random = np.random.default_rng(seed)
    inputs = random.integers(0, 120, (num, size, size, 3), dtype=np.uint8)
    targets = np.zeros((num, size, size), np.uint8)
    for row in range(num):
        top, left = random.integers(1, size // 2, 2)
        targets[row, top : top + size // 2, left : left + size // 2] = 1
    inputs[targets == 1] += 100
    targets[:, 0] = 2
    return PixelCache(inputs_NHWC=inputs, targets_NHW=targets, record_of_N=np.arange(num))


@pytest.fixture
def pixels() -> Callable[..., PixelCache]:
    """A function that draws so many inputs."""
    return draw


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    """A function that builds a U-Net of a few hundred weights, always the same."""

    def build(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        return create_model("unet", encoder="unet", **{"width": 2, "depth": 1, **options})

    return build


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """A function that writes a recipe; dotted names change the tiny defaults."""

    def write(**changes: Any) -> Recipe:
        sections: dict[str, Any] = {
            "input": {"size": SIZE},
            "optimizer": {"lr": 0.01},
            "train": {"epochs": 2, "batch_size": 4, "precision": "fp32", "device": "cpu"},
        }
        for name, value in changes.items():
            section, _, field = name.partition("__")
            sections.setdefault(section, {})[field] = value
        return Recipe.model_validate(sections)

    return write


@pytest.fixture
def run(
    recipe: Callable[..., Recipe], network: Callable[..., nn.Module], tmp_path: Path
) -> Callable[..., FitResult]:
    """A function that trains the tiny network; recipe changes by name, or a whole recipe."""

    def train(
        *,
        folder: Path | None = None,
        progress: Any = None,
        resume: bool = False,
        model: nn.Module | None = None,
        train: PixelCache | None = None,
        val: PixelCache | None = None,
        seconds: float | None = None,
        **changes: Any,
    ) -> FitResult:
        return fit(
            model or network(dropout=0.2),
            recipe=recipe(**changes),
            train=train or draw(9),
            val=val or draw(3, seed=1),
            folder=folder or tmp_path / "run",
            progress=progress or Listener(),
            resume=resume,
            seconds=seconds,
        )

    return train
