"""Training that continues from a whole earlier model: its network, weights and preprocessing.

The recipe names it (`model.start_from`): a run, a bundle, or a built-in model. Images that the
earlier run knows keep their split, so that none that trained it judges it, and the new model's run
remembers them. In the end both models are compared on the new validation images.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from binseg.config import Recipe, load_recipe
from binseg.data.dataset import SPLITS, Dataset, counted
from binseg.data.samples import read_sample
from binseg.data.splits import assign_splits
from binseg.errors import BinsegError, UsageError
from binseg.evaluation.comparison import Comparison, compare
from binseg.evaluation.report_files import write_report
from binseg.evaluation.scoring import score_dataset
from binseg.inference import load
from binseg.inference.pretrained import NAME, default_bundle_path
from binseg.inference.runtimes.torch import load_network
from binseg.models import resolve_options
from binseg.packaging import Bundle, Card, read_bundle
from binseg.progress import Progress
from binseg.training.run_folder import RunFolder
from binseg.types import Preprocessing, Split

BEFORE = "before"  # folder in a run for the earlier model's scores on the validation split
REASON = "as in the model that this one continues"
_GIVEN_METHODS = {"official", "file", "kfold"}


def earlier_path(recipe: Recipe) -> Path:
    """Return where the earlier model is; a built-in one goes by its name."""
    source = str(recipe.model.start_from)
    return default_bundle_path() if source == NAME else Path(source).expanduser()


def earlier_bundle(recipe: Recipe) -> Bundle:
    """Read the earlier model; BundleError if it is missing, damaged, edited, foreign or too new."""
    return read_bundle(earlier_path(recipe))


def continued(recipe: Recipe) -> Recipe:
    """Fill in network and preprocessing of the earlier model; BundleError and UsageError."""
    if recipe.model.start_from is None:
        return recipe
    card = earlier_bundle(recipe).card
    _check_network(recipe, card)
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    net = card.architecture.model_dump(include={"decoder", "encoder", "options"})
    tree["model"] = {"start_from": recipe.model.start_from, **net}
    tree["data"] = {"nodata": card.preprocessing.nodata} | tree.get("data", {})
    tree["input"] = _input_of(card.preprocessing) | tree.get("input", {})
    return load_recipe(sections=tree)


def _check_network(recipe: Recipe, card: Card) -> None:
    name, net, asked = recipe.model.start_from, card.architecture, recipe.model
    if asked.encoder_weights is not None:
        raise UsageError(
            f"--from {name} brings all weights, and model.encoder_weights asks for others; leave "
            "one of the two out"
        )
    given = {
        key: getattr(asked, key) for key in ("decoder", "encoder") if key in asked.model_fields_set
    }
    wrong = [f"{key} {value}" for key, value in given.items() if value != getattr(net, key)]
    if not wrong and "options" in asked.model_fields_set:
        options = resolve_options(net.decoder, net.encoder, net.options | asked.options)
        wrong = [f"{key} {options[key]}" for key in options if options[key] != net.options[key]]
    if wrong:
        raise UsageError(
            f"--from {name} continues {net.decoder} on {net.encoder}, and the recipe asks for "
            f"{', '.join(wrong)}; leave the network out, or train anew without --from"
        )
    channels = recipe.input.channels
    if "channels" in recipe.input.model_fields_set and channels != net.in_channels:
        raise UsageError(
            f"--from {name} takes {net.in_channels} channels, and input.channels is {channels}; "
            "leave it out, or train anew without --from"
        )
    if card.preprocessing.height != card.preprocessing.width:
        shape = f"{card.preprocessing.height}x{card.preprocessing.width}"
        raise UsageError(f"--from {name}: its inputs are {shape}; training takes squares only")


def _input_of(shape: Preprocessing) -> dict[str, object]:
    names = "resize scale overlap channels intensity depth"
    tree = {name: getattr(shape, name) for name in names.split()}
    tree |= {"size": shape.height, "mean": [*shape.mean], "std": [*shape.std]}
    return tree | ({"largest_tile": shape.largest_tile} if shape.resize == "tile" else {})


def divide(dataset: Dataset, recipe: Recipe, progress: Progress) -> Dataset:
    """Split the data; images that the earlier run knows keep their split. Raises DataError."""
    divided = assign_splits(dataset, recipe.data.split)
    if recipe.model.start_from is None:
        return divided
    known = ancestors(recipe)
    if not known:
        progress.say(
            f"the images that trained {recipe.model.start_from} aren't known here; some may be "
            "among those that validate, and flatter it"
        )
        return divided
    content_of = dataset.contents()
    split_of = {id_: known[one] for id_, one in content_of.items() if one in known}
    told = _sizes(split_of.values())
    new = len(dataset.records) - len(split_of)
    progress.say(
        f"{counted(len(split_of), 'image is', 'images are')} known to {recipe.model.start_from}"
        + (f" ({told})" if told else "")
        + f", {new} new"
    )
    if recipe.data.split.method in _GIVEN_METHODS or any(one.split for one in dataset.records):
        judging = {one.id for one in divided.records if one.split in {"val", "test"}}
        if num := sum(split_of.get(id_) == "train" for id_ in judging):
            progress.say(
                f"{counted(num, 'image that validates or tests', 'images that validate or test')} "
                f"trained {recipe.model.start_from}: scores will flatter"
            )
        return divided
    records = []
    of_group: dict[str, Split | None] = {}
    for one in dataset.records:
        if one.group is not None and one.id in split_of and of_group.get(one.group) != "train":
            of_group[one.group] = split_of[one.id]
    for one in divided.records:
        split = split_of.get(one.id, one.split)
        records.append(replace(one, split=of_group.get(one.group or "", split)))
    counts = _sizes(one.split for one in records)
    note = f"known images keep their split, the others are {divided.notes[-1]}; in all: {counts}"
    return replace(divided, records=tuple(records), notes=(*divided.notes, note))


def _sizes(splits: Iterable[Split | None]) -> str:
    sizes = Counter(splits)
    return ", ".join(f"{sizes[name]} {name}" for name in SPLITS if sizes[name])


def ancestors(recipe: Recipe) -> Mapping[str, Split | None]:
    """Return the split of each image that the earlier model, or one before it, knew."""
    run = RunFolder.find(earlier_path(recipe)) if recipe.model.start_from else None
    return {} if run is None else run.known()


def take_over(model: nn.Module, recipe: Recipe, dataset: Dataset, progress: Progress) -> None:
    """Fill a network with the earlier model's weights, and say what differs; raises BundleError."""
    bundle = earlier_bundle(recipe)
    model.load_state_dict(load_network(bundle).state_dict())
    card, name = bundle.card, recipe.model.start_from
    before, now = _input_of(card.preprocessing), _input_of(recipe.input.preprocessing())
    progress.say(f"continues {name}: {card.name}, id {card.id}, {card.data.num_train} train images")
    for key in now:
        if before.get(key) != now[key]:
            progress.say(f"input.{key} is {now[key]}, and was {before.get(key)} in {name}")
    border = dataset.rule.border or "none"
    if border != card.border:
        progress.say(f"the border of masks counts as {border}, and did as {card.border} in {name}")
    channels = read_sample(dataset.records[0], dataset.rule).image_HWC.shape[2]
    if channels != recipe.input.channels:
        progress.say(f"images of {channels} channels become {recipe.input.channels} for {name}")


def compare_with_earlier(
    recipe: Recipe, run: RunFolder, val: Dataset, progress: Progress
) -> Comparison | None:
    """Compare the new model (B) with the earlier one (A) on validation; None if that fails."""
    if recipe.model.start_from is None:
        return None
    try:
        earlier = load(earlier_path(recipe), device=recipe.train.device)
        title = f"{recipe.model.start_from}, validation"
        report = score_dataset(earlier, val, split="val", title=title, progress=progress)
        write_report(run.path / BEFORE, report, dataset=val, predictor=earlier)
        return compare(run.path / BEFORE, run.path / "val", split="val")
    except BinsegError as problem:
        progress.say(f"not compared with {recipe.model.start_from}: {problem}")
        return None
