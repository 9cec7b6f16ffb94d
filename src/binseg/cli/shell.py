"""The shell around all verbs: every failure becomes one line on stderr and an exit code.

0: done; 1: failed; 2: an option or a recipe that binseg doesn't accept; 130: stopped by Ctrl-C;
143: asked to terminate. `BINSEG_DEBUG=1` shows tracebacks.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from binseg.cli.console import message
from binseg.errors import BinsegError, training_extra_missing


class Verb(TyperCommand):
    """A verb whose help shows no type for switches, since they take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, `--help` included."""
        return _untyped(super().get_params(ctx))


class Verbs(TyperGroup):
    """A group of such verbs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, `--help` included."""
        return _untyped(super().get_params(ctx))


class Shell(Verbs):
    """A group of verbs that turns errors into lines, the same for `binseg` and for tests."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run the command line; ends in SystemExit unless `standalone_mode` is off."""
        try:
            code = super().main(args, standalone_mode=False, **extra)
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
            raise typer.Exit(exit_code_of(error)) from None


def _untyped(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if getattr(one, "is_flag", False):
            one.metavar = ""
    return parameters


def exit_code_of(error: Exception) -> int:
    """Print what went wrong in one line, and return the exit code."""
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
        return _fail("out of memory: lower --batch-size or --size, or use smaller images", 1)
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
    return _fail(f"{text.rstrip('.')}; see {command} --help", error.exit_code)


def _fail(line: str, code: int) -> int:
    message(f"binseg: {line}")
    return code
