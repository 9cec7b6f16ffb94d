"""The command line: `binseg VERB`. One module a verb; nothing heavy is imported before it runs."""

import sys
from typing import Annotated

import typer

from binseg.cli import (
    augment,
    bench,
    check,
    compare,
    demo,
    evaluate,
    export,
    label,
    models,
    pack,
    plan,
    predict,
    recipes,
    serve,
    suggest,
    train,
    verify,
)
from binseg.cli.console import Settings
from binseg.cli.shell import Shell, exit_code_of

__all__ = ["app", "main"]

app = typer.Typer(
    name="binseg",
    cls=Shell,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "[bold]First steps[/bold]\n\n"
        "binseg demo\n\n"
        "binseg check --data my_folder/\n\n"
        "binseg train --data my_folder/ --out runs/first\n\n"
        "binseg evaluate runs/first --split test\n\n"
        "binseg predict runs/first photo.jpg --out predicted/"
    ),
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"binseg {version('binseg')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only results and errors.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Turn a folder of images with masks into a model that finds one kind of object."""
    context.obj = Settings(quiet=quiet)


for verb in (
    check, label, suggest, plan, train, evaluate, compare, predict, pack, export, verify, augment,
    models, recipes, serve, bench, demo,
):  # fmt: skip
    verb.add_to(app)


def main() -> None:
    """Run the command line; ends in SystemExit with the exit code."""
    try:
        app()
    except KeyboardInterrupt:  # before or after the verb itself
        sys.exit(130)
    except OSError as error:
        sys.exit(exit_code_of(error))
