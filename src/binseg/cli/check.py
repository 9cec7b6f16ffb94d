"""`binseg check`: show what is in a data set, and what is wrong with it."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Border, Download, Json, Recipe, RequiredData, Set, nested, register
from binseg.errors import DataError

EXAMPLES = (
    "binseg check --data my_folder/",
    "binseg check --data my_folder/ --html check.html",
    "binseg check --data my_folder/ --strict --json",
    "binseg check --data masks.csv --set 'data.foreground=[1, 2]'",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, check, name="check", examples=EXAMPLES)


def check(
    context: typer.Context,
    *,
    data: RequiredData,
    download: Download = False,
    recipe: Recipe = None,
    border: Border = None,
    set_: Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page with the findings and their images."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Check every image and mask of a data set; exit code 1 if something is wrong."""
    from binseg.cli.screen import check_tables
    from binseg.config import load_recipe
    from binseg.pipelines.check_data import check as run

    whole = load_recipe(
        recipe,
        overrides=set_ or (),
        sections=nested(data__path=data, data__border=border, data__download=download or None),
    )
    result = run(whole.data, page=html, progress=progress_of(context))
    if json_:
        write_json_answer(result.as_dict())
    elif not result.facts:
        raise DataError(result.findings[0].text)  # nothing could be opened: no table of one cell
    else:
        show(*check_tables(result))
    if result.failed(strict=strict):
        raise typer.Exit(1)
