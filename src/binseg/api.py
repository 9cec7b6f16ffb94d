"""The calls that `import binseg` offers, in the terms of the field; they join the rooms below."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

from binseg.errors import UsageError, suggest, training_extra_missing
from binseg.inference import EnsemblePredictor, LoadSettings, ModelPredictor, PredictOptions
from binseg.inference.engine import predict_files as run_files
from binseg.inference.opening import open_model
from binseg.inference.predictor import Predictor
from binseg.inference.sinks import PredictResult
from binseg.progress import SILENT, Progress
from binseg.shards import Shard
from binseg.types import Report

if TYPE_CHECKING:
    from binseg.config import DataConfig, Recipe
    from binseg.data.dataset import Dataset
    from binseg.pipelines.export_model import ExportResult
    from binseg.pipelines.plan_recipe import PlanResult
    from binseg.pipelines.train_model import TrainResult

_TARGETS = {".onnx": "onnx", ".zip": "openvino", ".pt2": "torch"}
"""Kind of export by the file's suffix."""


class _Evaluated:
    """The scores of a predictor on a data set."""

    def evaluate(
        self,
        data: "DataConfig | str | Path | None" = None,
        *,
        split: str = "test",
        out: str | Path | None = None,
        by: Sequence[str] = (),
        tolerance: float | None = None,
        spacing: float | None = None,
        progress: Progress = SILENT,
    ) -> Report:
        """Score the model on one split; `binseg.evaluate` describes arguments and errors."""
        from binseg.pipelines.evaluate_model import evaluate

        model = cast("Predictor", self)
        return evaluate(
            model, data=data, split=split, out=out, by=by, tolerance=tolerance, spacing=spacing,
            progress=progress,
        )  # fmt: skip


class Model(_Evaluated, ModelPredictor):
    """A trained model: `predict`, `evaluate`, `export`; `load` and a run's `model` give it."""

    def export(
        self, path: str | Path, *, int8: bool = False, progress: Progress = SILENT
    ) -> "ExportResult":
        """Write the model as one file for other runtimes, proven beside torch on images.

        Args:
            path: .onnx (ONNX), .zip (OpenVINO) or .pt2 (torch.export).
            int8: 8-bit whole numbers, calibrated on validation images.
            progress: told of each step.

        Raises:
            UsageError: another suffix.
            ExportError: the proof failed; nothing is written.
            MissingExtraError: what the export needs isn't installed.
        """
        with _needing_torch("exporting"):
            from binseg.pipelines.export_model import export_model
        target = _TARGETS.get(Path(path).suffix.lower())
        if target is None:
            raise UsageError(f"{path}: an exported model ends in one of {', '.join(_TARGETS)}")
        assert self.bundle is not None, "only bundles are loaded"
        return export_model(self.bundle.path, target=target, out=path, int8=int8, progress=progress)


class Ensemble(_Evaluated, EnsemblePredictor):
    """Several models that answer together: the mean of their probabilities.

    Args:
        members: at least two, of one border rule; they may differ in everything else.
        threshold: of the mean; the mean of the members' own if left out.
    """


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training: its folder, its figures and its model."""

    result: "TrainResult"

    @property
    def folder(self) -> Path:
        """The folder that holds everything."""
        return self.result.folder

    @property
    def report(self) -> Report:
        """The model's scores on the validation split."""
        return self.result.report

    @property
    def model(self) -> Model:
        """The trained model, loaded anew with each call."""
        return load(self.folder)


@overload
def load(path: str | Path, **settings: Unpack[LoadSettings]) -> Model: ...
@overload
def load(path: Sequence[str | Path], **settings: Unpack[LoadSettings]) -> Model | Ensemble: ...
def load(
    path: str | Path | Sequence[str | Path], **settings: Unpack[LoadSettings]
) -> Model | Ensemble:
    """Open a model to predict with, or several that answer together.

    Args:
        path: a bundle's folder, its zip, a run's folder, or "pets", the model of cats and dogs
            that comes with binseg; several make an ensemble.
        settings: backend, device, precision, batch_size and tta, as `LoadSettings` tells.

    Raises:
        BundleError: missing, damaged, edited, foreign, or of a newer format; or no installed
            runtime gives the reference sample's answer.
        UsageError: an unknown backend, device or precision.
        MissingExtraError: the runtime isn't installed.

    >>> from binseg.inference.pretrained import default_bundle_path, photo_path
    >>> model = load(default_bundle_path(), device="cpu")
    >>> model.predict([photo_path(), photo_path()], batch_size=2)[1].mask.shape
    (300, 451)
    """
    if isinstance(path, str | Path):
        return open_model(path, Model, **settings)
    members = [open_model(one, Model, **settings) for one in path]
    return members[0] if len(members) == 1 else Ensemble(members)


def predict_files(
    model: Predictor | str | Path,
    inputs: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    options: PredictOptions | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shard: str | None = None,
    progress: Progress = SILENT,
) -> PredictResult:
    """Write a 0/255 mask for every image, at the image's own size, as `binseg predict` does.

    Args:
        model: a predictor, a run or a bundle.
        inputs: files, folders (with the folders in them, whose structure is kept) and globs.
        out: folder for the masks.
        options: other settings than the model's own, and which files each image gets.
        overwrite: replace files of an earlier run; inputs are never replaced.
        resume: leave out images whose outputs are there already, if they are of these images,
            this model and these settings.
        shard: this share of the images alone, such as "3/100"; `binseg gather` joins all.
        progress: told of every image.

    Returns:
        What was written; inputs that failed are in it too, and stop nothing.

    Raises:
        UsageError: an output would replace a file that is there, or one that was to be kept is of
            another image, model or setting.
        OutputError: an output can't be written.
    """
    predictor = load(model) if isinstance(model, str | Path) else model
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    part = None if shard is None else Shard.parse(shard)
    return run_files(
        predictor, given, out=out, options=options, overwrite=overwrite, resume=resume, shard=part,
        progress=progress,
    )  # fmt: skip


def open_dataset(data: "DataConfig | str | Path", *, progress: Progress = SILENT) -> "Dataset":
    """List the images and masks of a data set; pixels are read when they are asked for.

    Args:
        data: a folder, a manifest or an annotation file; or a `DataConfig`, which can say more.
        progress: told which kind was taken, and how masks are read.

    Raises:
        DataError: data that isn't there, isn't whole, or could be read in two ways.

    >>> len(open_dataset("synthetic:num=4,size=32").records)
    4
    """
    from binseg.config import DataConfig
    from binseg.data.sources import open_dataset as open_records

    config = data if isinstance(data, DataConfig) else DataConfig(path=str(data))
    return open_records(config, progress=progress)


def plan(
    data: str | Path, *, budget: str | None = None, progress: Progress = SILENT, **settings: Any
) -> "PlanResult":
    """Look at the data and the machine, and say how to train: a recipe with its reasons.

    Args:
        data: a folder, a manifest or an annotation file.
        budget: time for the training: 20m, 2h, 90s or none; 20 minutes if left out.
        progress: told how far it is.
        settings: what is to be as you say, by name; see `train`.

    Raises:
        UsageError: an unknown setting.
        DataError: data that can't be used.
    """
    with _needing_torch("binseg.plan"):
        from binseg.pipelines.plan_recipe import chosen_budget
        from binseg.pipelines.plan_recipe import plan as plan_recipe
    sections = _sections(data, settings)
    seconds = chosen_budget(budget, sections=sections, overrides=())
    return plan_recipe(sections=sections, budget=seconds, progress=progress)


def train(
    data: str | Path | None = None,
    *,
    out: str | Path,
    budget: str | None = None,
    recipe: "Recipe | str | Path | None" = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Run:
    """Train a model, choose its threshold on the validation split, and pack it as a bundle.

    Without a recipe, the settings come from the data and the machine, as `plan` gives them.

    Args:
        data: a folder, a manifest or an annotation file; a recipe may know its own.
        out: folder for the run; absent or empty.
        budget: time for the whole: 20m, 2h, 90s or none; for a plan 20 minutes if left out.
        recipe: a recipe, its name or its file.
        progress: told how far it is.
        settings: any setting of the recipe by keyword: by its name where one section alone has it
            (`epochs=20`, `lr=1e-3`), else `section__name` (`model__name="unet"`), or a section as
            a mapping (`split={...}` is `data__split`).

    Returns:
        The run; its `model` is the trained model.

    Raises:
        UsageError: a folder that holds something, or unknown settings.
        DataError: nothing to learn from.
        TrainingError: it diverged.
        StoppedError: it was asked to stop, and says how to go on.
    """
    with _needing_torch("binseg.train"):
        from binseg.pipelines.plan_recipe import parse_budget
        from binseg.pipelines.train_model import train as train_recipe
    if recipe is None:
        if data is None:
            raise UsageError("which images? Give a folder, a manifest or an annotation file")
        whole = plan(data, budget=budget, progress=progress, **settings).recipe
    else:
        sections = _sections(data, settings)
        if budget is not None:
            seconds = parse_budget(budget)
            minutes = None if seconds is None else seconds / 60
            sections.setdefault("train", {})["budget_minutes"] = minutes
        whole = _changed(recipe, sections)
    return Run(result=train_recipe(whole, out=out, progress=progress))


@contextmanager
def _needing_torch(purpose: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise training_extra_missing(error, purpose=purpose) or error from None


def _changed(
    recipe: "Recipe | str | Path", sections: Mapping[str, Mapping[str, object]]
) -> "Recipe":
    from binseg.config import Recipe, load_recipe

    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, sections=sections)
    tree = recipe.model_dump(mode="json")
    own = {name: {**tree[name], **sections.get(name, {})} for name in tree}
    return load_recipe(sections=own)


def _sections(data: str | Path | None, settings: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Sort settings by the recipe's sections.

    >>> _sections("folder", {"epochs": 3, "model__name": "unet"})
    {'data': {'path': 'folder'}, 'train': {'epochs': 3}, 'model': {'name': 'unet'}}
    """
    from binseg.config import Recipe

    sections: dict[str, dict[str, object]] = {}
    if data is not None:
        sections["data"] = {"path": str(data)}
    kinds = {name: field.annotation for name, field in Recipe.model_fields.items()}
    fields = {name: set(kind.model_fields) for name, kind in kinds.items() if kind is not None}
    for name, value in settings.items():
        section, _, key = name.rpartition("__")
        if not section:
            if name in fields and isinstance(value, Mapping):
                sections.setdefault(name, {}).update(value)
                continue
            homes = [one for one, names in fields.items() if name in names]
            if len(homes) != 1:
                hint = f"give one of {', '.join(f'{one}__{name}' for one in homes)}"
                hint = hint if homes else suggest(name, set().union(*fields.values()))
                raise UsageError(f"there is no setting {name!r}: {hint}")
            section = homes[0]
        sections.setdefault(section, {})[key] = value
    return sections
