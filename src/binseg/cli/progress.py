"""Progress for people: live bars on a terminal, a line now and then in a log; always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from binseg.progress import Progress, Task

__all__ = ["LiveProgress", "PlainProgress", "open_progress"]

SECONDS_BETWEEN_LINES = 15.0
SECONDS_WORTH_A_LINE = 3.0


def open_progress() -> Progress:
    """Return bars where a person watches, plain lines where a log does."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


def _figures_text(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


class LiveProgress:
    """Bars that redraw themselves; several may be open at once, one below the other."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._num_open = 0

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        console = self._bars.console if self._bars is not None else self._console
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Open a bar."""
        bars = self._open()
        task = bars.add_task(label, total=total, figures="")
        try:
            yield _Bar(bars, task)
        finally:
            bars.update(task, visible=False)
            self._close()

    def _open(self) -> Bars:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        self._num_open += 1
        return self._bars

    def _close(self) -> None:
        self._num_open -= 1
        if self._num_open == 0 and self._bars is not None:
            self._bars.stop()
            self._bars = None


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task
        self._figures: dict[str, float] = {}

    def advance(self, num: int = 1, /, **figures: float) -> None:
        self._figures |= figures
        self._bars.update(self._task, advance=num, figures=_figures_text(self._figures))


class PlainProgress:
    """Lines in a log: facts at once, long work now and then and when it ends."""

    def say(self, line: str) -> None:
        """Print one line."""
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Time a piece of work, and say so if it was long."""
        lines = _Lines(label, total, self)
        yield lines
        lines.end()


class _Lines:
    def __init__(self, label: str, total: int | None, progress: PlainProgress) -> None:
        self._label = label
        self._total = total
        self._progress = progress
        self._num = 0
        self._start = self._last = time.monotonic()
        self._figures: dict[str, float] = {}

    def advance(self, num: int = 1, /, **figures: float) -> None:
        self._num += num
        self._figures |= figures
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._tell()

    def end(self) -> None:
        if time.monotonic() - self._start >= SECONDS_WORTH_A_LINE:
            self._tell()

    def _tell(self) -> None:
        of_total = "" if self._total is None else f"/{self._total}"
        seconds = time.monotonic() - self._start
        text = _figures_text(self._figures)
        self._progress.say(
            f"{self._label}: {self._num}{of_total} in {seconds:.0f} s  {text}".rstrip()
        )
