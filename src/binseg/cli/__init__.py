"""The command line: `binseg VERB`. Nothing heavy is imported before a verb runs."""

import gc
import sys
from typing import Annotated

import typer

from binseg.cli import model_verbs
from binseg.cli.console import Shell, exit_code_of
from binseg.cli.data_verbs import add_bench_to, augment, check
from binseg.cli.model_verbs import export, pack, verify
from binseg.cli.options import as_printed, register
from binseg.cli.predict import gather, predict
from binseg.cli.score_verbs import compare, demo, evaluate
from binseg.cli.serve import label, serve, suggest
from binseg.cli.train import plan, train

app = typer.Typer(
    name="binseg",
    cls=Shell,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # frames and columns would leave the text half of 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=as_printed(
        "First steps:",
        "binseg demo",
        "binseg check my_folder/",
        "binseg train my_folder/ --out runs/first",
        "binseg evaluate runs/first --split test",
        "binseg predict runs/first photo.jpg --out predicted/",
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
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every epoch, choice, table and rule.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Turn a folder of images with masks into a model that finds one kind of object."""
    context.obj = {"quiet": quiet, "verbose": verbose}


for _verb in (
    check, label, suggest, plan, train, evaluate, compare, predict, gather, pack,
    export, verify, augment, model_verbs.models, model_verbs.encoders,
):  # fmt: skip
    register(app, _verb)
model_verbs.add_recipes_to(app)
register(app, serve)
add_bench_to(app)
register(app, demo)


def main() -> None:
    """Run the command line; ends in SystemExit with the exit code."""
    try:
        app()
    except KeyboardInterrupt:  # before or after the verb itself
        sys.exit(130)
    except OSError as error:
        sys.exit(exit_code_of(error))
    finally:
        gc.freeze()  # else Python's end looks through all that torch and others made, for a second
