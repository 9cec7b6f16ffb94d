"""`binseg train`: from pictures and masks to a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Border, Data, Device, Download, Json, Recipe, Set, nested, register
from binseg.errors import UsageError

if TYPE_CHECKING:
    from binseg.workflows.crossval import CrossResult
    from binseg.workflows.train import TrainResult

__all__ = ["add_to", "train"]

EXAMPLES = (
    "binseg train --data my_folder/ --out runs/first",
    "binseg train --data my_folder/ --model unet --epochs 100 --size 512 --batch-size 4",
    "binseg train --recipe report-d-unet --data oxford-iiit-pet/ --download --out runs/d",
    "binseg train my_recipe.yaml --set optimizer.lr=3e-4 --set train.ema_decay=0.99",
    "binseg train --data my_folder/ --logger tensorboard --logger wandb",
    "binseg train --out runs/first --resume",
    "binseg train --data my_folder/ --folds 5 --out runs/folds",
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
    download: Download = False,
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
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            metavar="K",
            help="Cross-validation: K runs in --out, and one report over all pictures.",
        ),
    ] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the stopped run in --out.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train a model, choose its threshold on the validation split, and pack it as a bundle."""
    from binseg.config import load_recipe
    from binseg.workflows.crossval import cross_validate, is_cross_validation, resume_folds
    from binseg.workflows.run_folder import next_run_path
    from binseg.workflows.train import TrainResult, resume_training
    from binseg.workflows.train import train as run

    sections = nested(
        data__path=data,
        data__download=download or None,
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
    result: TrainResult | CrossResult
    if resume:
        if out is None:
            raise UsageError("--resume needs --out FOLDER: the run to go on with")
        if file or recipe or sections or set_ or folds is not None:
            raise UsageError(
                "--resume goes on with the run's own recipe.yaml; leave out the other settings"
            )
        result = (
            resume_folds(out, progress=progress)
            if is_cross_validation(out)
            else (resume_training(out, progress=progress))
        )
    else:
        if file and recipe:
            raise UsageError("give either a recipe file or --recipe, not both")
        whole = load_recipe(file or recipe, overrides=set_ or (), sections=sections)
        folder = out or next_run_path(whole.model.name)
        result = (
            run(whole, out=folder, progress=progress)
            if folds is None
            else cross_validate(whole, folds=folds, out=folder, progress=progress)
        )
    if json_:
        write_json_answer(result.as_dict())
        return
    if isinstance(result, TrainResult):
        _show_run(result)
    else:
        _show_folds(result)


def _show_run(result: "TrainResult") -> None:
    from binseg.cli.tables import report_items
    from binseg.workflows.report_page import PAGE_NAME

    what = "--split test" if result.has_test else "--data OTHER_PICTURES/ --split all"
    show(
        *report_items(result.validation),
        f"best epoch {result.best_epoch} of {result.num_epochs}, threshold "
        f"{result.report.threshold:.3f}, {result.seconds:.0f} s",
        f"run: {result.folder}   curves: {result.folder / 'curves.png'}   "
        f"report: {result.folder / 'val' / PAGE_NAME}",
        "next:",
        f"  binseg evaluate {result.folder} {what}",
        f"  binseg predict {result.folder} YOUR_PICTURES/ --out predicted/",
    )


def _show_folds(result: "CrossResult") -> None:
    from binseg.cli.tables import folds_table, report_items
    from binseg.workflows.report_page import PAGE_NAME

    members = " --with ".join(str(fold.folder) for fold in result.folds)
    show(
        *report_items(result.pooled),
        folds_table(result),
        f"report: {result.pooled_folder / PAGE_NAME}   {result.seconds:.0f} s",
        "next: all folds together, as an ensemble",
        f"  binseg predict {members} YOUR_PICTURES/ --out predicted/",
    )
