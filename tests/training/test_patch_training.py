"""Training on random patches: the same numbers however they are loaded and resumed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import ImageCache, Seeds
from binseg.errors import TrainingError
from binseg.training import batches
from binseg.training.batches import build_batches
from binseg.training.diagnostics import validate
from binseg.training.loop import FitResult, fit

CPU = torch.device("cpu")
PATCHES: dict[str, Any] = {
    "input__resize": "tile",
    "patches__per_epoch": 9,
    "augment__preset": "medium",
}


def whole_images(num: int = 3, *, seed: int = 0) -> ImageCache:
    """Bright squares on noise, in images of several sizes."""
    random = np.random.default_rng(seed)
    pixels, labels, sizes, places = [], [], [], []
    for index in range(num):
        height, width = 24 + 6 * index, 40 - 4 * index
        image = random.integers(0, 120, (3, height, width), dtype=np.uint8)
        target = np.zeros((height, width), np.uint8)
        top, left = random.integers(2, 12, 2)
        target[top : top + 9, left : left + 9] = 1
        image[:, target == 1] += 100
        pixels.append(image.ravel())
        labels.append(target.ravel())
        sizes.append((height, width))
        places.append([np.flatnonzero(target.ravel() == value) for value in (0, 1)])
    background, foreground = (
        Seeds(
            places_K=np.concatenate([one[value] for one in places]),
            starts_N1=np.cumsum([0, *(len(one[value]) for one in places)]),
        )
        for value in (0, 1)
    )
    return ImageCache(
        pixels=np.concatenate(pixels),
        labels=np.concatenate(labels),
        sizes_N2=np.array(sizes),
        channels=3,
        background=background,
        foreground=foreground,
        share=len(foreground.places_K) / sum(len(one) for one in labels),
    )


@pytest.fixture
def train_patches(
    recipe: Callable[..., Recipe],
    network: Callable[..., nn.Module],
    pixels: Callable[..., PixelCache],
    listen: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., FitResult]:
    """A function that trains the tiny network on patches."""

    def train(
        *,
        folder: Path | None = None,
        progress: Any = None,
        resume: bool = False,
        cache: ImageCache | None = None,
        **changes: Any,
    ) -> FitResult:
        return fit(
            network(dropout=0.2),
            recipe=recipe(**(PATCHES | changes)),
            train=cache or whole_images(),
            val=pixels(3, seed=1),
            folder=folder or tmp_path / "run",
            progress=progress or listen(),
            resume=resume,
        )

    return train


def test_batches_have_their_surroundings(recipe: Callable[..., Recipe]) -> None:
    """Patches are cut larger by the context; steps and sizes are those of the recipe."""
    given = build_batches(whole_images(), recipe(**PATCHES), device=CPU, context=1.5)
    got = list(given.epoch(0))
    assert [len(batch.inputs_BHWC) for batch in got] == [4, 5]
    assert len(given) == 2
    assert [batch.step for batch in got] == [0, 1]
    assert all(batch.inputs_BHWC.shape[1:] == (24, 24, 3) for batch in got)
    assert all(batch.targets_BHW.shape[1:] == (24, 24) for batch in got)


def test_smaller_sizes_are_smaller_patches(recipe: Callable[..., Recipe]) -> None:
    """Progressive sizes change what is cut, not how many."""
    settings = {**PATCHES, "train__progressive": {8: 0.5}}
    given = build_batches(whole_images(), recipe(**settings), device=CPU)
    for epoch, size in ((0, 8), (1, 16)):
        got = list(given.epoch(epoch))
        assert len(got) == 2
        assert {batch.inputs_BHWC.shape[1] for batch in got} == {size}


def test_loading_changes_nothing(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From memory or from the mapped file, with or without processes: the same patches."""

    def load(workers: int) -> list[list[torch.Tensor]]:
        settings = {**PATCHES, "train__workers": workers}
        given = build_batches(whole_images(), recipe(**settings), device=CPU, context=1.2)
        return [[batch.inputs_BHWC, batch.targets_BHW] for batch in given.epoch(3)]

    first = load(0)
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    for other in (load(0), load(1)):
        for one, two in zip(first, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_resumed_run_ends_alike(
    train_patches: Callable[..., FitResult], listen: Callable[..., Any], tmp_path: Path
) -> None:
    """Stopped after the first of two epochs and resumed, the weights are equal to the bit."""
    whole = train_patches(folder=tmp_path / "whole")

    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(TrainingError, match="interrupted"):
        train_patches(folder=tmp_path / "parts", progress=listen(at_step=stop))
    parts = train_patches(folder=tmp_path / "parts", resume=True)
    assert whole.best_state.keys() == parts.best_state.keys()
    for name, weights in whole.best_state.items():
        assert np.array_equal(weights, parts.best_state[name]), name


def test_patches_teach(train_patches: Callable[..., FitResult]) -> None:
    """The loss falls, and what was learnt on patches scores on tiles."""
    result = train_patches(train__epochs=8, patches__per_epoch=80, optimizer__lr=0.02)
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert max(row["val_dice"] for row in result.history) > 0.7


def test_nothing_to_learn_is_refused(train_patches: Callable[..., FitResult]) -> None:
    """Images without a foreground pixel are told apart from success."""
    cache = whole_images()
    none = Seeds(places_K=np.zeros(0, np.int64), starts_N1=np.zeros(4, np.int64))
    empty = ImageCache(
        pixels=cache.pixels,
        labels=np.zeros_like(cache.labels),
        sizes_N2=cache.sizes_N2,
        channels=3,
        background=cache.background,
        foreground=none,
        share=0.0,
    )
    with pytest.raises(TrainingError, match="no training mask has a foreground pixel"):
        train_patches(cache=empty)


def test_validation_is_bounded_by_the_epoch(pixels: Callable[..., PixelCache]) -> None:
    """Of many tiles some are kept, evenly spread, the first and the last among them."""
    cache = pixels(50)
    thin = cache.thinned(7)
    assert len(thin) == 7
    assert thin.record_of_N.tolist() == [0, 8, 16, 24, 33, 41, 49]
    assert np.array_equal(thin.inputs_NHWC, cache.inputs_NHWC[thin.record_of_N])
    assert cache.thinned(50) is cache


def test_a_sample_of_tiles_is_half_of_what_matters(pixels: Callable[..., PixelCache]) -> None:
    """Where few tiles hold foreground they are kept, and images have no Dice of their own."""
    cache = pixels(100)
    holding = np.array([7, 55, 99])
    targets = np.zeros_like(cache.targets_NHW)
    targets[holding] = cache.targets_NHW[holding]
    sparse = replace(cache, targets_NHW=targets, record_of_N=np.repeat(np.arange(10), 10))
    thin = sparse.thinned(12)
    assert len(thin) == 12
    assert sum(bool((target == 1).any()) for target in thin.targets_NHW) == 3
    assert thin.is_partial
    assert not replace(sparse, record_of_N=np.arange(100)).thinned(12).is_partial


def test_no_answer_is_no_good_answer_where_most_is_empty(pixels: Callable[..., PixelCache]) -> None:
    """Nine of ten images without foreground: the mean over images would be 0.9."""
    cache = pixels(10)
    targets = cache.targets_NHW.copy()
    targets[1:] = 0

    def dice(targets_NHW: np.ndarray, *, is_partial: bool) -> float:
        return validate(
            _Silent(),
            replace(cache, targets_NHW=targets_NHW, is_partial=is_partial),
            recipe=Recipe.model_validate(
                {"input": {"size": 16}, "loss": {"name": "bce"}, "train": {"batch_size": 4}}
            ),
            device=torch.device("cpu"),
            precision="fp32",
        ).dice

    assert dice(targets, is_partial=False) == 0.0
    targets[:6] = cache.targets_NHW[:6]
    assert dice(targets, is_partial=False) == 0.4
    assert dice(targets, is_partial=True) == 0.0


class _Silent(nn.Module):
    """Answers that there is nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return images_BCHW[:, :1] * self.weight - 9.0
