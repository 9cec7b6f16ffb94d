"""Whether loader processes can hand their batches over: they need memory that processes share."""

import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

__all__ = ["lacking_shared_memory"]

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what processes share; containers often have 64 MB of it, or none."""
MEGABYTE = 1e6


def lacking_shared_memory(loader: DataLoader[Any]) -> str | None:
    """Tell why a loader's processes can't work here, or None where they can.

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
    batch = loader.dataset[next(iter(loader.sampler))]
    num_bytes = sum(tensor.nbytes for tensor in _tensors(batch))
    # Each process prepares some batches ahead, and one is in use.
    need = num_bytes * (loader.num_workers * (loader.prefetch_factor or 2) + 1)
    if free < need:
        return (
            f"loader processes need {need / MEGABYTE:.0f} MB of shared memory, and {SHARED_MEMORY} "
            f"has {free / MEGABYTE:.0f} MB free (docker run --shm-size gives more)"
        )
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
