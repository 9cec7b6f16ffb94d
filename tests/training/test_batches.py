from collections.abc import Callable

import numpy as np
import pytest
import torch

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.training import batches
from binseg.training.batches import EpochRows, build_batches


@pytest.mark.parametrize(("num", "sizes"), [(12, [4, 4, 4]), (14, [4, 4, 4, 2]), (13, [4, 4, 5])])
def test_an_epoch_shows_every_row_once(
    recipe: Callable[..., Recipe], num: int, sizes: list[int]
) -> None:
    """Batches partition the rows; a row that would be alone joins the batch before it."""
    sampler = EpochRows(num, recipe(train__batch_size=4))
    got = list(sampler)
    assert [len(batch.items) for batch in got] == sizes
    assert len(sampler) == len(sizes)
    assert sorted(np.concatenate([batch.items for batch in got])) == list(range(num))
    assert [batch.step for batch in got] == list(range(len(sizes)))


def test_a_single_row_and_batches_of_one_are_kept(recipe: Callable[..., Recipe]) -> None:
    """Where there is nothing to join, a batch of one is a batch."""
    assert len(list(EpochRows(1, recipe(train__batch_size=4)))) == 1
    assert len(list(EpochRows(3, recipe(train__batch_size=1)))) == 3


def test_seed_and_epoch_decide_the_order(recipe: Callable[..., Recipe]) -> None:
    """The same seed and epoch give the same batches; another of either gives others."""

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochRows(20, recipe(train__batch_size=4, train__seed=seed))
        sampler.start(epoch)
        return [batch.items.tolist() for batch in sampler]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_memory_and_mapped_file_give_the_same_batches(
    pixels: Callable[..., PixelCache],
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the pixels fit in memory changes nothing but speed."""

    def load() -> list[list[torch.Tensor]]:
        given = build_batches(pixels(9), recipe(), device=torch.device("cpu"))
        return [[batch.inputs_BHWC, batch.targets_BHW] for batch in given.epoch(3)]

    resident = load()
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    for one, other in zip(resident, load(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [0, 1, 4])
def test_the_rest_of_an_epoch_and_the_whole_next_one(
    recipe: Callable[..., Recipe],
    pixels: Callable[..., PixelCache],
    workers: int,
    step: int,
) -> None:
    """From epoch 2, step n: the same batches with the same numbers, then epoch 3 from its start."""
    given = build_batches(
        pixels(10),
        recipe(train__batch_size=2, train__workers=workers),
        device=torch.device("cpu"),
    )
    epochs = [list(given.epoch(epoch)) for epoch in (2, 3)]
    rest = list(given.epoch(2, first=step))
    for found, expected in ((rest, epochs[0][step:]), (list(given.epoch(3)), epochs[1])):
        assert [batch.step for batch in found] == [batch.step for batch in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.inputs_BHWC, other.inputs_BHWC)
    assert len(given) == 5
