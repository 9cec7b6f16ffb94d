"""`binseg predict`: masks for pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from binseg.cli.console import message, progress_of, show, write_json_answer
from binseg.cli.options import Device, FlipsOption, Json, Run, With, register

if TYPE_CHECKING:
    from binseg.predictor import Flips

__all__ = ["add_to", "predict"]

EXAMPLES = (
    "binseg predict runs/first photo.jpg",
    "binseg predict runs/first photos/ 'more/*.png' --out predicted/ --overlay",
    "binseg predict runs/first photo.jpg --with runs/second --flips horizontal",
    "binseg predict runs/first product.jpg --cutout --threshold 0.7",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, predict, name="predict", examples=EXAMPLES)


def predict(
    context: typer.Context,
    *,
    run: Run,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUTS...", help="Pictures, folders or globs.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for the masks.")
    ] = Path("masks"),
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also the picture with the mask drawn over it.")
    ] = False,
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Also the object alone, on transparent ground.")
    ] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Also the probabilities, as 32-bit TIFF.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Probability above which a pixel is foreground."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace masks of an earlier run.")
    ] = False,
    with_: With = None,
    flips: FlipsOption = "none",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Write a 0/255 mask for every picture, at the picture's own size."""
    from binseg.predictor import load
    from binseg.workflows.predict import predict_files

    result = predict_files(
        load([run, *(with_ or ())], device=device or "auto", flips=cast("Flips", flips)),
        inputs,
        out=out,
        overlay=overlay,
        cutout=cutout,
        probability=probability,
        threshold=threshold,
        overwrite=overwrite,
        progress=progress_of(context),
    )
    if json_:
        write_json_answer(result.as_dict())
    else:
        num = len(result.written)
        show(f"{num} {'mask' if num == 1 else 'masks'} written to {out}")
    if result.failures:
        for failure in result.failures:
            message(f"binseg: {failure.reason}")
        if result.num_inputs > 1:
            message(f"binseg: {len(result.failures)} of {result.num_inputs} inputs failed")
        raise typer.Exit(1)
