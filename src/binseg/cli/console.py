"""Where lines go: answers to stdout, everything said on the way to stderr."""

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from binseg.progress import Progress

__all__ = [
    "Settings",
    "message",
    "progress_of",
    "show",
    "show_aside",
    "stdout_console",
    "write_json_answer",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the options before the verb ask for."""

    quiet: bool = False


def progress_of(context: typer.Context) -> "Progress":
    """Return the listener for long work: bars on a terminal, lines in a log, or nothing."""
    from binseg.cli.progress import open_progress
    from binseg.progress import SILENT

    settings = cast("Settings", context.obj)
    return SILENT if settings.quiet else open_progress()


def stdout_console() -> "Console":
    """Return a console on today's stdout; as wide as needed where nobody's window limits it."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    return Console(width=200)


def show(*items: object) -> None:
    """Print tables and lines on stdout."""
    console = stdout_console()
    for item in items:
        console.print(item, highlight=False, markup=False, soft_wrap=isinstance(item, str))


def show_aside(*items: object) -> None:
    """Print tables and lines on stderr, beside what else is said on the way."""
    from rich.console import Console

    console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=200)
    for item in items:
        console.print(item, highlight=False, markup=False, soft_wrap=isinstance(item, str))


def write_json_answer(answer: object) -> None:
    """Print one JSON document on stdout; nothing else may go there."""
    # ASCII: file names may hold bytes that no encoding of stdout can write.
    sys.stdout.write(json.dumps(answer, indent=2, allow_nan=False) + "\n")


def message(line: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(f"{' '.join(line.split())}\n")
