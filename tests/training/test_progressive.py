from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from binseg.config.recipe import InputConfig, Recipe, TrainConfig
from binseg.training.fit import FitResult
from binseg.training.module import SegmentationModule


def test_sizes_rise_to_the_input_size() -> None:
    """Each size lasts for its share of the epochs, and the full size has the rest."""
    train = TrainConfig(epochs=10, progressive={64: 0.4, 128: 0.3})
    recipe = Recipe(input=InputConfig(size=256), train=train)
    sizes = [recipe.training_size(epoch) for epoch in range(10)]
    assert sizes == [64] * 4 + [128] * 3 + [256] * 3


def test_no_size_passes_the_input_size() -> None:
    """A recipe that is tried at a smaller size trains all epochs at that size."""
    recipe = Recipe(input=InputConfig(size=32), train=TrainConfig(progressive={64: 0.5}))
    assert {recipe.training_size(epoch) for epoch in range(recipe.train.epochs)} == {32}


@pytest.mark.parametrize(
    ("progressive", "problem"),
    [
        ({192: 0.2, 128: 0.2}, "must rise"),
        ({64: 0.5, 128: 0.5}, "less than 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(progressive: dict[int, float], problem: str) -> None:
    """Falling sizes and shares that leave nothing for the full one are refused."""
    with pytest.raises(ValidationError, match=problem):
        Recipe(input=InputConfig(size=256), train=TrainConfig(progressive=progressive))


def test_early_epochs_train_on_smaller_inputs(
    run: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network sees the sizes of the plan, with targets that are still 0 and 1."""
    seen: list[tuple[int, ...]] = []
    step = SegmentationModule.training_step

    def watched(self: SegmentationModule, batch: Any, batch_idx: int) -> torch.Tensor:
        seen.append(tuple(batch.images_BCHW.shape[-2:]))
        assert batch.target_B1HW.shape[-2:] == batch.images_BCHW.shape[-2:]
        assert set(batch.target_B1HW.unique().tolist()) == {0.0, 1.0}
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", watched)
    result = run(train__epochs=2, train__progressive={8: 0.5}, augment__preset="none")
    assert seen == [(8, 8)] * 2 + [(16, 16)] * 2
    assert len(result.history) == 2
