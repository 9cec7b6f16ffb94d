"""Cross-validation: every image is scored once, by the model that did not learn from it.

fold-0/ ... fold-K-1/   runs like any other; fold k validates on the images of part k
pooled/                 one report over all images, each scored by its own fold's model
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from binseg.config import Recipe
from binseg.config.recipe import SplitConfig
from binseg.data.dataset import Dataset
from binseg.data.sources import open_dataset
from binseg.data.splits import seed_for_folds
from binseg.datacheck import keep_together
from binseg.errors import BundleError, DataError, UsageError
from binseg.evaluation.origin import Origin, choose_data, data_config
from binseg.evaluation.report_files import write_report
from binseg.evaluation.scoring import Scoring
from binseg.inference import Predictor, load
from binseg.metrics import report_as_dict
from binseg.pipelines.continuing import continued
from binseg.pipelines.train_model import resume_training, train
from binseg.progress import SILENT, Progress
from binseg.training.checkpoint import resume_command
from binseg.training.run_folder import RunFolder
from binseg.types import Figure, Report

FOLD_COLUMN = "cv_fold"  # the column of the pooled report that says whose model scored an image


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold's run, and its model's mean Dice on the images that it did not learn from."""

    folder: Path
    threshold: float
    num_images: int
    dice: Figure


@dataclass(frozen=True, kw_only=True)
class CrossResult:
    """The folds, and one report over all images."""

    folder: Path
    folds: tuple[Fold, ...]
    pooled: Report
    seconds: float

    @property
    def pooled_folder(self) -> Path:
        """The folder of the pooled report."""
        return self.folder / "pooled"

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "folder": str(self.folder),
            "folds": [
                vars(one) | {"folder": str(one.folder), "dice": one.dice.value}
                for one in self.folds
            ],
            "seconds": round(self.seconds, 1),
            "pooled": report_as_dict(self.pooled),
        }


def cross_validate(
    recipe: Recipe,
    *,
    folds: int,
    out: str | Path,
    spent: float = 0.0,
    plan: str | None = None,
    progress: Progress = SILENT,
) -> CrossResult:
    """Train a model for each fold of the data, and score every image out of its fold.

    Groups of images never span folds; the data's own test split is in no fold. `spent` seconds of
    the common budget are over; `plan`, the settings' reasons, is kept with every run. Raises
    UsageError, DataError (fewer groups, or images with foreground, than folds) and TrainingError.
    """
    if folds < 2:
        raise UsageError(f"{folds} folds: give 2 or more")
    folder = Path(out)
    if is_cross_validation(folder):
        raise UsageError(
            f"{folder} holds a cross-validation; add --resume to go on with it, or choose another "
            "folder with --out"
        )
    RunFolder.create(folder)
    first = _with_split(continued(recipe), method="kfold", folds=folds, fold=0)
    whole = keep_together(open_dataset(first.data), first.data, progress=progress)
    seed = seed_for_folds(whole, first.data.split)
    if seed != recipe.data.split.seed:
        progress.say(f"data.split.seed={seed}: else a fold would hold no foreground")
        first = _with_split(first, seed=seed)
    return _run(first, folder, progress, spent=spent, plan=plan)


def resume_folds(out: str | Path, *, progress: Progress = SILENT) -> CrossResult:
    """Go on with a cross-validation that was stopped; raises BundleError and DataError."""
    folder = Path(out)
    if not is_cross_validation(folder):
        raise BundleError(f"{folder} holds no cross-validation (no fold-0/recipe.yaml in it)")
    first = _run_of_fold(folder, 0)
    plan = first.plan_path.read_text("utf-8") if first.plan_path.is_file() else None
    return _run(first.recipe(), folder, progress, spent=0.0, plan=plan)


def is_cross_validation(folder: Path) -> bool:
    """Tell whether `binseg train --folds` has begun there."""
    return _run_of_fold(folder, 0).recipe_path.is_file()


def _run_of_fold(folder: Path, fold: int) -> RunFolder:
    return RunFolder(path=folder / f"fold-{fold}")


def _with_split(recipe: Recipe, **changes: object) -> Recipe:
    split = SplitConfig.model_validate(recipe.data.split.model_dump() | changes)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": split})})


def _run(
    first: Recipe, folder: Path, progress: Progress, *, spent: float, plan: str | None
) -> CrossResult:
    """Train the folds that aren't finished, the first one's recipe given, then score all images."""
    started = time.perf_counter()
    num_folds = first.data.split.folds
    command = resume_command(folder)
    runs = [_run_of_fold(folder, fold) for fold in range(num_folds)]
    for fold, run in enumerate(runs):
        if run.is_finished:
            progress.say(f"fold {fold} of {num_folds} is finished: {run.path}")
        elif RunFolder.find(run.path) is not None:
            progress.say(f"fold {fold} of {num_folds}: going on")
            resume_training(run.path, progress=progress, command=command)
        else:
            progress.say(f"fold {fold} of {num_folds}: {run.path}")
            recipe, share = _with_split(first, fold=fold), spent / num_folds
            facts = {"plan": plan, "command": command}
            train(recipe, out=run.path, spent=share, progress=progress, **facts)
        if run.data_fingerprint() != runs[0].data_fingerprint():
            raise DataError(
                f"{first.data.path}: the data has changed since {runs[0].path} was trained; "
                "start a new cross-validation in another folder"
            )
    predictors = [load(run.path, device=first.train.device) for run in runs]
    title = f"{first.model.name}, {num_folds}-fold cross-validation"
    report = _pool(predictors, folder / "pooled", title, progress)
    parts = {one.value: one for one in report.slices if one.by == FOLD_COLUMN}
    folds = []
    for fold, (run, predictor) in enumerate(zip(runs, predictors, strict=True)):
        num, dice, cut = parts[str(fold)].num_images, parts[str(fold)].dice, predictor.threshold
        folds.append(Fold(folder=run.path, threshold=cut, num_images=num, dice=dice))
    seconds = time.perf_counter() - started
    return CrossResult(folder=folder, folds=tuple(folds), pooled=report, seconds=seconds)


def _pool(predictors: Sequence[Predictor], out: Path, title: str, progress: Progress) -> Report:
    """Score each fold's shipped model on its own validation images; write one report of all."""
    parts = [_images_of(fold, predictor) for fold, predictor in enumerate(predictors)]
    scoring = Scoring()
    predictor_of: dict[str, Predictor] = {}
    for fold, (predictor, part) in enumerate(zip(predictors, parts, strict=True)):
        scoring.add(predictor, part, label=f"scoring fold {fold}", progress=progress)
        predictor_of |= {record.id: predictor for record in part.records}
    records = tuple(record for part in parts for record in part.records)
    assert len(predictor_of) == len(records), "every image is in one fold"
    dataset = replace(parts[0], records=records, notes=_notes(predictors))
    split, by = "out of fold", (FOLD_COLUMN,)
    report = scoring.report(dataset, predictors, split=split, title=title, by=by)
    write_report(out, report, dataset=dataset, predictor=predictors[0], predictor_of=predictor_of)
    return report


def _images_of(fold: int, predictor: Predictor) -> Dataset:
    origin = Origin.of(predictor)
    dataset = choose_data(data_config(origin), split="val", origin=origin)
    mark = {FOLD_COLUMN: str(fold)}
    marked = (replace(one, columns={**one.columns, **mark}) for one in dataset.records)
    return replace(dataset, records=tuple(marked))


def _notes(predictors: Sequence[Predictor]) -> tuple[str, ...]:
    """Say how the figures came to be, and in which direction they err."""
    thresholds = ", ".join(f"{one.threshold:.3f}" for one in predictors)
    return (
        "Every image is scored once, by the fold's model that was not trained on it, at that "
        f"fold's threshold ({thresholds}; the report states their mean).",
        "Each fold chose its best epoch and its threshold on the images that it is scored on, "
        "which flatters the figures a little; only a test split is free of that.",
        "The intervals are those of other images; that other training runs would give other "
        "models is not in them: look at how the folds differ.",
    )
