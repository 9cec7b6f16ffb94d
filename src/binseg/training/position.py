"""Where a run is: an epoch and a step, from which everything that comes next follows.

Order and augmentation have addresses, (seed, epoch) and (seed, epoch, step), so that a run that
starts its loader at an epoch and a step goes on as if it had never stopped. Lightning's own
counters depend on when a checkpoint was written and how often the run was resumed; here they are
set to what they would be in a run without any stop.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Sampler

from binseg.progress import Progress
from binseg.training.batches import Batch
from binseg.training.shared_memory import lacking_shared_memory

__all__ = ["FromStep", "Position", "loader_from", "set_counters"]

LOADER_SECONDS = 600.0
"""Without a batch from a loader process for so long, it hangs: no batch takes that much work."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """The step that a run trains on next."""

    epoch: int
    """From 0."""
    step: int
    """From 0; the number of an epoch's steps where only its validation is left."""

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}" if self.step else f"epoch {self.epoch}"


class FromStep(Sampler[Any]):
    """The batches of one epoch after another, the first epoch from a later step on.

    Args:
        sampler: gives a whole epoch's batches; its `set_epoch` chooses the epoch.
        position: where to start.
    """

    def __init__(self, sampler: Any, position: Position) -> None:
        self._sampler = sampler
        self._position = position
        self.set_epoch(position.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next (Lightning calls it, by this name)."""
        self._epoch = epoch
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        # Of a whole epoch: Lightning counts the steps before a resume as done.
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        skipped = self._position.step if self._epoch == self._position.epoch else 0
        for step, keys in enumerate(self._sampler):
            if step >= skipped:
                yield keys


def loader_from(
    loader: DataLoader[Batch], position: Position, *, progress: Progress
) -> DataLoader[Batch]:
    """Give the same loader, but from a position on, and safe from what can befall its processes.

    Args:
        loader: of whole epochs.
        position: where to start.
        progress: hears where the machine has no memory for loader processes to share; the main
            process then does their work, which gives the same run.
    """
    workers = loader.num_workers
    if workers and (reason := lacking_shared_memory(loader)):
        progress.say(
            f"{reason}, so that the main process loads the batches, as with train.workers 0; "
            "the run is the same"
        )
        workers = 0
    return DataLoader(
        loader.dataset,
        batch_size=None,
        sampler=FromStep(loader.sampler, position),
        num_workers=workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor if workers else None,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        persistent_workers=workers > 0,
        pin_memory=loader.pin_memory,
        timeout=LOADER_SECONDS if workers else 0,
    )


def set_counters(loops: dict[str, Any], position: Position, *, num_steps: int) -> None:
    """Set the counters of Lightning's checkpoint to those of a run without a stop.

    Args:
        loops: the state of its fit loop; changed in place.
        position: where the run is.
        num_steps: of an epoch.
    """
    batches: dict[str, Any] = loops["epoch_loop.batch_progress"]
    if 0 < position.step < num_steps:
        # As in a callback at the end of a step: that step isn't counted as completed yet.
        epoch, done = position.epoch + 1, position.epoch
        epochs = _counts(epoch, started=epoch, processed=done, completed=done)
        step, total = position.step, position.epoch * num_steps + position.step
        batches["current"] = _counts(step, started=step, processed=step, completed=step - 1)
        batches["total"] = _counts(total, started=total, processed=total, completed=total - 1)
        batches["is_last_batch"] = False
    else:
        # As in a callback at the end of an epoch.
        done = position.epoch + (position.step == num_steps)
        epochs = _counts(done, started=done, processed=done, completed=done - 1)
        total = done * num_steps
        batches["current"] = _counts(num_steps, num_steps, num_steps, num_steps)
        batches["total"] = _counts(total, total, total, total)
        batches["is_last_batch"] = True
    loops["epoch_progress"] = {"total": epochs, "current": dict(epochs)}


def _counts(ready: int, started: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "started": started, "processed": processed, "completed": completed}
