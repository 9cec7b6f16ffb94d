"""`binseg train`: from images and masks to a model."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from binseg.cli.console import progress_of, show, show_aside, write_json_answer
from binseg.cli.options import Border, Data, Device, Download, Json, Recipe, Set, nested, register
from binseg.cli.plan import Budget
from binseg.errors import UsageError

if TYPE_CHECKING:
    from binseg.pipelines.cross_validate import CrossResult
    from binseg.pipelines.plan_recipe import PlanResult
    from binseg.pipelines.train_model import TrainResult
    from binseg.progress import Progress

EXAMPLES = (
    "binseg train --data my_folder/ --out runs/first",
    "binseg train --data my_folder/ --budget 2h --set model.name=resnet34-unet",
    "binseg train --data my_folder/ --model unet --epochs 100 --size 512 --batch-size 4",
    "binseg train --recipe report-d-unet --data oxford-iiit-pet/ --download --out runs/d",
    "binseg train my_recipe.yaml --set optimizer.lr=3e-4 --set train.ema_decay=0.99",
    "binseg train --data my_folder/ --logger tensorboard --logger wandb",
    "binseg train --data my_folder/ --devices 2",
    "torchrun --nproc-per-node 4 -m binseg train --data my_folder/ --out runs/four",
    "binseg train --out runs/first --resume",
    "binseg train --resume runs/first --checkpoint-every 2",
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
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="NAME", help="An encoder of `binseg encoders`."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", metavar="NAME", help="unet, fpn, mlp, ...: any goes with any."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Height and width of the model's input.")
    ] = None,
    encoder_weights: Annotated[
        str | None,
        typer.Option(
            "--encoder-weights",
            metavar="NAME",
            help="Weights to start the encoder from: imagenet, a file, an address, or none. A plan "
            "takes imagenet where the weights are on this machine.",
        ),
    ] = None,
    border: Border = None,
    device: Device = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="N",
            help="Processes that share each batch: so many GPUs, or auto for all of them.",
        ),
    ] = None,
    num_nodes: Annotated[
        int | None,
        typer.Option("--num-nodes", metavar="M", help="Machines that share each batch."),
    ] = None,
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
            help="Cross-validation: K runs in --out, and one report over all images.",
        ),
    ] = None,
    budget: Budget = None,
    checkpoint_every: Annotated[
        float | None,
        typer.Option(
            "--checkpoint-every",
            metavar="MINUTES",
            min=0.01,
            help="Most minutes of work that a crash can cost; 10 if left out.",
        ),
    ] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the stopped run in --out.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train a model, choose its threshold on the validation split, and pack it as a bundle.

    Without a recipe, the settings come from the data and the machine, as `binseg plan` shows them;
    what is given beside --data overrules them.
    """
    started = time.perf_counter()
    from binseg.config import load_recipe
    from binseg.pipelines.cross_validate import cross_validate
    from binseg.pipelines.train_model import TrainResult
    from binseg.pipelines.train_model import train as run
    from binseg.training.run_folder import RunFolder, next_run_path

    sections = nested(
        data__path=data,
        data__download=download or None,
        data__border=border,
        model__name=model,
        model__encoder=encoder,
        model__decoder=decoder,
        model__encoder_weights=encoder_weights,
        train__epochs=epochs,
        train__batch_size=batch_size,
        train__device=device,
        train__devices=int(devices) if devices and devices.isdigit() else devices,
        train__num_nodes=num_nodes,
        train__seed=seed,
        train__loggers=logger or None,
        train__checkpoint_minutes=None if resume else checkpoint_every,
        optimizer__lr=lr,
        input__size=size,
    )
    if resume:
        out, file = _run_to_resume(out, file)
    if _joins(
        RunFolder(path=out).recipe_path if resume and out else file or recipe,
        sections,
        set_ or (),
        folds=folds is not None,
    ):
        return
    progress = progress_of(context)
    result: TrainResult | CrossResult
    if resume:
        if file or recipe or sections or set_ or budget or folds is not None:
            raise UsageError(
                "--resume goes on with the run's own recipe.yaml; leave out the other settings"
            )
        assert out is not None
        result = _resume(out, checkpoint_every, progress)
    else:
        if file and recipe:
            raise UsageError("give either a recipe file or --recipe, not both")
        if out is not None and folds is None:
            RunFolder.create(out)  # refused before minutes are spent on a plan
        text = None
        if file or recipe:
            whole = load_recipe(
                file or recipe, overrides=set_ or (), sections=_limited(sections, budget)
            )
        else:
            planned = _plan(progress, sections, set_ or [], budget=budget, folds=folds or 1)
            whole, text = planned.recipe, planned.as_yaml()
        folder = out or next_run_path(whole.model.name)
        spent = time.perf_counter() - started
        result = (
            run(whole, out=folder, progress=progress, spent=spent, plan=text)
            if folds is None
            else cross_validate(
                whole, folds=folds, out=folder, progress=progress, spent=spent, plan=text
            )
        )
    if json_:
        write_json_answer(result.as_dict())
        return
    if isinstance(result, TrainResult):
        _show_run(result)
    else:
        _show_folds(result)


def _joins(
    recipe: str | Path | None,
    sections: dict[str, dict[str, object]],
    overrides: Sequence[str],
    *,
    folds: bool,
) -> bool:
    """Train along where this process isn't rank 0, which alone plans and writes."""
    train = sections.get("train", {})
    if folds and {"devices", "num_nodes"} & train.keys():
        raise UsageError("--folds trains in one process; leave out --devices and --num-nodes")
    if not {"RANK", "SLURM_PROCID", "NODE_RANK"} & os.environ.keys():
        return False  # the usual case, in which torch isn't needed yet
    from binseg.config import load_recipe
    from binseg.pipelines.train_model import join_training
    from binseg.training.ranks import ranks_of, started_ranks

    ranks = started_ranks()
    if ranks is not None and folds:
        raise UsageError("--folds trains in one process; start it without torchrun or srun")
    if ranks is None and int(os.environ.get("NODE_RANK", "0")) > 0:
        ranks = ranks_of(load_recipe(recipe, overrides=overrides, sections=sections))
    if ranks is None or ranks.rank == 0:
        return False
    join_training(ranks, device=str(sections.get("train", {}).get("device", "auto")))
    return True


def _run_to_resume(out: Path | None, file: str | None) -> tuple[Path, str | None]:
    """Take `--resume FOLDER` for `--resume --out FOLDER`."""
    if out is not None:
        return out, file
    if file is not None and Path(file).is_dir():
        return Path(file), None
    raise UsageError("--resume needs --out FOLDER: the run to go on with")


def _resume(
    out: Path, checkpoint_every: float | None, progress: "Progress"
) -> "TrainResult | CrossResult":
    from binseg.pipelines.cross_validate import is_cross_validation, resume_folds
    from binseg.pipelines.train_model import resume_training

    if not is_cross_validation(out):
        return resume_training(out, checkpoint_minutes=checkpoint_every, progress=progress)
    if checkpoint_every is not None:
        raise UsageError("a cross-validation goes on with its own --checkpoint-every")
    return resume_folds(out, progress=progress)


def _limited(
    sections: dict[str, dict[str, object]], budget: str | None
) -> dict[str, dict[str, object]]:
    """Add the budget to the settings; none, too, overrules that of a recipe."""
    from binseg.pipelines.plan_recipe import parse_budget

    if budget is None:
        return sections
    seconds = parse_budget(budget)
    minutes = None if seconds is None else seconds / 60
    return {**sections, "train": {**sections.get("train", {}), "budget_minutes": minutes}}


def _plan(
    progress: "Progress",
    sections: dict[str, dict[str, object]],
    overrides: list[str],
    *,
    budget: str | None,
    folds: int,
) -> "PlanResult":
    """Derive the recipe, and show it."""
    from binseg.cli.plan import plan_items
    from binseg.pipelines.plan_recipe import chosen_budget, plan
    from binseg.progress import SILENT

    seconds = chosen_budget(budget, sections=sections, overrides=overrides)
    planned = plan(
        sections=sections, overrides=overrides, budget=seconds, folds=folds, progress=progress
    )
    if progress is not SILENT:
        show_aside(*plan_items(planned))
    return planned


def _show_run(result: "TrainResult") -> None:
    from binseg.cli.screen import report_items
    from binseg.evaluation.report_files import PAGE_NAME

    what = "--split test" if result.has_test else "--data OTHER_IMAGES/ --split all"
    show(
        *report_items(result.report),
        f"best epoch {result.best_epoch} of {result.num_epochs}, threshold "
        f"{result.report.threshold:.3f}, {result.seconds:.0f} s",
        f"run: {result.folder}   curves: {result.folder / 'curves.png'}   "
        f"report: {result.folder / 'val' / PAGE_NAME}",
        "next:",
        f"  binseg evaluate {result.folder} {what}",
        f"  binseg predict {result.folder} YOUR_IMAGES/ --out predicted/",
    )


def _show_folds(result: "CrossResult") -> None:
    from binseg.cli.screen import folds_table, report_items
    from binseg.evaluation.report_files import PAGE_NAME

    members = " --with ".join(str(fold.folder) for fold in result.folds)
    show(
        *report_items(result.pooled),
        folds_table(result),
        f"report: {result.pooled_folder / PAGE_NAME}   {result.seconds:.0f} s",
        "next: all folds together, as an ensemble",
        f"  binseg predict {members} YOUR_IMAGES/ --out predicted/",
    )
