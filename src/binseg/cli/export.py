"""`binseg export`: a model for other runtimes, proven before it is written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Json, Run, register

if TYPE_CHECKING:
    from binseg.pipelines.export_model import ExportResult

EXAMPLES = (
    "binseg export runs/first --to onnx",
    "binseg export runs/first --to openvino --int8 --out model.openvino.zip",
    "binseg export runs/first --to torch",
    "binseg export runs/first --to bundle",
    "binseg verify runs/first/first.onnx",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, export, name="export", examples=EXAMPLES)


def export(
    context: typer.Context,
    *,
    run: Run,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="KIND",
            help="onnx, openvino or torch: one file for raw pixels of any size; bundle: the "
            "network inside the bundle, so that binseg predicts without torch.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The file; beside the run if left out."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit numbers, calibrated on validation images.")
    ] = False,
    pixels: Annotated[
        str,
        typer.Option(
            "--pixels",
            metavar="KIND",
            help="Pixels that the file takes: uint8, or float32 (0 to 1; of 16-bit images, say).",
        ),
    ] = "uint8",
    max_dice_change: Annotated[
        float | None,
        typer.Option(
            "--max-dice-change",
            metavar="SHARE",
            help="Largest change of Dice by int8, instead of 0.003.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Export a model; nothing is written unless it computes like the original."""
    from binseg.pipelines.export_model import export_model

    result = export_model(
        run,
        target=to,
        out=out,
        int8=int8,
        pixels=pixels,
        max_dice_change=max_dice_change,
        progress=progress_of(context),
    )
    if json_:
        write_json_answer(result.as_dict())
    else:
        show(*_items(result))


def _items(result: "ExportResult") -> list[object]:
    from binseg.cli.screen import plain_table

    table = plain_table(
        "the proof",
        "runtime",
        "precision",
        "beside",
        "images",
        "largest difference",
        "masks agree (IoU)",
        "Dice change",
        "",
    )
    for one in result.proofs:
        table.add_row(
            one.runtime,
            one.precision,
            one.beside,
            str(one.num_images),
            f"{one.largest_difference:.2g}",
            f"{one.agreement:.5f}",
            "" if one.dice_change is None else f"{one.dice_change:+.5f}",
            "passed" if one.passed else "failed",
        )
    return [table, f"{result.path}: {result.num_bytes / 1e6:.1f} MB"]
