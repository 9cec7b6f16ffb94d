"""A loader that starts within an epoch gives what a whole epoch would have given from there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.training.batches import build_batches
from binseg.training.position import Position, loader_from, set_counters


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [0, 1, 4])
def test_the_rest_of_an_epoch_and_the_whole_next_one(
    recipe: Callable[..., Recipe],
    pixels: Callable[..., PixelCache],
    listen: Any,
    workers: int,
    step: int,
) -> None:
    """From epoch 2, step n: the same batches with the same numbers, then epoch 3 from its start."""
    batches = build_batches(
        pixels(10),
        recipe(train__batch_size=2, train__workers=workers),
        device=torch.device("cpu"),
    )
    epochs = [list(batches.loader(epoch=epoch)) for epoch in (2, 3)]
    loader = loader_from(batches.loader(epoch=2), Position(epoch=2, step=step), progress=listen())
    rest = list(loader)
    loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
    for found, expected in ((rest, epochs[0][step:]), (list(loader), epochs[1])):
        assert [batch.step for batch in found] == [batch.step for batch in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.inputs_BHWC, other.inputs_BHWC)
    assert len(loader) == 5


def test_counters_are_those_of_a_run_without_a_stop() -> None:
    """They follow from the position alone, whatever the resumes before left there."""
    for position, epochs, batches in (
        (Position(epoch=3, step=0), (3, 3, 3, 2), (5, 5, 5, 5)),
        (Position(epoch=3, step=2), (4, 4, 3, 3), (2, 2, 2, 1)),
        (Position(epoch=3, step=5), (4, 4, 4, 3), (5, 5, 5, 5)),
    ):
        loops: dict[str, Any] = {"epoch_loop.batch_progress": {}, "other": 1}
        set_counters(loops, position, num_steps=5)
        names = ("ready", "started", "processed", "completed")
        assert tuple(loops["epoch_progress"]["total"][n] for n in names) == epochs
        assert tuple(loops["epoch_loop.batch_progress"]["current"][n] for n in names) == batches
        assert loops["other"] == 1


def test_positions_in_words() -> None:
    """As the messages say them."""
    assert str(Position(epoch=3, step=0)) == "epoch 3"
    assert str(Position(epoch=3, step=7)) == "epoch 4, step 7"
