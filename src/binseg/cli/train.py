"""`binseg train`: from pictures and masks to a model."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Border, Data, Device, Json, Recipe, Set, nested, register
from binseg.errors import UsageError

__all__ = ["add_to", "train"]

EXAMPLES = (
    "binseg train --data my_folder/ --out runs/first",
    "binseg train --data my_folder/ --model unet --epochs 100 --size 512 --batch-size 4",
    "binseg train --recipe report-d-unet --data oxford-iiit-pet/ --out runs/d",
    "binseg train my_recipe.yaml --set optimizer.lr=3e-4 --set train.ema_decay=0.99",
    "binseg train --data my_folder/ --logger tensorboard --logger wandb",
    "binseg train --out runs/first --resume",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, train, name="train", examples=EXAMPLES)


def train(
    context: typer.Context,
    *,
    file: Annotated[
        str | None, typer.Argument(metavar="RECIPE.yaml", help="A recipe of your own.")
    ] = None,
    recipe: Recipe = None,
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Folder for the run; runs/NUMBER-MODEL if left out."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="A name of `binseg models`.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures a step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Height and width of the model's input.")
    ] = None,
    encoder_weights: Annotated[
        str | None,
        typer.Option(
            "--encoder-weights", metavar="FILE", help="Published encoder weights to start from."
        ),
    ] = None,
    border: Border = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides every random choice.")] = None,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            "--logger",
            metavar="NAME",
            help="Beside metrics.csv: tensorboard, wandb or mlflow (repeatable).",
        ),
    ] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the stopped run in --out.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train a model, choose its threshold on the validation split, and pack it as a bundle."""
    from binseg.cli.tables import report_items
    from binseg.config import load_recipe
    from binseg.workflows.run_folder import next_run_path
    from binseg.workflows.train import resume_training
    from binseg.workflows.train import train as run

    sections = nested(
        data__path=data,
        data__border=border,
        model__name=model,
        model__encoder_weights=encoder_weights,
        train__epochs=epochs,
        train__batch_size=batch_size,
        train__device=device,
        train__seed=seed,
        train__loggers=logger or None,
        optimizer__lr=lr,
        input__size=size,
    )
    progress = progress_of(context)
    if resume:
        if out is None:
            raise UsageError("--resume needs --out FOLDER: the run to go on with")
        if file or recipe or sections or set_:
            raise UsageError(
                "--resume goes on with the run's own recipe.yaml; leave out the other settings"
            )
        result = resume_training(out, progress=progress)
    else:
        if file and recipe:
            raise UsageError("give either a recipe file or --recipe, not both")
        whole = load_recipe(file or recipe, overrides=set_ or (), sections=sections)
        result = run(whole, out=out or next_run_path(whole.model.name), progress=progress)
    if json_:
        write_json_answer(result.as_dict())
        return
    show(
        *report_items(result.validation),
        f"best epoch {result.best_epoch} of {result.num_epochs}, threshold "
        f"{result.report.threshold:.3f}, {result.seconds:.0f} s",
        f"run: {result.folder}   curves: {result.folder / 'curves.png'}   "
        f"gallery: {result.folder / 'val' / 'gallery.png'}",
        "next:",
        f"  binseg evaluate {result.folder} --split test",
        f"  binseg predict {result.folder} YOUR_PICTURES/ --out predicted/",
    )
