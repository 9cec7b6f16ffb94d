"""Print results to stdout; progress and everything else to stderr."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from binseg.progress import Progress, Task

SECONDS_BETWEEN_LINES = 15.0
SECONDS_WORTH_A_LINE = 3.0
WIDE = 200
"""Columns where no window limits them."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that stand before the verb."""

    quiet: bool = False


def progress_of(context: typer.Context) -> "Progress":
    """Return the listener for long work: bars on a terminal, lines in a log, or nothing."""
    from binseg.progress import SILENT

    return SILENT if cast("Settings", context.obj).quiet else open_progress()


def open_progress() -> "Progress":
    """Return bars where a person watches, and plain lines where a log does."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


def stdout_console() -> "Console":
    """Return a console on today's stdout; as wide as needed where no window limits it."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def show(*items: object) -> None:
    """Print tables and lines on stdout."""
    _print(stdout_console(), items)


def show_aside(*items: object) -> None:
    """Print tables and lines on stderr, beside the progress."""
    from rich.console import Console

    width = None if sys.stderr.isatty() else WIDE
    _print(Console(stderr=True, width=width), items)


def _print(console: "Console", items: tuple[object, ...]) -> None:
    for item in items:
        console.print(item, highlight=False, markup=False, soft_wrap=isinstance(item, str))


def write_json_answer(answer: object) -> None:
    """Print one JSON document on stdout; nothing else may go there."""
    # ASCII: file names may hold bytes that no encoding of stdout can write.
    sys.stdout.write(json.dumps(answer, indent=2, allow_nan=False) + "\n")


def message(line: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(f"{' '.join(line.split())}\n")


class LiveProgress:
    """Bars that redraw themselves; several may be open at once, one below the other."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._num_open = 0

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        _print(self._console if self._bars is None else self._bars.console, (line,))

    @contextmanager
    def task(self, label: str, *, total: int | None) -> "Iterator[Task]":
        """Open a bar."""
        bars = self._bars = self._bars or self._start()
        self._num_open += 1
        task = bars.add_task(label, total=total, figures="")
        try:
            yield _Bar(bars, task)
        finally:
            bars.update(task, visible=False)
            self._num_open -= 1
            if self._num_open == 0:
                bars.stop()
                self._bars = None

    def _start(self) -> "Bars":
        from rich import progress as rich

        bars = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=28),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
        )
        bars.start()
        return bars


class _Bar:
    def __init__(self, bars: "Bars", task: "TaskID") -> None:
        self._bars, self._task = bars, task
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
    def task(self, label: str, *, total: int | None) -> "Iterator[Task]":
        """Time a piece of work, and report it if it was long."""
        lines = _Lines(label, total, self)
        yield lines
        lines.end()


class _Lines:
    def __init__(self, label: str, total: int | None, progress: PlainProgress) -> None:
        self._label, self._total, self._progress = label, total, progress
        self._num = 0
        self._start = self._last = time.monotonic()
        self._figures: dict[str, float] = {}

    def advance(self, num: int = 1, /, **figures: float) -> None:
        self._num += num
        self._figures |= figures
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._report()

    def end(self) -> None:
        if time.monotonic() - self._start >= SECONDS_WORTH_A_LINE:
            self._report()

    def _report(self) -> None:
        of_total = "" if self._total is None else f"/{self._total}"
        seconds = time.monotonic() - self._start
        line = f"{self._label}: {self._num}{of_total} in {seconds:.0f} s  "
        self._progress.say((line + _figures_text(self._figures)).rstrip())


def _figures_text(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
