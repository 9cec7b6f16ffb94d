from collections.abc import Callable

import numpy as np
import pytest
import torch

from binseg.data.cache import PixelCache
from binseg.training import batches
from binseg.training.batches import EpochBatches, TrainingBatches


@pytest.mark.parametrize(("num", "sizes"), [(12, [4, 4, 4]), (14, [4, 4, 4, 2]), (13, [4, 4, 5])])
def test_an_epoch_shows_every_row_once(num: int, sizes: list[int]) -> None:
    """Batches partition the rows; a row that would be alone joins the batch before it."""
    sampler = EpochBatches(num_rows=num, batch_size=4, seed=0)
    got = list(sampler)
    assert [len(batch.rows) for batch in got] == sizes
    assert len(sampler) == len(sizes)
    assert sorted(np.concatenate([batch.rows for batch in got])) == list(range(num))
    assert [batch.step for batch in got] == list(range(len(sizes)))


def test_a_single_row_and_batches_of_one_are_kept() -> None:
    """Where there is nothing to join, a batch of one is a batch."""
    assert len(list(EpochBatches(num_rows=1, batch_size=4, seed=0))) == 1
    assert len(list(EpochBatches(num_rows=3, batch_size=1, seed=0))) == 3


def test_seed_and_epoch_decide_the_order() -> None:
    """The same seed and epoch give the same batches; another of either gives others."""

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochBatches(num_rows=20, batch_size=4, seed=seed)
        sampler.set_epoch(epoch)
        return [batch.rows.tolist() for batch in sampler]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_memory_and_mapped_file_give_the_same_batches(
    pixels: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the pixels fit in memory changes nothing but speed."""

    def load() -> list[list[torch.Tensor]]:
        cpu = torch.device("cpu")
        given = TrainingBatches(pixels(9), batch_size=4, seed=0, workers=0, device=cpu)
        return [[batch.inputs_BHWC, batch.targets_BHW] for batch in given.loader(epoch=3)]

    resident = load()
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    for one, other in zip(resident, load(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
