"""Batches of cached pixels: one indexing of an array each, no Python per picture.

The order of an epoch is a permutation that (seed, epoch) decide. The sampler, in the main process,
hands out whole batches of row numbers, so that the number of loader workers changes nothing.
"""

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from binseg.data.cache import PixelCache

__all__ = ["Batch", "EpochBatches", "TrainingBatches"]

RESIDENT_BYTES = 2 * 2**30
"""A cache up to this size is copied into memory; a larger one is read from its mapped file."""
GPU_SHARE = 0.25
"""A cache up to this share of a GPU's free memory lives there."""


class Batch(NamedTuple):
    """What the loader gives: stored pixels, and the step of the epoch that they belong to."""

    inputs_BHWC: torch.Tensor
    targets_BHW: torch.Tensor
    step: int


class Rows(NamedTuple):
    """One batch's row numbers, in rising order: mapped files like that."""

    rows: np.ndarray
    step: int


class EpochBatches(Sampler[Rows]):
    """The batches of one epoch after another, as row numbers.

    Every row comes once an epoch. The last batch is what remains; a single remaining row joins the
    batch before it, since batch norm can't learn from one picture.
    """

    def __init__(self, *, num_rows: int, batch_size: int, seed: int) -> None:
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (Lightning calls it, by this name)."""
        self._epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._num_rows, self._batch_size)
        lone = rest == 1 and self._batch_size > 1 and whole > 0
        return whole + (rest > 0) - lone

    def __iter__(self) -> Iterator[Rows]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._num_rows)
        last = len(self) - 1
        for step in range(last + 1):
            start = step * self._batch_size
            end = self._num_rows if step == last else start + self._batch_size
            yield Rows(np.sort(order[start:end]), step)


class _CachedBatches(Dataset[Batch]):
    """A map from a batch's row numbers to its pixels."""

    def __init__(self, cache: PixelCache, device: torch.device) -> None:
        self._inputs: Any = cache.inputs_NHWC
        self._targets: Any = cache.targets_NHW
        limit = RESIDENT_BYTES
        self.on_device = False
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self.on_device = cache.num_bytes <= GPU_SHARE * free
        if self.on_device or cache.num_bytes <= limit:
            where = device if self.on_device else torch.device("cpu")
            self._inputs = torch.from_numpy(np.array(cache.inputs_NHWC)).to(where)
            self._targets = torch.from_numpy(np.array(cache.targets_NHW)).to(where)

    def __getitem__(self, key: Rows) -> Batch:
        if isinstance(self._inputs, torch.Tensor):
            rows = torch.from_numpy(key.rows).to(self._inputs.device)
            return Batch(
                self._inputs.index_select(0, rows), self._targets.index_select(0, rows), key.step
            )
        return Batch(
            torch.from_numpy(self._inputs[key.rows]),
            torch.from_numpy(self._targets[key.rows]),
            key.step,
        )


def _hear_no_interrupts(worker: int) -> None:
    """Let the main process alone decide what Ctrl-C means, and let it end its workers."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class TrainingBatches:
    """The batches of a run, and the loader that gives them.

    Args:
        cache: the pixels.
        batch_size: pictures in a batch.
        seed: decides the order.
        workers: processes that index the cache; they pay only for one too large for memory.
        device: where the batches will go.
    """

    def __init__(
        self, cache: PixelCache, *, batch_size: int, seed: int, workers: int, device: torch.device
    ) -> None:
        self._sampler = EpochBatches(num_rows=len(cache), batch_size=batch_size, seed=seed)
        self._dataset = _CachedBatches(cache, device)
        self._device = device
        # Where the pixels live on the GPU already, there is nothing for a process to prepare.
        self._workers = 0 if self._dataset.on_device else workers

    def __len__(self) -> int:
        return len(self._sampler)

    def loader(self, *, epoch: int) -> DataLoader[Batch]:
        """Give a loader that starts at this epoch; its items are whole batches."""
        # A resumed run starts its processes before Lightning tells the sampler the epoch.
        self._sampler.set_epoch(epoch)
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._sampler,
            num_workers=self._workers,
            worker_init_fn=_hear_no_interrupts,
            persistent_workers=self._workers > 0,
            pin_memory=self._device.type == "cuda" and not self._dataset.on_device,
        )
