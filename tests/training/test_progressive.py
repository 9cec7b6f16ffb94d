from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from binseg.config.recipe import InputConfig, Recipe, TrainConfig
from binseg.training.loop import FitResult
from binseg.training.step import Tensors, TrainingStep


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
    prepare = TrainingStep.prepare

    def watched(self: TrainingStep, batch: Any, *, epoch: int) -> Tensors:
        tensors = prepare(self, batch, epoch=epoch)
        seen.append(tuple(tensors.images_BCHW.shape[-2:]))
        assert tensors.target_B1HW.shape[-2:] == tensors.images_BCHW.shape[-2:]
        assert set(tensors.target_B1HW.flatten().tolist()) == {0.0, 1.0}
        return tensors

    monkeypatch.setattr(TrainingStep, "prepare", watched)
    result = run(train__epochs=2, train__progressive={8: 0.5}, augment__preset="none")
    assert seen == [(8, 8)] * 2 + [(16, 16)] * 2
    assert len(result.history) == 2
