"""The terminal: results on stdout, all else on stderr, each failure one line and an exit code.

0: done; 1: failed; 2: an option or a recipe that binseg doesn't accept; 130: stopped by Ctrl-C;
143: asked to terminate. `BINSEG_DEBUG=1` shows tracebacks.
"""

import json
import os
import re
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from binseg.errors import BinsegError, UsageError, training_extra_missing
from binseg.progress import SILENT, Detail, Progress, Task
from binseg.shards import Shard
from binseg.storage import held

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 15.0
SECONDS_WORTH_A_LINE = 3.0
ANYWHERE = ("--verbose", "--quiet")  # Options of all verbs, which may stand behind the verb as well
ELSEWHERE = {  # Options as other programs call them
    "--learning-rate": "--lr", "--batch": "--batch-size", "--gpu": "--device",
    "--image-size": "--size", "--img-size": "--size", "--imgsz": "--size", "--config": "--recipe",
    "--output": "--out", "--output-dir": "--out", "--data-path": "--data", "--weights": "--from",
}  # fmt: skip
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_THEIRS = {  # Words of typer and pydantic, and ours for them
    "Input should be a valid integer, unable to parse string as an integer": "give a whole number",
    "Input should be a valid number, unable to parse string as a number": "give a number",
    "Input should be": "it should be",
}
WIDE = 100  # Columns of tables where no window limits them


def progress_of(context: typer.Context) -> Progress:
    """Return the listener for long work: bars on a terminal, lines in a log, or nothing."""
    if context.obj["quiet"]:
        return SILENT
    is_live = sys.stderr.isatty()
    return LiveProgress(shows_details=is_verbose(context)) if is_live else PlainProgress()


def is_verbose(context: typer.Context) -> bool:
    """Tell whether the user wants to see everything."""
    return bool(context.obj["verbose"])


def show(*items: object, aside: bool = False) -> None:
    """Print tables and lines on stdout, or on stderr beside the progress."""
    from rich.console import Console

    stream = sys.stderr if aside else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else WIDE)
    for item in items:
        shown = visible(item) if isinstance(item, str) else item
        # A window breaks lines between words, but never a command that is to be copied; a rule of
        # several sentences is broken everywhere.
        is_whole = isinstance(item, str) and (
            item.startswith("  ") or not (stream.isatty() or item.startswith("- "))
        )
        console.print(shown, highlight=False, markup=False, soft_wrap=is_whole)


def write_json_answer(answer: object) -> None:
    """Print one JSON document on stdout; nothing else may go there."""
    # ASCII: file names may hold bytes that no encoding of stdout can write.
    sys.stdout.write(json.dumps(answer, indent=2, allow_nan=False) + "\n")


def answer(as_json: bool, data: object, *items: object) -> None:
    """Print a result as one JSON document, or as tables and lines."""
    if as_json:
        write_json_answer(data)
    else:
        show(*items)


def visible(text: str) -> str:
    r"""Escape what would steer a terminal (names of files may hold it); line breaks stay.

    >>> visible("a\x1b[31m.png")
    'a\\x1b[31m.png'
    """
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def message(line: str) -> None:
    """Print one line on stderr, which a window breaks between words."""
    text = visible(" ".join(line.split()))
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(f"{text}\n")


class _Task:
    """Work whose progress is shown by a function of the units just done and this task."""

    def __init__(self, shown: Callable[[int, "_Task"], None]) -> None:
        self._shown = shown
        self._figures: dict[str, float] = {}
        self.num = 0

    def advance(self, num: int = 1, /, **figures: float) -> None:
        self.num += num
        self._figures |= figures
        self._shown(num, self)

    @property
    def figures(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self._figures.items())


class LiveProgress:
    """One line that redraws itself for the work begun last; `shows_details`: a `Detail` as well."""

    def __init__(self, *, shows_details: bool = False) -> None:
        from rich.console import Console

        self._console, self._shows_details = Console(stderr=True), shows_details
        self._bars: Bars | None = None
        self._open: list[TaskID] = []

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        if self._shows_details or not isinstance(line, Detail):
            self._console.print(line, highlight=False, markup=False)

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Open a bar."""
        bars = self._bars = self._bars or self._start()
        task = bars.add_task(label, total=total, figures="")
        self._open.append(task)
        self._show_last(bars)
        try:
            yield _Task(lambda num, work: bars.update(task, advance=num, figures=work.figures))
        finally:
            bars.update(task, visible=False)
            self._open.remove(task)
            self._show_last(bars)
            if not self._open:
                bars.stop()
                self._bars = None

    def _show_last(self, bars: "Bars") -> None:
        for one in self._open:
            bars.update(one, visible=one == self._open[-1])

    def _start(self) -> "Bars":
        from rich import progress as rich
        from rich.table import Column

        bars = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=16),
            rich.TaskProgressColumn(),
            rich.TextColumn("time left"),
            rich.TimeRemainingColumn(),
            rich.TextColumn(
                "{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)
            ),
            console=self._console,
            transient=True,
        )
        bars.start()
        return bars


class PlainProgress:
    """Lines in a log: facts at once, long work now and then and when it ends."""

    def say(self, line: str) -> None:
        """Print one line."""
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Time a piece of work, and report it if it was long."""
        start = last = time.monotonic()

        def tell(work: _Task) -> None:
            of_total = "" if total is None else f"/{total}"
            seconds = time.monotonic() - start
            line = f"{label}: {work.num}{of_total} in {seconds:.0f} s  {work.figures}"
            self.say(line.rstrip())

        def tell_now_and_then(_: int, work: _Task) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                tell(work)

        work = _Task(tell_now_and_then)
        yield work
        if time.monotonic() - start >= SECONDS_WORTH_A_LINE:
            tell(work)


RANK_NAMES = ("RANK", "SLURM_PROCID", "NODE_RANK")
"""Environment variables that torchrun, srun or a person set; rank 0 alone writes."""


class _Untyped:
    """Help that shows no type for switches, which take no value, nor beside an argument's name."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in parameters:
            if getattr(one, "is_flag", False):
                one.metavar = ""
            elif one.param_type_name == "argument":
                one.display_type_rich = lambda **_: None
        return parameters


class Verb(_Untyped, TyperCommand):
    """A verb: an option of one value is given once, and what it writes with --out is its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a verb; what is given twice is refused, not half of it dropped."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for one in order:
            if not isinstance(one, TyperOption) or one.multiple or one.count or one.is_flag:
                continue
            if order.count(one) > 1:
                flag = max(one.opts, key=len)
                raise UsageError(f"{flag} is given {order.count(one)} times; it takes one value")
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        """Run it, as the only command that writes there; a training's ranks write as one."""
        out = ctx.params.get("out")
        is_follower = any(os.environ.get(name, "0") != "0" for name in RANK_NAMES)
        if out is None or (ctx.info_name == "train" and is_follower):
            return super().invoke(ctx)
        text = ctx.params.get("shard")
        with held(out if text is None else Shard.parse(text).place(out)):
            return super().invoke(ctx)


class Verbs(_Untyped, TyperGroup):
    """A group of verbs."""


class Shell(Verbs):
    """The group of all verbs: it turns errors into lines, the same for `binseg` and for tests."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run the command line; ends in SystemExit unless `standalone_mode` is off."""
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        first = [one for one in given[:end] if one in ANYWHERE]
        rest = [one for one in given[:end] if one not in ANYWHERE]
        try:
            code = super().main([*first, *rest, *given[end:]], standalone_mode=False, **extra)
        except typer.TyperException as error:
            code = _say_usage(error)
        except typer.Abort:
            code = _fail("stopped", 130)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run the verb and translate what it raises."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(_fail("stopped by Ctrl-C", 130)) from None
        except Exception as error:  # noqa: BLE001 - the one place where everything ends
            verb = self.commands.get(ctx.invoked_subcommand or "")
            raise typer.Exit(exit_code_of(error, verb)) from None


def exit_code_of(error: Exception, verb: Any = None) -> int:
    """Print what went wrong in one line, and return the exit code; only options of `verb` help."""
    if os.environ.get("BINSEG_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError):
        error = training_extra_missing(error, purpose="this command") or error
    if isinstance(error, BinsegError):
        # A verb may report an interrupt in words of its own; it stays an interrupt.
        interrupted = isinstance(error.__context__, KeyboardInterrupt | SystemExit)
        code = 130 if interrupted and error.exit_code == 1 else error.exit_code
        return _fail(str(error), code)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has had enough (`| head`); Python must not complain at exit.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return 1
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror[:1].lower()}{error.strerror[1:]}", 1)
    if isinstance(error, MemoryError):
        known = {flag for one in getattr(verb, "params", ()) for flag in one.opts}
        lower = " or ".join(one for one in ("--batch-size", "--size", "--tile") if one in known)
        return _fail(f"out of memory: {lower and f'lower {lower}, or '}use smaller images", 1)
    traceback.print_exception(error)
    return _fail("this is a bug, not your mistake; please report it with the lines above", 1)


def _say_usage(error: typer.TyperException) -> int:
    """Print what is wrong with the command line, and where its help is."""
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(text)  # empty where the help has been printed already
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "binseg"
    if (name := getattr(error, "option_name", None)) and context is not None:
        known = {flag[2:] for one in context.command.params for flag in one.opts}
        likely = ELSEWHERE.get(name, name)[2:]  # dashes alike would make any two names alike
        alike = get_close_matches(likely, known, n=1, cutoff=0.7)
        hint = f"did you mean --{alike[0]}? See" if alike else "see"
        return _fail(f"there is no option {name}; {hint} {command} --help", error.exit_code)
    for theirs, ours in _THEIRS.items():
        text = text.replace(theirs, ours)
    return _fail(f"{text.rstrip('.')}; see {command} --help", error.exit_code)


def _fail(line: str, code: int) -> int:
    message(f"binseg: {line}")
    return code
