"""`binseg plan` and `binseg train`: from images and masks to a model."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binseg.cli import options as opt
from binseg.cli.console import RANK_NAMES, answer, is_verbose, progress_of, show
from binseg.cli.options import argument, option
from binseg.errors import UsageError
from binseg.progress import SILENT, Progress, duration

if TYPE_CHECKING:
    from binseg.config import Recipe as WholeRecipe
    from binseg.pipelines.cross_validate import CrossResult
    from binseg.pipelines.plan_recipe import PlanResult
    from binseg.pipelines.train_model import TrainResult

LONG = 3 * 3600.0  # seconds of a run above which the user is asked before it starts
Sections = dict[str, dict[str, object]]


def plan(
    context: typer.Context,
    *,
    place: opt.Place = None,
    data: opt.Data = None,
    budget: opt.Budget = None,
    download: opt.Download = False,
    border: opt.Border = None,
    device: opt.Device = None,
    from_: opt.From = None,
    out: Annotated[Path | None, option("Write the plan as a recipe to edit.", "FILE.yaml")] = None,
    set_: opt.Set = None,
    json_: opt.Json = False,
) -> None:
    """Look at the data and the machine, and say how to train: setting, value and reason.

    Examples:
        binseg plan my_folder/
        binseg plan my_folder/ --budget 2h --out my.yaml
        binseg train my.yaml --out runs/mine
        binseg plan my_folder/ --set model.name=resnet34-unet --json
    """
    from binseg.cli.screen import plan_items
    from binseg.pipelines.plan_recipe import check_plan_path, write_plan

    data = opt.needed_data(place, data, verb="plan")
    if out is not None:
        check_plan_path(out)
    sections = opt.nested(
        data__path=data,
        data__border=border,
        data__download=download or None,
        train__device=device,
        model__start_from=from_,
    )
    result = _planned(progress_of(context), sections, set_ or (), budget=budget)
    if out is not None:
        write_plan(result, out)
    options = {"--budget": budget, "--border": border, "--device": device, "--from": from_}
    words = [word for name, value in options.items() if value for word in (name, str(value))]
    words += [word for one in set_ or () for word in ("--set", one)]
    following = shlex.join(["binseg", "train", *([str(out)] if out else [data, *words])])
    answer(json_, result.as_dict(), *plan_items(result), "next:", f"  {following}")


def train(
    context: typer.Context,
    *,
    what: Annotated[
        str | None, argument("The images, as --data names them, or a recipe.", "DATA|RECIPE.yaml")
    ] = None,
    recipe: opt.Recipe = None,
    data: opt.Data = None,
    download: opt.Download = False,
    out: Annotated[
        Path | None, option("Folder for the run; runs/NUMBER-MODEL if left out.", "FOLDER")
    ] = None,
    model: opt.Model = None,
    encoder: Annotated[str | None, option("An encoder of `binseg encoders`.", "NAME")] = None,
    decoder: Annotated[
        str | None, option("unet, fpn, mlp, ...: any goes with any encoder.", "NAME")
    ] = None,
    epochs: Annotated[int | None, option("Passes over the data.")] = None,
    batch_size: opt.BatchSize = None,
    lr: Annotated[float | None, option("Learning rate.")] = None,
    size: opt.Size = None,
    encoder_weights: Annotated[
        str | None,
        option("Start the encoder from imagenet, a file, an address, or none of them.", "NAME"),
    ] = None,
    from_: opt.From = None,
    border: opt.Border = None,
    device: opt.Device = None,
    devices: Annotated[
        str | None,
        option("Processes that share each batch: a number of GPUs, or auto for all.", "N"),
    ] = None,
    num_nodes: Annotated[int | None, option("Machines that share each batch.", "M")] = None,
    seed: opt.Seed = None,
    logger: Annotated[
        list[str] | None,
        option("Beside metrics.csv: tensorboard, wandb or mlflow (repeatable).", "NAME"),
    ] = None,
    folds: Annotated[
        int | None,
        option("Cross-validation: K runs in --out, and one report over all images.", "K"),
    ] = None,
    budget: opt.Budget = None,
    checkpoint_every: Annotated[
        float | None,
        option("Save at least this often; 10 if left out.", "MINUTES", min=0.01),
    ] = None,
    set_: opt.Set = None,
    yes: Annotated[bool, option("Start runs of many hours without asking.")] = False,
    resume: Annotated[bool, option("Go on with the stopped run in --out.")] = False,
    json_: opt.Json = False,
) -> None:
    """Train a model, choose its threshold on the validation split, and pack it as a bundle.

    Without a recipe, the settings come from the data and the machine, as `binseg plan` shows them;
    what is given beside --data overrules them.

    Examples:
        binseg train my_folder/ --out runs/first
        binseg train my_folder/ --budget 2h --set model.name=resnet34-unet
        binseg train my_folder/ --model unet --epochs 100 --size 512 --batch-size 4
        binseg train pets/ --recipe pet-unet-cosine --download --out runs/lab
        binseg train my_recipe.yaml --set optimizer.lr=3e-4 --set train.tta=none
        binseg train my_folder/ --logger tensorboard --logger wandb
        torchrun --nproc-per-node 4 -m binseg train my_folder/ --out runs/four
        binseg train --out runs/first --resume
        binseg train my_folder/ --folds 5 --out runs/folds
        binseg train more_images/ --from runs/first --out runs/second
    """
    started = time.perf_counter()
    from binseg.cli.screen import folds_items, run_items
    from binseg.pipelines.cross_validate import cross_validate
    from binseg.pipelines.train_model import TrainResult
    from binseg.pipelines.train_model import train as run
    from binseg.training.run_folder import RunFolder, check_writable, next_run_path

    if resume and out is None:  # --resume FOLDER is --resume --out FOLDER
        if what is None or not Path(what).is_dir():
            told = f"there is no run {what}; for" if what else "which run? For"
            raise UsageError(f"{told} example: binseg train --resume runs/first")
        out, what = Path(what), None
    file, place = _recipe_or_data(what)
    data = opt.one_data(place, data)
    sections = opt.nested(
        data__path=data,
        data__download=download or None,
        data__border=border,
        model__name=model,
        model__encoder=encoder,
        model__decoder=decoder,
        model__encoder_weights=encoder_weights,
        model__start_from=from_,
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
    overrides = set_ or ()
    first = RunFolder(path=out).recipe_path if resume and out else file or recipe
    if _joins(first, sections, overrides, folds=folds is not None):
        return
    progress = progress_of(context)
    result: TrainResult | CrossResult
    if resume and out:
        is_changed = bool(file or recipe or sections or set_ or budget or folds is not None)
        result = _resume(out, checkpoint_every, progress, is_changed=is_changed)
    else:
        if file and recipe:
            raise UsageError("give either a recipe file or --recipe, not both")
        # What can't be written is refused before minutes are spent on a plan.
        if out is not None and folds is None:
            RunFolder.create(out)
        else:
            check_writable(out or Path("runs"))
        whole, text = _settings(
            file or recipe, sections, overrides, budget=budget, folds=folds or 1,
            progress=progress, is_agreed=yes, everything=is_verbose(context),
        )  # fmt: skip
        work = run if folds is None else partial(cross_validate, folds=folds)
        spent = time.perf_counter() - started
        folder = out or next_run_path(whole.model.name)
        result = work(whole, out=folder, progress=progress, spent=spent, plan=text)
    lay_out: Any = run_items if isinstance(result, TrainResult) else folds_items
    answer(json_, result.as_dict(), *lay_out(result, everything=is_verbose(context)))


def _settings(
    recipe: str | Path | None,
    sections: Sections,
    overrides: Sequence[str],
    *,
    budget: str | None,
    folds: int,
    progress: Progress,
    is_agreed: bool,
    everything: bool,
) -> "tuple[WholeRecipe, str | None]":
    """Take the recipe, and say how long it will take, or make a plan; with the plan's text."""
    from binseg.cli.screen import plan_items, plan_line
    from binseg.config import load_recipe
    from binseg.pipelines.continuing import continued

    if recipe is not None:
        limited = _limited(sections, budget)
        whole = continued(load_recipe(recipe, overrides=overrides, sections=limited))
        if progress is not SILENT and whole.train.budget_minutes is None:
            _tell_time(whole, progress, folds=folds, is_agreed=is_agreed)
        return whole, None
    planned = _planned(progress, sections, overrides, budget=budget, folds=folds)
    if progress is not SILENT:
        items = plan_items(planned)
        show(*(items if everything else [*items[:-1], plan_line(planned)]), aside=True)
    return planned.recipe, planned.as_yaml()


def _joins(
    recipe: str | Path | None, sections: Sections, overrides: Sequence[str], *, folds: bool
) -> bool:
    """Train along where this process isn't rank 0, which alone plans and writes."""
    train = sections.get("train", {})
    if folds and {"devices", "num_nodes"} & train.keys():
        raise UsageError("--folds trains in one process; leave out --devices and --num-nodes")
    if not set(RANK_NAMES) & os.environ.keys():
        return False  # the usual case, in which torch isn't needed yet
    from binseg.config import load_recipe
    from binseg.pipelines.train_model import join_training
    from binseg.training.distributed import ranks_of, started_ranks

    ranks = started_ranks()
    if ranks is not None and folds:
        raise UsageError("--folds trains in one process; start it without torchrun or srun")
    if ranks is None and int(os.environ.get("NODE_RANK", "0")) > 0:
        ranks = ranks_of(load_recipe(recipe, overrides=overrides, sections=sections))
    if ranks is None or ranks.rank == 0:
        return False
    join_training(ranks, device=str(sections.get("train", {}).get("device", "auto")))
    return True


def _tell_time(recipe: "WholeRecipe", progress: Progress, *, folds: int, is_agreed: bool) -> None:
    """Say how long a recipe will take here; in a terminal, ask before one that takes hours."""
    from binseg.pipelines.plan_recipe import time_of

    seconds = folds * time_of(recipe, progress=progress)
    line = f"this will take about {duration(seconds)} on this machine"
    if seconds > LONG:
        line += "; --budget 1h ends it in an hour, and without --recipe a plan fits this machine"
    progress.say(line)
    if seconds > LONG and not is_agreed and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm("Start it?", abort=True, err=True)


def _recipe_or_data(what: str | None) -> tuple[str | None, str | None]:
    """Tell a recipe, by its file's ending or its name, from images."""
    if what is None or Path(what).suffix.lower() in {".yaml", ".yml"}:
        return what, None
    from binseg.config.loading import recipe_names

    is_recipe = what in recipe_names() and not Path(what).exists()
    return (what, None) if is_recipe else (None, what)


def _resume(
    out: Path, checkpoint_every: float | None, progress: Progress, *, is_changed: bool
) -> "TrainResult | CrossResult":
    from binseg.pipelines.cross_validate import is_cross_validation, resume_folds
    from binseg.pipelines.train_model import resume_training

    if is_changed:
        told = "--resume goes on with the run's own recipe.yaml; leave out the other settings"
        raise UsageError(told)
    if not is_cross_validation(out):
        return resume_training(out, checkpoint_minutes=checkpoint_every, progress=progress)
    if checkpoint_every is not None:
        raise UsageError("a cross-validation resumes with its own --checkpoint-every; leave it out")
    return resume_folds(out, progress=progress)


def _limited(sections: Sections, budget: str | None) -> Sections:
    """Add the budget to the settings; none, too, overrules that of a recipe."""
    from binseg.pipelines.plan_recipe import parse_budget

    if budget is None:
        return sections
    seconds = parse_budget(budget)
    minutes = None if seconds is None else seconds / 60
    return {**sections, "train": {**sections.get("train", {}), "budget_minutes": minutes}}


def _planned(
    progress: Progress,
    sections: Sections,
    overrides: Sequence[str],
    *,
    budget: str | None,
    folds: int = 1,
) -> "PlanResult":
    from binseg.pipelines.plan_recipe import chosen_budget, plan

    seconds = chosen_budget(budget, sections=sections, overrides=overrides)
    plan_this = partial(plan, sections=sections, overrides=overrides, progress=progress)
    return plan_this(budget=seconds, folds=folds)
