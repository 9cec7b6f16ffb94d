"""`binseg evaluate`: how good a model is, on one split."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Border, Data, Device, Json, Run, TTAOption, With, nested, register

if TYPE_CHECKING:
    from binseg.types import TTA

EXAMPLES = (
    "binseg evaluate runs/first",
    "binseg evaluate runs/first --split val --json",
    "binseg evaluate runs/first --by breed --tolerance 3",
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
            help="Folder for report, table and images; RUN/SPLIT if left out.",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="Score each value of this column of the data by itself (repeatable).",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="DISTANCE",
            help="How far an outline may be off for boundary F1: pixels, or mm with --spacing; 2 "
            "pixels if left out.",
        ),
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option("--spacing", metavar="MM", help="Millimetres per pixel; distances in mm."),
    ] = None,
    border: Border = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change how the data is read (repeatable): --set data.threshold=127.",
        ),
    ] = None,
    with_: With = None,
    tta: TTAOption = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Score a model per image and pooled, at the images' own size and at the model's."""
    from binseg.cli.screen import report_items
    from binseg.evaluation.origin import Origin, check_split_name, data_config
    from binseg.evaluation.report_files import PAGE_NAME
    from binseg.inference import load
    from binseg.metrics import report_as_dict
    from binseg.pipelines.evaluate_model import evaluate as evaluate_model
    from binseg.pipelines.evaluate_model import report_folder

    check_split_name(split)
    predictor = load([run, *(with_ or ())], device=device or "auto", tta=cast("TTA | None", tta))
    config = data_config(
        Origin.of(predictor), data, sections=nested(data__border=border), overrides=set_ or ()
    )
    named = {"border": border, "tolerance": tolerance, "spacing": spacing}
    changes = [f"{name}-{value}" for name, value in named.items() if value is not None]
    folder = out or report_folder(
        run,
        split=split,
        data=data,
        others=with_ or (),
        tta=tta,
        changes=[*changes, *(set_ or ())],
    )
    report = evaluate_model(
        predictor,
        data=config,
        split=split,
        out=folder,
        by=by or (),
        tolerance=tolerance,
        spacing=spacing,
        progress=progress_of(context),
    )
    if json_:
        write_json_answer(report_as_dict(report))
        return
    show(*report_items(report, by=by or ()), f"report: {folder / PAGE_NAME}")
