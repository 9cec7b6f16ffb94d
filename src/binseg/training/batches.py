"""Batches of cached pixels: one indexing of an array each, or one copied patch an image.

The order of an epoch, and the places of its patches, are decided by (seed, epoch). The sampler, in
the main process, hands out whole batches of row numbers or places, so that the number of loader
workers changes nothing, and a run can go on at any step of any epoch.
"""

import multiprocessing
import shutil
import signal
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import ImageCache, WholeImages, patches_per_epoch, sample_places
from binseg.progress import SILENT, Progress
from binseg.types import IGNORE

RESIDENT_BYTES = 2 * 2**30
"""A cache up to this size is copied into memory; a larger one is read from its mapped file."""
COPIED_ROWS = 256
"""Rows of a file that are copied to memory at a time."""
GPU_SHARE = 0.25
"""A cache up to this share of a GPU's free memory lives there."""
SHARED_MEMORY = Path("/dev/shm")
"""Linux's folder of shared memory; containers often have 64 MB of it, or none."""
LOADER_SECONDS = 600.0
"""Without a batch from a loader process for so long, it hangs: no batch takes that much work."""


class Batch(NamedTuple):
    """One batch from the loader: stored pixels, and the step of the epoch that they belong to."""

    inputs_BHWC: torch.Tensor
    targets_BHW: torch.Tensor
    step: int
    first: int = 0
    """Index of this process's first input among the step's, where several processes share them."""
    total: int | None = None
    """Inputs of the step in all processes, where there are several."""
    is_empty: bool = False
    """True if no input was left for this process: what is here is ignored altogether."""


class Shares(NamedTuple):
    """The part of each batch that this process takes."""

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


class Batches:
    """The batches of a run, epoch by epoch.

    Args:
        dataset: a map from a sampler's keys to batches.
        sampler: the keys of each epoch.
        workers: processes that read batches; they pay only for a cache too large for memory.
        pins: whether batches are on their way to a GPU.
        progress: hears where the machine has no memory for processes to share; the main process
            then does their work, which gives the same run.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        sampler: "_EpochSampler",
        *,
        workers: int,
        pins: bool,
        progress: Progress,
    ) -> None:
        self._sampler = sampler
        if workers and (reason := lacking_shared_memory(dataset, sampler, workers)):
            progress.say(
                f"{reason}, so that the main process loads the batches, as with train.workers 0; "
                "the run is the same"
            )
            workers = 0
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            worker_init_fn=_hear_no_interrupts,
            persistent_workers=workers > 0,
            pin_memory=pins,
            timeout=LOADER_SECONDS if workers else 0,
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Give the batches of an epoch, from 0, from one of its steps on."""
        self._sampler.start(epoch, first=first)
        return iter(self._loader)


def build_batches(
    cache: PixelCache | ImageCache,
    recipe: Recipe,
    *,
    device: torch.device,
    context: float = 1.0,
    size_of: Callable[[int], int] | None = None,
    shares: Shares = Shares(),  # noqa: B008  # frozen
    reserve: int = 0,
    progress: Progress = SILENT,
) -> Batches:
    """Give the batches of a recipe.

    Args:
        cache: whole images where the recipe trains on random patches, else inputs.
        recipe: its patches, sizes, batch size, seed and workers are used.
        device: where the batches will go.
        context: how much larger than the input a patch is cut, so that turning and shrinking it
            finds real pixels around it.
        size_of: gives the side of an epoch's patches, instead of the recipe's epochs.
        shares: which part of each batch is this process's.
        reserve: bytes of a GPU's memory that training itself will need.
        progress: hears where loader processes can't work.
    """
    assert recipe.draws_patches == isinstance(cache, ImageCache), type(cache)
    config = recipe.train
    pins, workers = device.type == "cuda", config.workers
    if isinstance(cache, ImageCache):
        return Batches(
            _CutBatches(cache, shares),
            EpochPatches(cache, recipe=recipe, context=context, size_of=size_of),
            workers=workers,
            pins=pins,
            progress=progress,
        )
    dataset = _CachedBatches(cache, device, shares, reserve=reserve)
    if dataset.on_device:  # the pixels are on the GPU already: there is nothing to prepare
        pins, workers = False, 0
    rows = EpochRows(
        num_rows=len(cache),
        batch_size=config.batch_size,
        seed=config.seed,
        per_epoch=None if config.per_epoch == "all" else int(config.per_epoch),
    )
    return Batches(dataset, rows, workers=workers, pins=pins, progress=progress)


class _EpochSampler(Sampler[Any]):
    """The keys of an epoch's batches, from any of its steps on."""

    _epoch = _first = 0

    def start(self, epoch: int, *, first: int = 0) -> None:
        """Choose the epoch, and the step in it, that comes next."""
        self._epoch, self._first = epoch, first

    def __iter__(self) -> Iterator[Any]:
        for step, key in enumerate(self.keys(self._epoch)):
            if step >= self._first:
                yield key

    @abstractmethod
    def __len__(self) -> int:
        """Batches in a whole epoch."""

    @abstractmethod
    def keys(self, epoch: int) -> Iterator[Any]:
        """Give the keys of a whole epoch."""


class Rows(NamedTuple):
    """One batch's row numbers, in rising order: mapped files like that."""

    rows: np.ndarray
    step: int


class EpochRows(_EpochSampler):
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

    def __len__(self) -> int:
        return _num_batches(self._per_epoch, self._batch_size)

    def keys(self, epoch: int) -> Iterator[Rows]:
        """Give the epoch's row numbers by batch."""
        order = self._order(epoch)
        for step, rows in enumerate(_slices(self._per_epoch, self._batch_size)):
            yield Rows(np.sort(order[rows]), step)

    def _order(self, epoch: int) -> np.ndarray:
        """The epoch's piece of an endless row of permutations."""
        start = epoch * self._per_epoch
        first, last = start // self._num_rows, (start + self._per_epoch - 1) // self._num_rows
        rounds = [
            np.random.default_rng((self._seed, number)).permutation(self._num_rows)
            for number in range(first, last + 1)
        ]
        offset = start - first * self._num_rows
        return np.concatenate(rounds)[offset : offset + self._per_epoch]


def _num_batches(num: int, batch_size: int) -> int:
    """Count the batches of an epoch; a single remaining input joins the batch before it."""
    whole, rest = divmod(num, batch_size)
    lone = rest == 1 and batch_size > 1 and whole > 0
    return whole + (rest > 0) - lone


def _slices(num: int, batch_size: int) -> Iterator[slice]:
    """Cut an epoch's inputs into batches."""
    last = _num_batches(num, batch_size) - 1
    for step in range(last + 1):
        start = step * batch_size
        yield slice(start, num if step == last else start + batch_size)


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


class Places(NamedTuple):
    """One batch's patches: image, first row and first column of each."""

    places_B3: np.ndarray
    size: int
    """Side of what is cut, surroundings included."""
    step: int


class EpochPatches(_EpochSampler):
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

    def __len__(self) -> int:
        return _num_batches(self._num, self._recipe.train.batch_size)

    def keys(self, epoch: int) -> Iterator[Places]:
        """Give the epoch's places by batch."""
        size = self._size_of(epoch)
        margin = round(size * (self._context - 1) / 2)
        places_N3 = sample_places(
            self._cache,
            size=size,
            num=self._num,
            foreground=self._recipe.patches.foreground,
            seed=self._recipe.train.seed,
            epoch=epoch,
        )
        places_N3[:, 1:] -= margin
        for step, rows in enumerate(_slices(self._num, self._recipe.train.batch_size)):
            yield Places(places_N3[rows], size + 2 * margin, step)


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


def _hear_no_interrupts(worker: int) -> None:
    """Let the main process alone decide what Ctrl-C means, and let it end its workers."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def lacking_shared_memory(
    dataset: Dataset[Batch], sampler: _EpochSampler, workers: int
) -> str | None:
    """Tell why loader processes can't hand their batches over here, or None where they can.

    Looks at the size of a first batch: a process that runs out of shared memory is killed by the
    system without a word.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        multiprocessing.get_context().Lock()
        torch.empty(1).untyped_storage().share_memory_()
        free = shutil.disk_usage(SHARED_MEMORY).free
    except (OSError, RuntimeError, ImportError):
        return f"loader processes need shared memory, and {SHARED_MEMORY} can't be used"
    batch = dataset[next(iter(sampler))]
    # Each process prepares two batches ahead, and one is in use.
    need = (batch.inputs_BHWC.nbytes + batch.targets_BHW.nbytes) * (2 * workers + 1)
    if free < need:
        return (
            f"loader processes need {need / 1e6:.0f} MB of shared memory, and {SHARED_MEMORY} "
            f"has {free / 1e6:.0f} MB free (docker run --shm-size gives more)"
        )
    return None
