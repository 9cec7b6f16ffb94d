"""`binseg demo`: the whole path in a few minutes, on images made on the spot."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Json, register

EXAMPLES = ("binseg demo", "binseg demo --out runs/demo --json")


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, demo, name="demo", examples=EXAMPLES)


def demo(
    context: typer.Context,
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for everything it makes.")
    ] = Path("runs/demo"),
    json_: Json = False,
) -> None:
    """Train a small model on synthetic images, score it, and set Otsu's method beside it."""
    from binseg.cli.screen import demo_table, report_items
    from binseg.pipelines.run_demo import demo as run

    result = run(out, progress=progress_of(context))
    if json_:
        write_json_answer(result.as_dict())
        return
    show(
        *report_items(result.report),
        demo_table(result),
        f"gallery: {result.gallery_path}",
        f"one predicted mask: {result.mask_path}",
        f"a real photo, by the built-in model of cats and dogs: {result.photo_path}",
    )
