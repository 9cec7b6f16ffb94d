"""`binseg compare`: is one model better than another, or is it noise?"""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import show, write_json_answer
from binseg.cli.options import Json, register

EXAMPLES = (
    "binseg compare runs/first runs/second --split test",
    "binseg compare runs/first/val/report.json runs/second/val --json",
)

OF = "Folder of a run, or of one of its reports, or a report.json."


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, compare, name="compare", examples=EXAMPLES)


def compare(
    *,
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help=OF)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help=OF)],
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="NAME",
            help="Which report of each run: test, val, or any folder of `binseg evaluate` in it.",
        ),
    ] = "test",
    score: Annotated[
        str,
        typer.Option("--score", metavar="NAME", help="The score that decides."),
    ] = "dice",
    json_: Json = False,
) -> None:
    """Compare two models on the same images, and say when the difference is noise."""
    from binseg.cli.screen import compare_items
    from binseg.evaluation.comparison import compare as compare_runs

    result = compare_runs(run_a, run_b, split=split, score=score)
    if json_:
        write_json_answer(result.as_dict())
    else:
        show(*compare_items(result))
