"""From a recipe to a run folder: data, training, threshold, bundle, validation scores."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from binseg.backends.torch_backend import TorchBackend
from binseg.bundle import Architecture, Card, DataFacts, Golden, write_bundle
from binseg.config import Recipe
from binseg.data.cache import PixelCache, open_cache
from binseg.data.dataset import Dataset, counted, name_some
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits, write_split
from binseg.doctor import quick_checks
from binseg.errors import DataError, UsageError
from binseg.losses import build_loss
from binseg.models.weights import load_encoder_weights
from binseg.models.zoo import build_model, resolve_options
from binseg.predictor import Predictor, load, verify_golden
from binseg.progress import SILENT, Progress
from binseg.report import draw_curves
from binseg.structures import Report
from binseg.training.callbacks import BEST
from binseg.training.checkpoints import LAST
from binseg.training.fit import FitResult, fit
from binseg.training.precision import resolve_device
from binseg.workflows.evaluation_data import Known
from binseg.workflows.run_folder import RunFolder, environment
from binseg.workflows.scoring import Evaluation, score_dataset, write_report
from binseg.workflows.tuning import Tuned, tell_calibration, tune_on_validation

__all__ = ["TrainResult", "resume_training", "train"]

NUM_GOLDEN = 2
"""Validation inputs that a bundle carries as its own test."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where a run is and how good its model is on the validation split."""

    folder: Path
    validation: Evaluation
    best_epoch: int
    num_epochs: int
    seconds: float
    has_test: bool
    """Whether the data has a test split, which no step of training looks at."""

    @property
    def report(self) -> Report:
        """The shipped model's scores on the validation split."""
        return self.validation.report

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "folder": str(self.folder),
            "bundle": str(RunFolder(path=self.folder).bundle_path),
            "best_epoch": self.best_epoch,
            "num_epochs": self.num_epochs,
            "seconds": round(self.seconds, 1),
            "validation": self.validation.as_dict(),
        }


def train(recipe: Recipe, *, out: str | Path, progress: Progress = SILENT) -> TrainResult:
    """Train a model by a recipe and pack it as a bundle with its validation scores.

    Args:
        recipe: every setting.
        out: folder for the run; absent or empty.
        progress: told how far it is.

    Raises:
        UsageError: a folder that holds something, or unknown names and options.
        DataError: nothing to learn from.
        TrainingError: it diverged.
    """
    run = RunFolder.create(out)
    _check_names(recipe)
    dataset = _open_data(recipe, progress)
    dataset = assign_splits(dataset, recipe.data.split)
    progress.say(dataset.notes[-1])
    _look_for_leaks(dataset, progress, allowed=recipe.data.allow_leaks)
    dataset = _with_truth(dataset, progress)
    return _run(recipe, run, dataset, resume=False, progress=progress)


def resume_training(out: str | Path, *, progress: Progress = SILENT) -> TrainResult:
    """Go on with a run that was stopped, by its own recipe and split.

    Args:
        out: the folder of the run.
        progress: told how far it is.

    Raises:
        BundleError: there is no run.
        UsageError: it is finished.
        DataError: its data has changed.
    """
    run = RunFolder.open(out)
    if run.bundle_path.exists():
        raise UsageError(f"{run.path} is a finished run; train a new one with another --out")
    recipe = run.recipe()
    _check_names(recipe)
    # As it was when the run began: the fingerprint and the split are of pictures with masks only.
    dataset = _with_truth(_open_data(recipe, progress), progress)
    if dataset.fingerprint() != run.data_fingerprint():
        raise DataError(
            f"{dataset.root}: the data has changed since {run.path} was started; train a new run"
        )
    splits = run.splits()
    dataset = replace(
        dataset, records=tuple(replace(r, split=splits[r.id]) for r in dataset.records)
    )
    has_checkpoint = (run.path / LAST).is_file()
    if not has_checkpoint:
        progress.say("no epoch was finished: starting with the first one")
    return _run(recipe, run, dataset, resume=has_checkpoint, progress=progress)


def _check_names(recipe: Recipe) -> None:
    """Refuse unknown names and options, and absent devices, before a single file is read."""
    resolve_options(recipe.model.name, recipe.model.options)
    build_loss(recipe.loss.name, recipe.loss.options)
    resolve_device(recipe.train.device)


def _open_data(recipe: Recipe, progress: Progress) -> Dataset:
    if recipe.data.path is None:
        raise UsageError("which pictures? Give --data PATH (or `synthetic`), or data.path")
    return open_dataset(recipe.data, progress=progress)


def _look_for_leaks(dataset: Dataset, progress: Progress, *, allowed: bool) -> None:
    """Run the doctor's quick part; pictures of one split in another are refused, or told.

    Raises:
        DataError: leaks that the recipe doesn't allow, with the first pictures named.
    """
    findings = quick_checks(dataset)
    for finding in findings:
        progress.say(f"{finding.text} ({name_some(finding.ids)})")
    leaks = [finding for finding in findings if finding.severity == "error"]
    if leaks and not allowed:
        raise DataError(
            f"{dataset.root}: {leaks[0].text} ({name_some(leaks[0].ids)})"
            + (f" and {len(leaks) - 1} more leaks" if len(leaks) > 1 else "")
            + "; see `binseg check`, mend the splits, or set data.allow_leaks: true"
        )


def _run(
    recipe: Recipe, run: RunFolder, dataset: Dataset, *, resume: bool, progress: Progress
) -> TrainResult:
    started = time.perf_counter()
    preprocessing = recipe.input.preprocessing()
    train_pixels, val_pixels = (
        open_cache(dataset.of_split(name), dataset.rule, preprocessing, progress=progress)
        for name in ("train", "val")
    )
    _check_foreground(train_pixels, "train")
    _check_foreground(val_pixels, "val")
    model = _build(recipe, progress)
    if not resume:
        run.write_start(recipe, {"data_fingerprint": dataset.fingerprint()})
        write_split(run.split_path, dataset)
    fitted = fit(
        model,
        recipe=recipe,
        train=train_pixels,
        val=val_pixels,
        folder=run.path,
        progress=progress,
        resume=resume,
    )
    draw_curves(
        fitted.history, run.curves_path, title=recipe.model.name, monitor=recipe.train.monitor
    )
    validation = _ship(
        recipe,
        run,
        dataset,
        model=model,
        fitted=fitted,
        val_pixels=val_pixels,
        progress=progress,
    )
    # The bundle is whole and has answered like its model: these weigh several times as much.
    for name in (LAST, BEST):
        (run.path / name).unlink(missing_ok=True)
    return TrainResult(
        folder=run.path,
        validation=validation,
        best_epoch=fitted.best_epoch,
        num_epochs=len(fitted.history),
        seconds=time.perf_counter() - started,
        has_test=any(record.split == "test" for record in dataset.records),
    )


def _with_truth(dataset: Dataset, progress: Progress) -> Dataset:
    """Leave out the pictures that have no mask: they can neither teach nor judge."""
    kept = tuple(r for r in dataset.records if r.mask_path is not None or r.shapes is not None)
    if len(kept) < len(dataset.records):
        num = len(dataset.records) - len(kept)
        told = counted(num, "picture without a mask is", "pictures without a mask are")
        progress.say(f"{told} left out")
    return replace(dataset, records=kept)


def _check_foreground(pixels: PixelCache, split: str) -> None:
    """Refuse a split without a single foreground pixel: every score on it would be empty talk."""
    if not any((target_HW == 1).any() for target_HW in pixels.targets_NHW):
        raise DataError(
            f"none of the {len(pixels)} {split} inputs has a foreground pixel; look at the masks "
            "with `binseg check`, or split otherwise (data.split.seed)"
        )


def _build(recipe: Recipe, progress: Progress) -> nn.Module:
    """Build the network; its first weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = build_model(
            recipe.model.name, in_channels=recipe.input.channels, options=recipe.model.options
        )
    if recipe.model.encoder_weights is not None:
        num = load_encoder_weights(
            model, recipe.model.encoder_weights, sha256=recipe.model.encoder_sha256
        )
        progress.say(f"encoder weights: {num} tensors from {recipe.model.encoder_weights}")
    return model


def _ship(
    recipe: Recipe,
    run: RunFolder,
    dataset: Dataset,
    *,
    model: nn.Module,
    fitted: FitResult,
    val_pixels: PixelCache,
    progress: Progress,
) -> Evaluation:
    """Choose the threshold, score the validation split, and write the bundle with both."""
    model.load_state_dict({name: torch.from_numpy(x) for name, x in fitted.best_state.items()})
    device = resolve_device(recipe.train.device)
    backend = TorchBackend(model.to(device), device=str(device), precision="fp32")
    val = replace(dataset, records=dataset.of_split("val"), notes=())
    tuned = tune_on_validation(recipe, _judge(recipe, backend), val, progress=progress)
    judge = _judge(recipe, backend, tuned)
    evaluation = score_dataset(
        judge, val, split="val", title=f"{recipe.model.name}, validation", progress=progress
    )
    golden = _golden(judge, val_pixels)
    tell_calibration(tuned, evaluation.report, progress)
    card = _card(recipe, dataset, tuned, evaluation.report)
    bundle = write_bundle(run.bundle_path, card=card, weights=fitted.best_state, golden=golden)
    _check_shipped(load(run.bundle_path, device=device.type))
    report = replace(evaluation.report, bundle_id=bundle.card.id)
    evaluation = replace(evaluation, report=report)
    known = Known(run=run, card=bundle.card)
    write_report(run.path / "val", evaluation, dataset=val, predictor=judge, known=known)
    return evaluation


def _judge(recipe: Recipe, backend: TorchBackend, tuned: Tuned | None = None) -> Predictor:
    """The model in memory, as a predictor that works just like the one of its bundle."""
    return Predictor(
        backend=backend,
        preprocessing=recipe.input.preprocessing(),
        threshold=tuned.threshold.value if tuned else 0.5,
        bundle_id="in training",
        temperature=tuned.temperature if tuned else 1.0,
    )


def _golden(judge: Predictor, pixels: PixelCache) -> Golden:
    """Take the validation inputs with the most foreground: an empty answer would test little."""
    shares = [float((target_HW == 1).mean()) for target_HW in pixels.targets_NHW]
    rows = np.argsort(shares, kind="stable")[::-1][:NUM_GOLDEN]
    input_NHWC = np.ascontiguousarray(pixels.inputs_NHWC[np.sort(rows)])
    return Golden(input_NHWC=input_NHWC, probability_NHW=judge.probability_of_inputs(input_NHWC))


def _card(recipe: Recipe, dataset: Dataset, tuned: Tuned, report: Report) -> Card:
    sizes = Counter(record.split for record in dataset.records)
    facts = environment()
    packages = facts["packages"]
    assert isinstance(packages, Mapping)
    return Card(
        name=recipe.model.name,
        architecture=Architecture(
            name=recipe.model.name,
            options=resolve_options(recipe.model.name, recipe.model.options),
            in_channels=recipe.input.channels,
        ),
        preprocessing=recipe.input.preprocessing(),
        temperature=tuned.temperature,
        threshold=tuned.threshold,
        border=dataset.rule.border or "none",
        data=DataFacts(
            kind=dataset.kind,
            fingerprint=dataset.fingerprint(),
            num_train=sizes["train"],
            num_val=sizes["val"],
            num_test=sizes["test"],
        ),
        scores={f"val, {size} size": dict(scores) for size, scores in report.mean.items()},
        versions={
            "python": str(facts["python"]),
            **{name: str(packages[name]) for name in ("binseg", "torch", "lightning", "numpy")},
        },
        recipe=recipe.model_dump(mode="json"),
    )


def _check_shipped(shipped: Predictor) -> None:
    """Hold the bundle, read back from disk, to the answers of the model in memory."""
    assert shipped.bundle is not None
    check = verify_golden(shipped, shipped.bundle)
    assert check.passed, f"the bundle answers otherwise than its model: {check}"
