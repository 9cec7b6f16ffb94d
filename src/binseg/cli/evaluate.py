"""`binseg evaluate`: how good a model is, on one split."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Border, Data, Device, Json, Run, Set, nested, register

__all__ = ["add_to", "evaluate"]

EXAMPLES = (
    "binseg evaluate runs/first",
    "binseg evaluate runs/first --split val --json",
    "binseg evaluate runs/first --data other_folder/ --split all --out scores/",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, evaluate, name="evaluate", examples=EXAMPLES)


def evaluate(
    context: typer.Context,
    *,
    run: Run,
    data: Data = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="train, val, test or all.")
    ] = "test",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Folder for report, table and pictures; RUN/SPLIT if left out.",
        ),
    ] = None,
    border: Border = None,
    set_: Set = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Score a model per image and pooled, at the pictures' own size and at the model's."""
    from binseg.cli.tables import report_items
    from binseg.predictor import load
    from binseg.workflows.evaluate import evaluate_split, report_folder
    from binseg.workflows.evaluation_data import Known, check_split_name, data_config

    check_split_name(split)
    predictor = load(run, device=device or "auto")
    config = data_config(
        Known.of(predictor), data, sections=nested(data__border=border), overrides=set_ or ()
    )
    folder = out or report_folder(run, split=split, data=data)
    evaluation = evaluate_split(
        predictor,
        data=config,
        split=split,
        out=folder,
        progress=progress_of(context),
    )
    if json_:
        write_json_answer(evaluation.as_dict())
        return
    show(*report_items(evaluation), f"written to {folder}")
