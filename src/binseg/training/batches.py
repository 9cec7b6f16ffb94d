"""Batches of cached pixels: one indexing of an array each, or one copied patch an image.

The order of an epoch, and the places of its patches, are decided by (seed, epoch). The sampler, in
the main process, hands out whole batches of row numbers or places, so that the number of loader
workers changes nothing.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import patches_per_epoch, sample_places
from binseg.data.whole_images import ImageCache, WholeImages
from binseg.types import IGNORE

__all__ = [
    "Batch",
    "Batches",
    "EpochBatches",
    "EpochPatches",
    "PatchBatches",
    "Shares",
    "TrainingBatches",
    "build_batches",
]

RESIDENT_BYTES = 2 * 2**30
"""A cache up to this size is copied into memory; a larger one is read from its mapped file."""
COPIED_ROWS = 256
"""Rows of a file that are copied to memory at a time."""
GPU_SHARE = 0.25
"""A cache up to this share of a GPU's free memory lives there."""


class Batch(NamedTuple):
    """What the loader gives: stored pixels, and the step of the epoch that they belong to."""

    inputs_BHWC: torch.Tensor
    targets_BHW: torch.Tensor
    step: int
    first: int = 0
    """Of the step's inputs, where several processes share them: this one's first."""
    total: int | None = None
    """Inputs of the step in all processes, where there are several."""
    is_empty: bool = False
    """Whether there was no input left for this process: what is here is ignored altogether."""


class Shares(NamedTuple):
    """Which part of each batch this process takes."""

    rank: int = 0
    num: int = 1

    def of(self, total: int) -> slice:
        """Give the rows of a batch that are this process's; the shares differ by one at most."""
        return slice(self.rank * total // self.num, (self.rank + 1) * total // self.num)


def _shared(read: Callable[[slice], Batch], total: int, shares: Shares) -> Batch:
    """Read this process's part of a batch; one ignored input stands in where there is none.

    A process without an input must take part in the step all the same: the others wait for it.
    """
    if shares.num == 1:
        return read(slice(0, total))
    rows = shares.of(total)
    if rows.start < rows.stop:
        return read(rows)._replace(first=rows.start, total=total)
    batch = read(slice(0, 1))
    ignored = torch.full_like(batch.targets_BHW, IGNORE)
    return batch._replace(targets_BHW=ignored, total=total, is_empty=True)


class Batches(Protocol):
    """What gives a run its batches."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def loader(self, *, epoch: int) -> DataLoader[Batch]:
        """Give a loader that starts at this epoch; its items are whole batches."""


def build_batches(
    cache: PixelCache | ImageCache,
    recipe: Recipe,
    *,
    device: torch.device,
    context: float = 1.0,
    size_of: Callable[[int], int] | None = None,
    shares: Shares = Shares(),  # noqa: B008  # frozen
    reserve: int = 0,
) -> Batches:
    """Give the batches of a recipe.

    Args:
        cache: whole images where the recipe draws patches, else inputs.
        recipe: its patches, sizes, batch size, seed and workers are used.
        device: where the batches will go.
        context: how much larger than the input a patch is cut, for its surroundings.
        size_of: gives the side of an epoch's patches, instead of the recipe's epochs.
        shares: which part of each batch is this process's.
        reserve: bytes of a GPU's memory that training itself will need.
    """
    assert recipe.draws_patches == isinstance(cache, ImageCache), type(cache)
    if isinstance(cache, ImageCache):
        return PatchBatches(
            cache,
            recipe=recipe,
            device=device,
            context=context,
            size_of=size_of or recipe.training_size,
            shares=shares,
        )
    config = recipe.train
    return TrainingBatches(
        cache,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        device=device,
        per_epoch=None if config.per_epoch == "all" else int(config.per_epoch),
        shares=shares,
        reserve=reserve,
    )


class Rows(NamedTuple):
    """One batch's row numbers, in rising order: mapped files like that."""

    rows: np.ndarray
    step: int


class EpochBatches(Sampler[Rows]):
    """The batches of one epoch after another, as row numbers.

    Every row comes once an epoch; where an epoch has another number of rows, none comes twice
    before all came once. The last batch is what remains; a single remaining row joins the batch
    before it, since batch norm can't learn from one image.
    """

    def __init__(
        self, *, num_rows: int, batch_size: int, seed: int, per_epoch: int | None = None
    ) -> None:
        self._num_rows = num_rows
        self._per_epoch = per_epoch or num_rows
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (Lightning calls it, by this name)."""
        self._epoch = epoch

    def __len__(self) -> int:
        return _num_batches(self._per_epoch, self._batch_size)

    def __iter__(self) -> Iterator[Rows]:
        order = self._order()
        last = len(self) - 1
        for step in range(last + 1):
            start = step * self._batch_size
            end = self._per_epoch if step == last else start + self._batch_size
            yield Rows(np.sort(order[start:end]), step)

    def _order(self) -> np.ndarray:
        """The epoch's piece of an endless row of permutations."""
        start = self._epoch * self._per_epoch
        first, last = start // self._num_rows, (start + self._per_epoch - 1) // self._num_rows
        rounds = [
            np.random.default_rng((self._seed, number)).permutation(self._num_rows)
            for number in range(first, last + 1)
        ]
        offset = start - first * self._num_rows
        return np.concatenate(rounds)[offset : offset + self._per_epoch]


def _num_batches(num: int, batch_size: int) -> int:
    """How many batches there are where a single remaining one joins the batch before it."""
    whole, rest = divmod(num, batch_size)
    lone = rest == 1 and batch_size > 1 and whole > 0
    return whole + (rest > 0) - lone


class _CachedBatches(Dataset[Batch]):
    """A map from a batch's row numbers to its pixels."""

    def __init__(
        self, cache: PixelCache, device: torch.device, shares: Shares, *, reserve: int
    ) -> None:
        self._shares = shares
        self._inputs: Any = cache.inputs_NHWC
        self._targets: Any = cache.targets_NHW
        limit = RESIDENT_BYTES
        self.on_device = False
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self.on_device = cache.num_bytes <= GPU_SHARE * max(0, free - reserve)
        if self.on_device or cache.num_bytes <= limit:
            where = device if self.on_device else torch.device("cpu")
            self._inputs = _resident(cache.inputs_NHWC, where)
            self._targets = _resident(cache.targets_NHW, where)

    def __getitem__(self, key: Rows) -> Batch:
        def read(part: slice) -> Batch:
            return self._read(Rows(key.rows[part], key.step))

        return _shared(read, len(key.rows), self._shares)

    def _read(self, key: Rows) -> Batch:
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


def _resident(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a file's array to where it stays, in pieces: the machine may have less than the GPU."""
    whole = torch.empty(array.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(array), COPIED_ROWS):
        part = np.array(array[start : start + COPIED_ROWS])
        whole[start : start + COPIED_ROWS] = torch.from_numpy(part)
    return whole


def _hear_no_interrupts(worker: int) -> None:
    """Let the main process alone decide what Ctrl-C means, and let it end its workers."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _loader(
    dataset: Dataset[Batch], sampler: Sampler[Any], *, workers: int, pins: bool
) -> DataLoader[Batch]:
    """A loader whose items are whole batches."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_hear_no_interrupts,
        persistent_workers=workers > 0,
        pin_memory=pins,
    )


class TrainingBatches:
    """The batches of a run, and the loader that gives them.

    Args:
        cache: the pixels.
        batch_size: images in a batch.
        seed: decides the order.
        workers: processes that index the cache; they pay only for one too large for memory.
        device: where the batches will go.
        per_epoch: inputs in an epoch, if not all.
        shares: which part of each batch is this process's.
        reserve: bytes of a GPU's memory that aren't for the pixels.
    """

    def __init__(
        self,
        cache: PixelCache,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        device: torch.device,
        per_epoch: int | None = None,
        shares: Shares = Shares(),  # noqa: B008  # frozen
        reserve: int = 0,
    ) -> None:
        self._sampler = EpochBatches(
            num_rows=len(cache), batch_size=batch_size, seed=seed, per_epoch=per_epoch
        )
        self._dataset = _CachedBatches(cache, device, shares, reserve=reserve)
        self._device = device
        # Where the pixels live on the GPU already, there is nothing for a process to prepare.
        self._workers = 0 if self._dataset.on_device else workers

    def __len__(self) -> int:
        return len(self._sampler)

    def loader(self, *, epoch: int) -> DataLoader[Batch]:
        """Give a loader that starts at this epoch; its items are whole batches."""
        # A resumed run starts its processes before Lightning tells the sampler the epoch.
        self._sampler.set_epoch(epoch)
        pins = self._device.type == "cuda" and not self._dataset.on_device
        return _loader(self._dataset, self._sampler, workers=self._workers, pins=pins)


class Places(NamedTuple):
    """One batch's patches: image, first row and first column of each."""

    places_B3: np.ndarray
    size: int
    """Side of what is cut, surroundings included."""
    step: int


class EpochPatches(Sampler[Places]):
    """The patches of one epoch after another, as places.

    Every epoch has the same number of steps, whatever the size of its patches.
    """

    def __init__(
        self,
        cache: ImageCache,
        *,
        recipe: Recipe,
        context: float,
        size_of: Callable[[int], int] | None = None,
    ) -> None:
        self._cache = cache
        self._size_of = size_of or recipe.training_size
        self._recipe = recipe
        self._context = context
        self._num = patches_per_epoch(
            recipe.patches,
            cache.sizes_N2,
            size=recipe.input.size,
            batch_size=recipe.train.batch_size,
        )
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose patches come next (Lightning calls it, by this name)."""
        self._epoch = epoch

    def __len__(self) -> int:
        return _num_batches(self._num, self._recipe.train.batch_size)

    def __iter__(self) -> Iterator[Places]:
        size = self._size_of(self._epoch)
        margin = round(size * (self._context - 1) / 2)
        places_N3 = sample_places(
            self._cache,
            size=size,
            num=self._num,
            foreground=self._recipe.patches.foreground,
            seed=self._recipe.train.seed,
            epoch=self._epoch,
        )
        places_N3[:, 1:] -= margin
        batch_size, last = self._recipe.train.batch_size, len(self) - 1
        for step in range(last + 1):
            start = step * batch_size
            end = self._num if step == last else start + batch_size
            yield Places(places_N3[start:end], size + 2 * margin, step)


class _CutBatches(Dataset[Batch]):
    """A map from a batch's places to its pixels."""

    def __init__(self, cache: ImageCache, shares: Shares) -> None:
        self._shares = shares
        self._images = WholeImages(cache, resident=cache.num_bytes <= RESIDENT_BYTES)

    def __getitem__(self, key: Places) -> Batch:
        def read(part: slice) -> Batch:
            return self._read(Places(key.places_B3[part], key.size, key.step))

        return _shared(read, len(key.places_B3), self._shares)

    def _read(self, key: Places) -> Batch:
        inputs_BCHW, targets_BHW = self._images.patches(key.places_B3, size=key.size)
        inputs_BHWC = torch.from_numpy(inputs_BCHW).permute(0, 2, 3, 1)
        return Batch(inputs_BHWC, torch.from_numpy(targets_BHW), key.step)


class PatchBatches:
    """Batches of random patches of whole images, and the loader that gives them.

    Args:
        cache: the images.
        recipe: its patches, sizes, batch size, seed and workers are used.
        device: where the batches will go.
        context: how much larger than the input a patch is cut, so that turning and shrinking it
            finds real pixels around it.
        size_of: gives the side of an epoch's patches, instead of the recipe's epochs.
        shares: which part of each batch is this process's.
    """

    def __init__(
        self,
        cache: ImageCache,
        *,
        recipe: Recipe,
        device: torch.device,
        context: float,
        size_of: Callable[[int], int] | None = None,
        shares: Shares = Shares(),  # noqa: B008  # frozen
    ) -> None:
        self._sampler = EpochPatches(cache, recipe=recipe, context=context, size_of=size_of)
        self._dataset = _CutBatches(cache, shares)
        self._device = device
        self._workers = recipe.train.workers

    def __len__(self) -> int:
        return len(self._sampler)

    def loader(self, *, epoch: int) -> DataLoader[Batch]:
        """Give a loader that starts at this epoch; its items are whole batches."""
        self._sampler.set_epoch(epoch)
        pins = self._device.type == "cuda"
        return _loader(self._dataset, self._sampler, workers=self._workers, pins=pins)
