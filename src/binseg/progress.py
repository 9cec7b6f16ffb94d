"""How long work tells how far it is, without knowing who listens: a terminal, a log, nobody."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar, runtime_checkable

__all__ = ["SILENT", "Progress", "Silent", "Task", "track"]

T = TypeVar("T")


@runtime_checkable
class Task(Protocol):
    """One piece of long work."""

    def advance(self, num: int = 1, /, **figures: float) -> None:
        """Say that `num` more units are done; `figures` (loss=0.3) are shown beside the bar."""


@runtime_checkable
class Progress(Protocol):
    """A listener: the shell's progress bars, a log, or nobody."""

    def say(self, line: str) -> None:
        """Tell the user one fact, now."""

    def task(self, label: str, *, total: int | None) -> AbstractContextManager[Task]:
        """Open a piece of work of `total` units (None: unknown)."""


class _SilentTask:
    def advance(self, num: int = 1, /, **figures: float) -> None:
        """Do nothing."""


class Silent:
    """The listener that isn't there: for use as a library and in tests."""

    def say(self, line: str) -> None:
        """Do nothing."""

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Give a task that nobody watches."""
        del label, total
        yield _SilentTask()


SILENT: Progress = Silent()


def track(items: Iterable[T], *, progress: Progress, label: str, total: int | None) -> Iterator[T]:
    """Yield the items, one unit of progress each.

    >>> list(track("ab", progress=SILENT, label="letters", total=2))
    ['a', 'b']
    """
    with progress.task(label, total=total) as task:
        for item in items:
            yield item
            task.advance()
