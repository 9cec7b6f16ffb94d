"""Report the progress of long work to whoever listens: a terminal, a log, nobody."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@contextmanager
def hushed(
    name: str, *messages: tuple[str, type[Warning]], level: int = logging.ERROR
) -> Iterator[None]:
    """Silence a package's logger below a level, and the warnings that match a message."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            for message, category in messages:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        logger.setLevel(before)


@runtime_checkable
class Task(Protocol):
    """One piece of long work."""

    def advance(self, num: int = 1, /, **figures: float) -> None:
        """Report `num` more units as done; `figures` (loss=0.3) are shown beside the bar."""


class Detail(str):
    """A line that a terminal shows with --verbose alone; never what was ignored or changed."""

    __slots__ = ()


@runtime_checkable
class Progress(Protocol):
    """A listener: the shell's progress bars, a log, or nobody."""

    def say(self, line: str) -> None:
        """Report one fact to the user, now."""

    def task(self, label: str, *, total: int | None) -> AbstractContextManager[Task]:
        """Open a piece of work of `total` units (None: unknown)."""


class Silent:
    """The listener that ignores everything, for use as a library and in tests."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def advance(self, num: int = 1, /, **figures: float) -> None:
        """Do nothing."""

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Open a piece of work that nobody watches."""
        del label, total
        yield self


SILENT: Progress = Silent()


def duration(seconds: float) -> str:
    """Say a length of time in the unit that people would use.

    >>> duration(42), duration(150), duration(5400), duration(7 * 86400)
    ('42 s', '2.5 min', '1.5 h', '7 days')
    """
    units = ((172_800, 86_400, "days"), (5_400, 3_600, "h"), (60, 60, "min"), (0, 1, "s"))
    size, unit = next((size, unit) for least, size, unit in units if seconds >= least)
    num = seconds / size
    return f"{num:.1f}".removesuffix(".0") + f" {unit}" if num < 10 else f"{num:.0f} {unit}"


def track(items: Iterable[T], *, progress: Progress, label: str, total: int | None) -> Iterator[T]:
    """Yield the items, one unit of progress each.

    >>> list(track("ab", progress=SILENT, label="letters", total=2))
    ['a', 'b']
    """
    with progress.task(label, total=total) as task:
        for item in items:
            yield item
            task.advance()
