"""From a recipe to a run folder: data, training, threshold, bundle, validation scores."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from binseg.config import Recipe
from binseg.config.recipe import OptimizerConfig, PatchConfig
from binseg.data.cache import PixelCache
from binseg.data.dataset import Dataset, counted, name_some
from binseg.data.origins import dealt_anew
from binseg.data.patches import ImageCache, open_training_pixels, open_validation_pixels
from binseg.data.sources import SOURCES, open_dataset
from binseg.data.splits import foreground_in, lacking, write_split
from binseg.datacheck import LEAKS, keep_together, training_checks
from binseg.errors import DataError, StoppedError, UsageError
from binseg.evaluation.comparison import Comparison
from binseg.evaluation.learning_quality import gather_lessons, learn_quality
from binseg.evaluation.origin import Origin
from binseg.evaluation.report_files import write_report
from binseg.evaluation.scoring import score_dataset
from binseg.evaluation.tuning import Tuned, tell_calibration, tune_on_validation
from binseg.inference import ModelPredictor, PredictOptions, load, verify_reference
from binseg.inference.runtimes.torch import TorchBackend, folded
from binseg.losses import build_loss
from binseg.metrics import report_as_dict
from binseg.models import build_model, create_model, resolve_options
from binseg.packaging import Architecture, Card, DataFacts, Reference, write_bundle
from binseg.pipelines import continuing
from binseg.pipelines.budget import Ending, time_ending, training_seconds, within_time
from binseg.pipelines.continuing import continued, divide
from binseg.postprocess import NOTHING
from binseg.progress import SILENT, Progress
from binseg.report import plot_curves
from binseg.storage import write_text
from binseg.training.checkpoint import resume_command
from binseg.training.devices import resolve_device
from binseg.training.distributed import Ranks, process_group, rank_device, ranks_of
from binseg.training.loop import fit
from binseg.training.run_folder import RunFolder, environment
from binseg.training.step import check_model
from binseg.types import Report

NUM_REFERENCE = 2  # validation inputs that a bundle carries as its own test
CHOSEN_ON = (  # The sentence that goes with the scores of validation
    "These images chose epoch, threshold and post-processing: new images will fare somewhat worse."
)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A run's folder, and how good its model is on the validation split."""

    folder: Path
    report: Report  # the shipped model's scores on the validation split
    best_epoch: int
    num_epochs: int
    seconds: float
    beside: Comparison | None  # The earlier model (A) and the new one (B)
    has_test: bool  # True if the data has a test split, which no step of training looks at

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "folder": str(self.folder),
            "bundle": str(RunFolder(path=self.folder).bundle_path),
            "best_epoch": self.best_epoch,
            "num_epochs": self.num_epochs,
            "seconds": round(self.seconds, 1),
            "validation": report_as_dict(self.report),
            "earlier": None if self.beside is None else self.beside.as_dict(),
        }


def train(
    recipe: Recipe,
    *,
    out: str | Path,
    progress: Progress = SILENT,
    spent: float = 0.0,
    plan: str | None = None,
    command: str | None = None,
) -> TrainResult:
    """Train a model by a recipe and pack it as a bundle with its validation scores.

    `out` is absent or empty; `spent` seconds of the recipe's budget are over; `plan` is the recipe
    with its reasons; `command` goes on with the run after a stop. Raises UsageError, DataError
    (nothing to learn from), TrainingError (it diverged) and StoppedError (it was asked to stop).
    """
    started = time.perf_counter() - spent
    run, recipe = RunFolder.create(out), continued(recipe)
    _check_names(recipe)
    _check_used(recipe)
    # Whoever planned has opened the data before, and told its notes then.
    heard = progress if plan is None else SILENT
    dataset = keep_together(open_dataset(recipe.data, progress=heard), recipe.data, progress=heard)
    is_drawn = bool(dealt_anew(dataset.records, recipe.data.split.method))
    dataset = divide(dataset, recipe, progress)
    progress.say(dataset.notes[-1])
    _look_for_faults(dataset, recipe, progress, is_drawn=is_drawn)
    dataset = _with_truth(dataset, progress)

    def begin() -> None:
        facts = {"data_fingerprint": dataset.fingerprint()}
        run.write_start(recipe, facts, earlier=continuing.ancestors(recipe))
        if plan is not None:
            write_text(run.plan_path, plan)
        write_split(run.split_path, dataset, content_of=dataset.contents())  # now it is a run

    return _run(recipe, run, dataset, begin, progress, started=started, command=command)


def resume_training(
    out: str | Path,
    *,
    checkpoint_minutes: float | None = None,
    progress: Progress = SILENT,
    command: str | None = None,
) -> TrainResult:
    """Go on with a run that was stopped; raises BundleError, UsageError (finished), DataError."""
    started = time.perf_counter()
    run = RunFolder.open(out)
    if run.is_finished:
        raise UsageError(f"{run.path} is a finished run; train a new one with another --out")
    recipe = run.recipe()
    if checkpoint_minutes is not None:
        often = {"checkpoint_minutes": checkpoint_minutes}
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=often)})
    _check_names(recipe)
    # As it was when the run began: the fingerprint and the split are of images with masks only.
    dataset = _with_truth(open_dataset(recipe.data, progress=progress), progress)
    if dataset.fingerprint() != run.data_fingerprint():
        raise DataError(
            f"{dataset.root}: the data has changed since {run.path} was started; train a new run"
        )
    dataset = dataset.with_splits(run.splits())

    def begin() -> None:
        if not run.is_saved:
            progress.say("nothing was saved yet: starting with the first epoch")

    return _run(recipe, run, dataset, begin, progress, started=started, command=command)


@contextmanager
def _told_how_to_go_on(run: RunFolder, command: str | None) -> Iterator[None]:
    """Turn Ctrl-C outside of training itself into a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(
            f"interrupted; nothing is lost: go on with `{command or resume_command(run.path)}`",
            signal_number=signal.SIGINT,
        ) from None


def _check_names(recipe: Recipe) -> None:
    """Refuse unknown names and options, and absent devices, before a single file is read."""
    resolve_options(recipe.model.decoder, recipe.model.encoder, recipe.model.options)
    check_model(lambda: create_model(**recipe.model.arguments()), recipe)
    build_loss(recipe.loss.name, recipe.loss.options)
    ranks_of(recipe)


def _check_used(recipe: Recipe) -> None:
    """Refuse settings that this recipe would pass over in silence."""
    if recipe.draws_patches and recipe.train.per_epoch != "all":
        told = "train.per_epoch counts whole inputs, and this recipe draws patches"
        raise UsageError(f"{told}; set patches.per_epoch instead")
    if recipe.input.resize != "tile" and recipe.patches != PatchConfig():
        raise UsageError(
            f"patches.* needs input.resize: tile, and this recipe has {recipe.input.resize}; set "
            "input.resize=tile, or leave patches out"
        )
    given = recipe.optimizer.momentum
    if recipe.schedule.name == "onecycle" and given != OptimizerConfig().momentum:
        raise UsageError(
            f"optimizer.momentum {given:g}: onecycle moves the momentum itself; take another "
            "schedule, or leave it out"
        )


def _look_for_faults(
    dataset: Dataset, recipe: Recipe, progress: Progress, *, is_drawn: bool
) -> None:
    """Refuse images in two splits and masks beside their objects (DataError); say the rest."""
    config, findings = recipe.data, training_checks(dataset, progress=progress)
    if recipe.input.intensity != "dtype":
        findings = tuple(one for one in findings if one.code != "narrow-range")
    if recipe.input.depth > 8:
        findings = tuple(one for one in findings if one.code != "hidden-steps")
    for finding in findings:
        names = f" ({name_some(finding.ids)})" if finding.ids else ""
        advice = f"; {finding.advice}" if finding.code in ("narrow-range", "hidden-steps") else ""
        progress.say(f"{finding.text}{names}{advice}")
    # Copies that a split of our own could not keep together, or a published one has, are said only.
    is_drawn = is_drawn or SOURCES[dataset.kind].is_published
    passed = {*(LEAKS if config.allow_leaks else ()), *(("leak", "near-leak") if is_drawn else ())}
    passed |= {"all-shifted", "off-by-one"} if config.allow_shifts else set()
    bad = [one for one in findings if one.severity == "error" and one.code not in passed]
    if bad:
        option = "allow_leaks" if bad[0].code in LEAKS else "allow_shifts"
        raise DataError(
            f"{dataset.root}: {bad[0].text}"
            + (f" ({name_some(bad[0].ids)})" if bad[0].ids else "")
            + (f" and {len(bad) - 1} more such errors" if len(bad) > 1 else "")
            + f"; see `binseg check`, fix the data, or set data.{option}: true"
        )
    if "test" in lacking(dataset.with_truth(), foreground_in(dataset.rule)):
        progress.say("no test image holds foreground: scores on test will say nothing")


def _run(
    recipe: Recipe,
    run: RunFolder,
    dataset: Dataset,
    begin: Callable[[], None],
    progress: Progress,
    *,
    started: float,
    command: str | None,
) -> TrainResult:
    """Decode, train and ship; `begin` is called when nothing in the data can fail any more."""
    train, val = dataset.of_split("train"), dataset.of_split("val")
    train_pixels = open_training_pixels(train, dataset.rule, recipe, progress=progress)
    val_pixels = open_validation_pixels(val, dataset.rule, recipe, progress=progress)
    _check_foreground(train_pixels, "train")
    _check_foreground(val_pixels, "val")
    model = build_model(recipe, progress=progress)
    if recipe.model.start_from is not None and not run.is_saved:
        continuing.take_over(model, recipe, dataset, progress)
    begin()
    with run.in_use(), _told_how_to_go_on(run, command):
        seconds, minutes = None, recipe.train.budget_minutes
        if minutes is not None:
            ending = _time_ending(recipe, model, dataset, is_trained=False).seconds(recipe)
            spent = time.perf_counter() - started
            seconds = training_seconds(minutes, spent=spent, ending=ending, progress=progress)
        ranks = ranks_of(recipe)
        with process_group(ranks, rank_device(recipe.train.device, ranks)) as group:
            if group.world_size > 1:  # the others wait in `join_training`
                splits = {record.id: record.split for record in dataset.records}
                facts = {"splits": splits, "fingerprint": dataset.fingerprint()}
                job = {"recipe": recipe.model_dump_json(), "resume": run.is_saved}
                group.share_json(facts | job | {"seconds": seconds})
            fitted = fit(
                model,
                recipe=recipe,
                train=train_pixels,
                val=val_pixels,
                progress=progress,
                command=command,
                folder=run.path,
                resume=run.is_saved,
                seconds=seconds,
                group=group,
            )
        draw = partial(plot_curves, fitted.history, run.curves_path, title=recipe.model.name)
        draw(monitor=recipe.train.monitor)
        model.load_state_dict({name: torch.from_numpy(x) for name, x in fitted.best_state.items()})
        if minutes is not None:
            ending_now = _time_ending(recipe, model, dataset, is_trained=True)
            left = 60 * minutes - (time.perf_counter() - started)
            recipe = within_time(recipe, ending_now, left, progress)
        best = fitted.best_state
        report = ship(recipe, run, dataset, model, best, val_pixels=val_pixels, progress=progress)
        full = report.mean["original"]["dice"]
        draw(monitor=recipe.train.monitor, full=full)
        beside = continuing.compare_with_earlier(recipe, run, dataset.only("val"), progress)
        run.remove_training_files()  # the bundle is whole and has answered like its model
    return TrainResult(
        folder=run.path,
        report=report,
        best_epoch=fitted.best_epoch,
        num_epochs=len(fitted.history),
        beside=beside,
        seconds=time.perf_counter() - started,
        has_test=any(record.split == "test" for record in dataset.records),
    )


def _time_ending(recipe: Recipe, model: nn.Module, dataset: Dataset, *, is_trained: bool) -> Ending:
    judge = in_memory(recipe, model)
    return time_ending(judge, dataset, is_trained=is_trained)


def _with_truth(dataset: Dataset, progress: Progress) -> Dataset:
    kept = dataset.with_truth()
    if num := len(dataset.records) - len(kept.records):
        told = counted(num, "image without a mask is", "images without a mask are")
        progress.say(f"{told} left out")
    return kept


def _check_foreground(pixels: PixelCache | ImageCache, split: str) -> None:
    """Refuse a split without a single foreground pixel: every score on it would be empty talk."""
    if not pixels.holds(1):
        raise DataError(
            f"none of the {len(pixels)} {split} inputs has a foreground pixel; look at the masks "
            "with `binseg check`, or split otherwise (data.split.seed; for blocks "
            "data.split.method: ratio)"
        )


def ship(
    recipe: Recipe,
    run: RunFolder,
    dataset: Dataset,
    model: nn.Module,
    weights: Mapping[str, np.ndarray],
    *,
    val_pixels: PixelCache,
    progress: Progress,
) -> Report:
    """Choose the threshold, score the validation split, and write the bundle of the weights."""
    val = replace(dataset.only("val"), notes=(CHOSEN_ON,))
    tuned = tune_on_validation(recipe, in_memory(recipe, model), val, progress=progress)
    predictor = in_memory(recipe, model, tuned)
    title = f"{recipe.model.name}, validation"
    report = score_dataset(predictor, val, split="val", title=title, progress=progress)
    reference = _reference(predictor.with_options(PredictOptions(tta="none")), val_pixels)
    tell_calibration(tuned, report, progress)
    lessons = gather_lessons(predictor, dataset, progress=progress)
    known = learn_quality(predictor, dataset, lessons, progress=progress)
    card = _card(recipe, dataset, tuned, report).model_copy(update={"knowledge": known})
    bundle = write_bundle(run.bundle_path, card=card, weights=weights, reference=reference)
    shipped = load(run.bundle_path, device=resolve_device(recipe.train.device).type)
    assert shipped.bundle is not None
    check = verify_reference(shipped, shipped.bundle)
    assert check.passed, f"the bundle predicts otherwise than its model: {check}"
    report = replace(report, bundle_id=bundle.card.id)
    origin = Origin(run=run, card=bundle.card)
    write_report(run.path / "val", report, dataset=val, predictor=predictor, origin=origin)
    return report


def in_memory(recipe: Recipe, model: nn.Module, tuned: Tuned | None = None) -> ModelPredictor:
    """Wrap the model in memory as a predictor that works just like the one of its bundle."""
    device = resolve_device(recipe.train.device)
    return ModelPredictor(
        backend=TorchBackend(folded(deepcopy(model)).to(device), device=str(device)),
        preprocessing=recipe.preprocessing(),
        threshold=tuned.threshold.value if tuned else 0.5,
        bundle_id="in training",
        temperature=tuned.temperature if tuned else 1.0,
        postprocessing=tuned.postprocessing if tuned else NOTHING,
        tta=tuned.tta if tuned else "none",
    )


def _reference(predictor: ModelPredictor, pixels: PixelCache) -> Reference:
    """Take the validation inputs with the most foreground: an empty mask would test little."""
    shares = [float((target_HW == 1).mean()) for target_HW in pixels.targets_NHW]
    rows = np.argsort(shares, kind="stable")[::-1][:NUM_REFERENCE]
    input_NHWC = np.ascontiguousarray(pixels.inputs_NHWC[np.sort(rows)])
    probability_NHW = predictor.probability_of_inputs(input_NHWC)
    return Reference(input_NHWC=input_NHWC, probability_NHW=probability_NHW)


def _card(recipe: Recipe, dataset: Dataset, tuned: Tuned, report: Report) -> Card:
    sizes = Counter(record.split for record in dataset.records)
    facts, net = environment(), recipe.model
    packages = facts["packages"]
    assert isinstance(packages, Mapping)
    names = ("binseg", "torch", "lightning-fabric", "numpy")
    return Card(
        name=net.name,
        architecture=Architecture(
            **net.model_dump(include={"decoder", "encoder", "out_channels"}),
            options=resolve_options(net.decoder, net.encoder, net.options),
            in_channels=recipe.input.channels,
        ),
        preprocessing=recipe.preprocessing(),
        temperature=tuned.temperature,
        threshold=tuned.threshold,
        tta=tuned.tta,
        postprocess=tuned.postprocessing,
        border=dataset.rule.border or "none",
        data=DataFacts(
            kind=dataset.kind,
            fingerprint=dataset.fingerprint(),
            num_train=sizes["train"],
            num_val=sizes["val"],
            num_test=sizes["test"],
            note=f"continues {Path(net.start_from).name}" if net.start_from else "",
        ),
        scores={f"val, {size} size": dict(scores) for size, scores in report.mean.items()},
        versions={name: str({**facts, **packages}[name]) for name in ("python", *names)},
        recipe=recipe.model_dump(mode="json"),
    )


def join_training(ranks: Ranks, *, device: str = "auto") -> None:
    """Train along on a rank other than 0 until it ends the run; raises DataError, TrainingError."""
    with process_group(ranks, rank_device(device, ranks)) as group:
        job = group.share_json()
        recipe = Recipe.model_validate_json(job["recipe"])
        splits = job["splits"]
        dataset = open_dataset(recipe.data).with_splits(splits)
        known = tuple(record for record in dataset.records if record.id in splits)
        dataset = replace(dataset, records=known)
        if dataset.fingerprint() != job["fingerprint"]:
            raise DataError(
                f"{dataset.root}: process {group.rank + 1} of {group.world_size} finds other data "
                "there than the first; give all machines the same"
            )
        with suppress(StoppedError):  # rank 0 tells it
            # DDP begins by giving all ranks the weights of rank 0.
            fit(
                create_model(in_channels=recipe.input.channels, **recipe.model.arguments()),
                recipe=recipe,
                train=open_training_pixels(dataset.of_split("train"), dataset.rule, recipe),
                val=None,
                folder=Path(),
                resume=job["resume"],
                seconds=job["seconds"],
                group=group,
            )
