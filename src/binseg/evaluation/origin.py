"""The origin of a model, and so the images that may score it: none that trained it tests it.

A run's split.csv rules over everything else: an image that it knows, by its content, is in the
split that it names. Images that it doesn't know count by the data's own official split. Without
one they all test the model where it knows none of them, and else only when all are asked for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from binseg.config import DataConfig, Recipe, load_recipe
from binseg.data.dataset import Dataset, counted
from binseg.data.sources import open_dataset
from binseg.data.sources.synthetic import is_synthetic
from binseg.data.splits import assign_splits
from binseg.datacheck import keep_together
from binseg.errors import DataError, UsageError, suggest
from binseg.inference import Predictor
from binseg.packaging import Card
from binseg.progress import SILENT, Progress
from binseg.training.run_folder import RunFolder
from binseg.types import Split

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run and the card that a model comes from, as far as they are there."""

    run: RunFolder | None
    card: Card | None

    @classmethod
    def of(cls, predictor: Predictor) -> "Origin":
        """Find the run and the card that a predictor comes from."""
        if not predictor.members:  # masks of files
            return cls(run=None, card=None)
        first = predictor.members[0]  # of an ensemble, the others are checked one by one
        bundle = first.bundle
        return cls(run=RunFolder.find(bundle.path) if bundle else None, card=first.card)

    def recipe(self) -> Recipe | None:
        """The recipe that the model was trained by."""
        if self.run is not None:
            return self.run.recipe()
        if self.card is None or not self.card.recipe:
            return None
        return load_recipe(sections=cast("Mapping[str, Mapping[str, object]]", self.card.recipe))

    def fingerprint(self) -> str | None:
        """The fingerprint of the data that the model was trained on."""
        return self.card.data.fingerprint if self.card else None


def check_split_name(split: str) -> None:
    """Refuse a split that doesn't exist, with UsageError naming those that do."""
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}: {suggest(split, list(SPLITS))}")


def data_config(
    origin: Origin,
    path: str | Path | None = None,
    *,
    sections: Mapping[str, Mapping[str, object]] | None = None,
    overrides: Sequence[str] = (),
) -> DataConfig:
    """Decide where the images are and how their masks are read.

    Without a path they are the training's; with one their masks are still read as in training,
    unless `sections` or `overrides` (`data.key=value`) change that. Raises UsageError for no data,
    or a change of anything but `data`.
    """
    for override in overrides:
        if not override.strip().startswith("data."):
            raise UsageError(
                f"--set {override!r}: only data.* can be changed here, "
                "for example data.foreground=[1]"
            )
        if override.strip().startswith("data.split") and (origin.run or origin.card):
            raise UsageError(
                f"--set {override!r}: the run has decided the splits; images that it doesn't "
                "know are scored with --split all, or as a folder's own split says"
            )
    recipe = origin.recipe()
    tree = {} if recipe is None else recipe.data.model_dump(mode="json")
    if path is not None and not _is_same(path, tree.get("path")):
        own = ("border", "foreground", "ignore", "threshold", "page_group", "group", "nodata")
        tree = {key: value for key, value in tree.items() if key in own} | {"path": str(path)}
    tree |= (sections or {}).get("data", {})
    if tree.get("path") is None:
        raise UsageError("which images? Give --data PATH")
    config = load_recipe(sections={"data": tree}, overrides=overrides).data
    assert config.path
    if recipe is None or config.path != recipe.data.path or is_synthetic(config.path):
        return config
    return config.model_copy(update={"path": _found(config.path, origin.run)})


def _found(recorded: str, run: RunFolder | None) -> str:
    """Find a model's data from here, or from a folder above its run, where training began."""
    path = Path(recorded).expanduser()
    above = run.path.resolve().parents if run else ()
    found = next((one for one in (path, *(each / path for each in above)) if one.exists()), None)
    if found is None:
        raise UsageError(
            f"{run.path if run else 'this model'} was trained on {recorded}, which isn't here; "
            "say where its images are now, or name others: --data FOLDER"
        )
    return str(found)


def _is_same(path: str | Path, recorded: object) -> bool:
    if not isinstance(recorded, str):
        return False
    return str(path) == recorded or Path(path).resolve() == Path(recorded).resolve()


def choose_data(
    config: DataConfig, *, split: str, origin: Origin, progress: Progress = SILENT
) -> Dataset:
    """Open a data set and keep the images of one split that have a truth to compare with.

    The origin of the model decides the split of every image that it knows; the last notes of the
    data set say how the images were chosen. Raises DataError where none is left, saying why.
    """
    check_split_name(split)
    dataset = open_dataset(config, progress=progress)
    dataset, trained, notes = _with_splits(dataset, config, origin)
    sizes = Counter[str](record.split or "none" for record in dataset.records)
    chosen = [r for r in dataset.records if split in {"all", r.split}]
    if not chosen:
        for note in notes:
            progress.say(note)
        there = ", ".join(f"{sizes[name]} {name}" for name in SPLITS if sizes[name])
        held = next((name for name in ("val", "test") if sizes[name]), None)
        advice = (
            f"--split {held} scores {sizes[held]} of them, --split all those that train, too"
            if held
            else "--split all scores every image"
        )
        raise DataError(
            f"{dataset.root}: no image is in split {split!r} ({there or 'none has a split'}); "
            + advice
        )
    with_truth = tuple(r for r in chosen if r.mask_path is not None or r.shapes is not None)
    if not with_truth:
        raise DataError(f"{dataset.root}: no image of split {split!r} has a mask to score with")
    if len(with_truth) < len(chosen):
        rest = counted(len(chosen) - len(with_truth), "image", "images")
        notes.append(f"Left out: {rest} without a mask.")
    used = Counter(trained.get(record.id) for record in with_truth)
    if used["train"]:
        notes.append(f"{used['train']} of these images trained the model.")
    if used["val"]:
        notes.append(
            f"{used['val']} of these images chose its epoch, threshold and post-processing: new "
            "images will fare somewhat worse."
        )
    for note in notes:
        progress.say(note)
    return replace(dataset, records=with_truth, notes=tuple(notes))


Divided = tuple[Dataset, Mapping[str, Split | None], list[str]]
"""Images with the splits that they may be used in, the splits that they had in training by id,
and sentences for the user."""


def _with_splits(dataset: Dataset, config: DataConfig, origin: Origin) -> Divided:
    """Give every record the split that it may be used in; None where nothing says one."""
    run_splits: Mapping[str, Split | None] = origin.run.splits() if origin.run is not None else {}
    if not run_splits:
        return _without_run(dataset, config, origin)
    split_of = _known_splits(dataset, config, origin, run_splits)
    divided = dataset.with_splits(split_of)
    notes = []
    num_known, num_other = len(split_of), len(dataset.records) - len(split_of)
    if num_known:
        notes.append(f"Split: as in the run's split.csv ({num_known} images).")
        if num_other == 0 and dataset.fingerprint() != origin.fingerprint():
            notes.append(
                "The files differ from those that the run was trained on, though their names "
                "are the same."
            )
    own = any(r.split for r in dataset.records if r.id not in split_of)
    if num_other and not num_known and not own and origin.run is not None and origin.run.contents():
        divided = dataset.with_splits({record.id: "test" for record in dataset.records})
        notes.append(f"The run knows none of the images ({num_other}): all of them test it.")
        if alike := sum(record.id in run_splits for record in dataset.records):
            notes.append(f"{alike} have the names of the run's images, but other contents.")
    elif num_other:
        notes.append(
            f"{counted(num_other, 'image is', 'images are')} unknown to the run: "
            + ("the data's own split holds." if own else "in no split.")
        )
    return divided, split_of, notes


def _known_splits(
    dataset: Dataset, config: DataConfig, origin: Origin, run_splits: Mapping[str, Split | None]
) -> dict[str, Split | None]:
    """Find the run's images by their contents, and by names where it is the run's own data."""
    assert origin.run is not None
    ids = [record.id for record in dataset.records]
    recorded = origin.run.contents()
    content_of = dataset.contents() if recorded else {}
    # Of two of one content that which trained tells, but each for itself where both are there.
    known, own = origin.run.known(), {*recorded.values()}
    all_found = {
        id_: run_splits[id_] if recorded.get(id_) == content else known[content]
        for id_, content in content_of.items()
        if content in known
    }
    found = {id_: split for id_, split in all_found.items() if content_of[id_] in own}
    recipe, path = origin.recipe(), config.path
    is_own = recipe is not None and path is not None and _is_same(path, recipe.data.path)
    if is_own or found or not recorded or set(ids) == set(run_splits):
        found = {id_: run_splits[id_] for id_ in ids if id_ in run_splits} | found
    return found | all_found


def _without_run(dataset: Dataset, config: DataConfig, origin: Origin) -> Divided:
    """Split the same data in the same way again, for a model without its run's folder."""
    if origin.card is None:
        divided = assign_splits(keep_together(dataset, config), config.split)
        return divided, {}, [f"Split: {divided.notes[-1]}."]
    recipe = origin.recipe()
    continues = recipe is not None and recipe.model.start_from is not None
    if recipe is not None and not continues and dataset.fingerprint() == origin.fingerprint():
        whole = keep_together(dataset, recipe.data)
        divided = assign_splits(whole, recipe.data.split)
        trained = {record.id: record.split for record in divided.records}
        return divided, trained, [f"Split: as in training, {divided.notes[-1]}."]
    other = "this differs from the data of the training, and may hold some of its images"
    if continues:
        other = "this model continues another, and only its run's folder knows which images trained"
    if any(record.split for record in dataset.records):
        return dataset, {}, [f"Split: the data's own; {other}."]
    return dataset, {}, [f"{other[0].upper()}{other[1:]}; it has no split of its own."]
