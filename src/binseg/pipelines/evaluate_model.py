"""A model scored on one split, with tables and images on disk; the demo, which ends so."""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from binseg.config import DataConfig, Recipe, load_recipe
from binseg.data.dataset import Dataset
from binseg.data.sources.synthetic import otsu_dice
from binseg.errors import DataError
from binseg.evaluation.learning_quality import (
    choose_guaranteed,
    gather_lessons,
    parse_guarantee,
)
from binseg.evaluation.origin import Origin, check_split_name, choose_data, data_config
from binseg.evaluation.report_files import write_report
from binseg.evaluation.scoring import SavedMask, Scoring, saved_masks, score_dataset
from binseg.inference import PredictOptions, Predictor, load
from binseg.inference.engine import predict_files
from binseg.inference.pretrained import default_bundle_path, photo_path
from binseg.metrics import OutlineRule, report_as_dict
from binseg.packaging import Guarantee, revise_card
from binseg.pipelines.train_model import train
from binseg.progress import SILENT, Progress
from binseg.shards import Shard
from binseg.storage import held
from binseg.training.run_folder import RunFolder
from binseg.types import Report


def evaluate(
    model: str | Path | Sequence[str | Path] | Predictor,
    *,
    data: DataConfig | str | Path | None = None,
    split: str = "test",
    out: str | Path | None = None,
    by: Sequence[str] = (),
    tolerance: float | None = None,
    spacing: float | None = None,
    device: str = "auto",
    known: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Score a model on one split (train, val, test or all) of a data set.

    Images that a run's split.csv knows keep the split that they had in training, so that none that
    trained the model is scored as `test`.

    Args:
        model: the folder of a run, a bundle, several of them as an ensemble, or a predictor;
            `SavedMask(None, name=FOLDER)` scores the masks in a folder.
        data: where the images are; a run knows its own. A path's masks are read as in training.
        split: train, val, test or all.
        out: folder of the report; None writes nothing.
        by: columns of the data to slice the scores by, beside those of few values.
        tolerance: how far an outline may be off for boundary F1 and surface Dice, in pixels, or
            in mm where `spacing` (mm per pixel) is given; None: 2 pixels.
        spacing: millimetres per pixel; distances are then in mm.
        device: auto, cpu or cuda; for a model that is loaded here.
        known: what `measure_shard` found out of all images, which aren't predicted again.
        progress: hears how far it is.

    Raises:
        UsageError: an unknown split or column, or no data.
        BundleError: a model that can't be loaded.
        DataError: no image to score, or one that a member of the ensemble was trained on.
    """
    check_split_name(split)
    predictor = model if isinstance(model, Predictor) else load(model, device=device)
    origin = Origin.of(predictor)
    config = data if isinstance(data, DataConfig) else data_config(origin, data)
    dataset, masks = _to_score(predictor, config, split, origin, progress)
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None else held(folder):
        report = score_dataset(
            predictor,
            dataset,
            split=split,
            title=f"{predictor.name}, {split} of {config.path}",
            by=by,
            outline=_outline(tolerance, spacing),
            folder=folder,
            predictor_of=masks,
            known=known,
            progress=progress,
        )
        if folder is not None:
            write_report(folder, report, dataset=dataset, predictor=predictor, predictor_of=masks)
    return report


def measure_shard(
    predictor: Predictor,
    shard: Shard,
    *,
    data: DataConfig,
    split: str = "test",
    tolerance: float | None = None,
    spacing: float | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Score the images of a shard alone, as `evaluate` does, for its `known`; raises as that."""
    dataset, masks = _to_score(predictor, data, split, Origin.of(predictor), progress)
    own = replace(dataset, records=tuple(r for r in dataset.records if shard.holds(r.id)))
    scoring = Scoring(outline=_outline(tolerance, spacing))
    label = f"scoring {split}, shard {shard}"
    scoring.add(predictor, own, label=label, predictor_of=masks, progress=progress)
    return scoring.as_dict()


def _outline(tolerance: float | None, spacing: float | None) -> OutlineRule:
    usual = 2.0 * (1.0 if spacing is None else spacing)
    return OutlineRule(tolerance=usual if tolerance is None else tolerance, spacing=spacing)


def _to_score(
    predictor: Predictor, config: DataConfig, split: str, origin: Origin, progress: Progress
) -> tuple[Dataset, Mapping[str, Predictor] | None]:
    """Choose the images, with the masks of each that are saved; no member was trained on any."""
    dataset = choose_data(config, split=split, origin=origin, progress=progress)
    for member in predictor.members[1:]:
        own = choose_data(config, split=split, origin=Origin.of(member))
        known = {record.id for record in own.records}
        if strange := [record.id for record in dataset.records if record.id not in known]:
            where = member.bundle.path if member.bundle else member.name
            raise DataError(
                f"{len(strange)} images (for example {strange[0]}) are in split {split!r} of the "
                f"first model, but not of {where}; an ensemble can only be scored on images that "
                "no member was trained on"
            )
    is_saved = isinstance(predictor, SavedMask)
    return dataset, saved_masks(Path(predictor.name), dataset) if is_saved else None


def report_folder(
    model: str | Path,
    *,
    split: str,
    data: str | Path | None = None,
    others: Sequence[str | Path] = (),
    tta: str | None = None,
    changes: Sequence[str] = (),
) -> Path:
    """Name a report's folder in the run, by all that makes it another one: split, data, `tta`."""
    run = RunFolder.find(model)
    home = run.path if run is not None else Path("evaluation") / _plain(_called(model))
    parts = [split, "" if data is None else str(data), *(f"with-{_called(one)}" for one in others)]
    parts += ["" if tta is None else f"tta-{tta}", *changes]
    return home / "-".join(_plain(part) for part in parts if part)


def _called(model: str | Path) -> str:
    """A model's name: its file's or folder's, or the run's around a `bundle/`."""
    path = Path(model).resolve()
    return path.parent.name if path.name == "bundle" else path.name


def _plain(text: str) -> str:
    """A text as part of a file name: letters of any script, and the end of it if it is long."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[-60:].strip("-.")


def guarantee(
    run: str | Path, data: DataConfig, guarantees: Sequence[str], *, progress: Progress = SILENT
) -> tuple[Guarantee, ...]:
    """Note thresholds that keep `guarantees` on new images on the card."""
    wanted = [parse_guarantee(one) for one in guarantees]
    predictor = load(run)
    assert predictor.bundle is not None
    assert predictor.card is not None
    origin = Origin.of(predictor)
    dataset = choose_data(data, split="all", origin=origin, progress=progress)
    known_splits = choose_data(data, split="val", origin=origin)
    dataset = dataset.with_splits({record.id: "val" for record in known_splits.records})
    lessons = gather_lessons(predictor, dataset, progress=progress)
    if not lessons:
        raise DataError(f"{data.path}: no validation image has a pixel to score")
    if not predictor.postprocessing.is_empty:
        progress.say("guarantees are of the masks before the model's own post-processing")
    counts, groups = zip(*((one.counts_T4, one.group) for one in lessons), strict=True)
    own = predictor.threshold
    found = tuple(
        choose_guaranteed(score, value, counts, groups=groups, own_threshold=own)
        for score, value in wanted
    )
    names = {one.score for one in found}
    kept = (one for one in predictor.card.guarantees if one.score not in names)
    revise_card(predictor.bundle, {"guarantees": (*kept, *found)})
    return found


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The files and figures that the demo made."""

    folder: Path
    report: Report  # on the test split
    otsu_dice: float  # Mean Dice of Otsu's threshold, told which side to take
    gallery_path: Path
    mask_path: Path
    photo_path: Path  # a photo with the mask that the built-in model lays over it
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "folder": str(self.folder),
            "seconds": round(self.seconds, 1),
            "otsu_dice": self.otsu_dice,
            "gallery": str(self.gallery_path),
            "mask": str(self.mask_path),
            "photo": str(self.photo_path),
            "test": report_as_dict(self.report),
        }


def demo(
    out: str | Path, *, recipe: Recipe | None = None, progress: Progress = SILENT
) -> DemoResult:
    """Train a small model on synthetic images, score it, predict one; then a photo of a cat."""
    trained = train(recipe or load_recipe("demo"), out=out, progress=progress)
    folder, options = trained.folder, PredictOptions(outputs=("overlay",))
    report = evaluate(folder, split="test", out=folder / "test", progress=progress)
    predictor = load(folder)
    origin = Origin.of(predictor)
    test = choose_data(data_config(origin), split="test", origin=origin)
    image = test.records[0].image_path
    predicted = predict_files(predictor, [image], out=folder / "predicted", options=options)
    photo = predict_files(
        load(default_bundle_path()),
        [photo_path()],
        out=folder / "photo",
        options=replace(options, largest_only=True),
    )
    return DemoResult(
        folder=folder,
        report=report,
        otsu_dice=otsu_dice(test.records, test.rule),
        gallery_path=folder / "test" / "gallery.png",
        mask_path=predicted.written[0].mask,
        photo_path=photo.written[0].others[0],
        seconds=trained.seconds,
    )
