"""Batches of cached pixels: one indexing of an array each, or one copied patch an image.

The sampler, in the main process, hands out whole batches of row numbers or places, so that the
number of loader workers changes nothing, and a run can go on at any step of any epoch.
"""

import multiprocessing
import shutil
import signal
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
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
COPIED_ROWS = 256  # rows of a file that are copied to memory at a time
GPU_SHARE = 0.25  # a cache up to this share of a GPU's free memory lives there
SHARED_MEMORY = Path("/dev/shm")
"""Linux's folder of shared memory; containers often have 64 MB of it, or none."""
LOADER_SECONDS = 600.0
"""Without a batch from a loader process for so long, it hangs: no batch takes that much work."""


class Batch(NamedTuple):
    """A rank's share of one batch: stored pixels, and the step of the epoch that they belong to."""

    inputs_BHWC: torch.Tensor
    targets_BHW: torch.Tensor
    step: int
    first: int  # index of this share's first input among the step's
    total: int  # inputs of the step in all shares
    is_empty: bool
    """True if no input was left for this rank: the one that is here has no pixel that counts. The
    rank must take part in the step all the same: the others wait for it."""


class Key(NamedTuple):
    """The items of a batch: row numbers, rising since mapped files like that, or places."""

    items: np.ndarray
    size: int  # side of the patches that are cut, surroundings included; 0 for rows
    step: int
    first: int
    total: int
    is_empty: bool


class Shares(NamedTuple):
    """The part of each batch that this rank takes; those of two ranks differ by one at most."""

    rank: int = 0
    num: int = 1

    def of(self, items: np.ndarray, *, size: int, step: int) -> Key:
        """Give what this rank reads of a step's items; an ignored one where there is none."""
        total = len(items)
        first, last = (rank * total // self.num for rank in (self.rank, self.rank + 1))
        is_empty = first == last
        part = items[:1] if is_empty else items[first:last]
        return Key(part, size, step, 0 if is_empty else first, total, is_empty)


class Batches(DataLoader[Batch]):
    """The batches of a run, epoch by epoch."""

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Give the batches of an epoch, from 0, from one of its steps on."""
        assert isinstance(self.sampler, EpochSampler)
        self.sampler.start(epoch, first=first)
        return iter(self)


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
    """Give the batches of a recipe, without loader processes where they can share no memory.

    A patch is cut `context` times larger than the input, so that turning and shrinking it finds
    real pixels around it; `size_of` gives the side of an epoch's patches; `reserve` are bytes of a
    GPU's memory that training itself will need.
    """
    assert recipe.draws_patches == isinstance(cache, ImageCache), type(cache)
    pins, workers = device.type == "cuda", recipe.train.workers
    dataset: _Dataset
    sampler: EpochSampler
    if isinstance(cache, ImageCache):
        dataset = _Patches(cache)
        size_of = size_of or recipe.training_size
        sampler = EpochPatches(cache, recipe, context=context, size_of=size_of, shares=shares)
    else:
        dataset = _CachedBatches(cache, device, reserve=reserve)
        if dataset.on_device:  # the pixels are on the GPU already: there is nothing to prepare
            pins, workers = False, 0
        sampler = EpochRows(len(cache), recipe, shares=shares)
    if workers and (reason := _lacking_shared_memory(dataset, sampler, workers)):
        progress.say(
            f"{reason}, so that the main process loads the batches, as with train.workers 0; "
            "the run is the same"
        )
        workers = 0
    return Batches(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_hear_no_interrupts,
        persistent_workers=workers > 0,
        pin_memory=pins,
        timeout=LOADER_SECONDS if workers else 0,
    )


class EpochSampler(Sampler[Key]):
    """The keys of an epoch's batches, from any of its steps on.

    The last batch is what remains; a single remaining input joins the batch before it, since batch
    norm can't learn from one image.
    """

    def __init__(self, num: int, recipe: Recipe, *, shares: Shares) -> None:
        self._num, self._recipe, self._shares = num, recipe, shares
        self._batch_size = recipe.train.batch_size
        self._epoch = self._first = 0

    def __len__(self) -> int:
        whole, rest = divmod(self._num, self._batch_size)
        is_lone = rest == 1 and self._batch_size > 1 and whole > 0
        return whole + (rest > 0) - is_lone

    def start(self, epoch: int, *, first: int = 0) -> None:
        """Choose the epoch, and the step in it, that comes next."""
        self._epoch, self._first = epoch, first

    def __iter__(self) -> Iterator[Key]:
        items, size = self.items(self._epoch)
        for step in range(self._first, len(self)):
            start = step * self._batch_size
            end = self._num if step == len(self) - 1 else start + self._batch_size
            part = items[start:end]
            yield self._shares.of(np.sort(part) if part.ndim == 1 else part, size=size, step=step)

    @abstractmethod
    def items(self, epoch: int) -> tuple[np.ndarray, int]:
        """Give all that an epoch reads, in order, and the side of its patches."""


class EpochRows(EpochSampler):
    """The batches of one epoch after another, as row numbers; none comes twice before all came."""

    def __init__(self, num_rows: int, recipe: Recipe, *, shares: Shares = Shares()) -> None:  # noqa: B008
        per_epoch = recipe.train.per_epoch
        super().__init__(num_rows if per_epoch == "all" else per_epoch, recipe, shares=shares)
        self._num_rows = num_rows

    def items(self, epoch: int) -> tuple[np.ndarray, int]:
        """Give the epoch's piece of an endless row of permutations."""
        start = epoch * self._num
        first, last = start // self._num_rows, (start + self._num - 1) // self._num_rows
        rounds = [
            np.random.default_rng((self._recipe.train.seed, number)).permutation(self._num_rows)
            for number in range(first, last + 1)
        ]
        offset = start - first * self._num_rows
        return np.concatenate(rounds)[offset : offset + self._num], 0


class EpochPatches(EpochSampler):
    """The patches of one epoch after another: image, first row and first column of each."""

    def __init__(
        self,
        cache: ImageCache,
        recipe: Recipe,
        *,
        context: float,
        size_of: Callable[[int], int],
        shares: Shares,
    ) -> None:
        size, batch = recipe.input.size, recipe.train.batch_size
        num = patches_per_epoch(recipe.patches, cache.sizes_N2, size=size, batch_size=batch)
        super().__init__(num, recipe, shares=shares)
        self._cache, self._context, self._size_of = cache, context, size_of

    def items(self, epoch: int) -> tuple[np.ndarray, int]:
        """Lay the epoch's patches."""
        size = self._size_of(epoch)
        margin = round(size * (self._context - 1) / 2)
        seed, foreground = self._recipe.train.seed, self._recipe.patches.foreground
        sample = partial(sample_places, self._cache, size=size, num=self._num)
        places_N3 = sample(foreground=foreground, seed=seed, epoch=epoch)
        places_N3[:, 1:] -= margin
        return places_N3, size + 2 * margin


class _Dataset(Dataset[Batch]):
    """A map from keys to batches."""

    def __getitem__(self, key: Key) -> Batch:
        inputs_BHWC, targets_BHW = self.read(key)
        if key.is_empty:
            targets_BHW = torch.full_like(targets_BHW, IGNORE)
        if inputs_BHWC.dtype == torch.uint16:  # few operations of torch take them
            inputs_BHWC = inputs_BHWC.float().div_(65535.0)
        return Batch(inputs_BHWC, targets_BHW, *key[2:])

    @abstractmethod
    def read(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """Read inputs and targets."""


class _CachedBatches(_Dataset):
    """Rows of a cache: in memory, on the GPU where they take a small part of it, or mapped."""

    def __init__(self, cache: PixelCache, device: torch.device, *, reserve: int) -> None:
        self._arrays: list[Any] = [cache.inputs_NHWC, cache.targets_NHW]
        self.on_device = False
        if device.type == "cuda" and cache.inputs_NHWC.dtype == np.uint8:
            free, _ = torch.cuda.mem_get_info(device)
            self.on_device = cache.num_bytes <= GPU_SHARE * max(0, free - reserve)
        if self.on_device or cache.num_bytes <= RESIDENT_BYTES:
            where = device if self.on_device else torch.device("cpu")
            self._arrays = [_resident(array, where) for array in self._arrays]

    def read(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """Index both arrays."""
        if isinstance(self._arrays[0], torch.Tensor):
            rows = torch.from_numpy(key.items).to(self._arrays[0].device)
            inputs, targets = (array.index_select(0, rows) for array in self._arrays)
        else:
            inputs, targets = (torch.from_numpy(array[key.items]) for array in self._arrays)
        return inputs, targets


def _resident(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a file's array to where it stays, in pieces: the machine may have less than the GPU."""
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    whole = torch.empty(array.shape, dtype=kind, device=device)
    for start in range(0, len(array), COPIED_ROWS):
        part = np.array(array[start : start + COPIED_ROWS])
        whole[start : start + COPIED_ROWS] = torch.from_numpy(part)
    return whole


class _Patches(_Dataset):
    """Patches of whole images."""

    def __init__(self, cache: ImageCache) -> None:
        self._images = WholeImages(cache, resident=cache.num_bytes <= RESIDENT_BYTES)

    def read(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut them."""
        inputs_BCHW, targets_BHW = self._images.patches(key.items, size=key.size)
        return torch.from_numpy(inputs_BCHW).permute(0, 2, 3, 1), torch.from_numpy(targets_BHW)


def _hear_no_interrupts(_: int) -> None:
    """Let the main process alone decide what Ctrl-C means, and let it end its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _lacking_shared_memory(dataset: _Dataset, sampler: EpochSampler, workers: int) -> str | None:
    """Tell why loader processes can't hand their batches over here, or None where they can."""
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
    if free >= need:
        return None
    return (
        f"loader processes need {need / 1e6:.0f} MB of shared memory, and {SHARED_MEMORY} "
        f"has {free / 1e6:.0f} MB free (docker run --shm-size gives more)"
    )
