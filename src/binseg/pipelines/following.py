"""A process that trains along: it hears from the leader what to train on, and takes its share.

`python -m binseg.pipelines.following` is what a leader starts on its machine; processes of torchrun
or SLURM come here from `binseg train`.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from binseg.config import Recipe
from binseg.data.cache import open_training_pixels
from binseg.data.dataset import Dataset
from binseg.data.sources import open_dataset
from binseg.errors import BinsegError, DataError, UsageError
from binseg.models.zoo import build_model
from binseg.training.companions import follow
from binseg.training.precision import resolve_device
from binseg.training.team import ALONE, Place, Team, external_place, own_place

__all__ = ["follow_leader", "place_of", "teamed"]


def place_of(recipe: Recipe) -> Place:
    """Tell which process of a run this is.

    Raises:
        UsageError: the recipe's devices don't agree with the processes or GPUs that there are.
    """
    devices, nodes = recipe.train.devices, recipe.train.num_nodes
    device = resolve_device(recipe.train.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else None
    place = external_place()
    if place is not None:
        asked = (place.local_num if devices == "auto" else devices) * nodes
        if asked not in {1, place.num}:
            raise UsageError(
                f"train.devices and train.num_nodes ask for {asked} processes, but {place.num} "
                "were started; leave both out, and what started them decides"
            )
    else:
        place = own_place((gpus or 1) if devices == "auto" else devices, nodes)
    if gpus is not None and place.local_num > gpus:
        raise UsageError(f"train.devices is {place.local_num}, but this machine has {gpus} GPUs")
    if place.num > recipe.train.batch_size:
        raise UsageError(
            f"{place.num} processes can't share batches of {recipe.train.batch_size}; raise "
            "train.batch_size, which is that of all processes together"
        )
    return place


@contextlib.contextmanager
def teamed(
    place: Place,
    *,
    recipe: Recipe,
    dataset: Dataset,
    seconds: float | None,
    checkpoint: Path | None,
) -> Iterator[Team]:
    """Gather the other processes, tell them what to train, and see them off at the end.

    Args:
        place: the leader's.
        recipe: of the run.
        dataset: with its splits.
        seconds: for training, where there is a budget.
        checkpoint: where the run goes on from.

    Raises:
        TrainingError: they can't be reached.
    """
    if place.num == 1:
        yield ALONE
        return
    with _share_of_threads(place):
        team = Team.join(place, device=_device(recipe, place))
        try:
            team.tell(
                {
                    "recipe": recipe.model_dump_json(),
                    "splits": {record.id: record.split for record in dataset.records},
                    "fingerprint": dataset.fingerprint(),
                    "seconds": seconds,
                    "checkpoint": None if checkpoint is None else str(checkpoint.resolve()),
                }
            )
            yield team
        except BaseException:
            team.abandon()
            raise
        finally:
            team.part()


def follow_leader(place: Place, device: str = "auto") -> None:
    """Train along until the leader ends the run.

    Args:
        place: this process's.
        device: as in the recipe, which comes only after the processes have met.

    Raises:
        DataError: this machine's data is not the leader's.
        TrainingError: the leader can't be reached, or is lost.
    """
    _on_stop_signals(signal.SIG_DFL)  # the leader may never come: it has failed, say
    asked = Recipe.model_validate({"train": {"device": device}})
    with _share_of_threads(place):
        team = Team.join(place, device=_device(asked, place))
        _on_stop_signals(signal.SIG_IGN)  # from now on the leader decides what they mean
        try:
            _train_along(team, team.tell())
        finally:
            team.part()


def _on_stop_signals(action: signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, action)


def _train_along(team: Team, order: dict[str, Any]) -> None:
    recipe = Recipe.model_validate_json(order["recipe"])
    dataset = open_dataset(recipe.data)
    splits = order["splits"]
    kept = tuple(
        replace(record, split=splits[record.id])
        for record in dataset.records
        if record.id in splits
    )
    dataset = replace(dataset, records=kept)
    if dataset.fingerprint() != order["fingerprint"]:
        raise DataError(
            f"{dataset.root}: process {team.rank + 1} of {team.num} finds other data there than "
            "the leader; give all machines the same"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = build_model(
            recipe.model.name, in_channels=recipe.input.channels, options=recipe.model.options
        )
    follow(  # DDP begins by giving all processes the leader's weights
        model,
        recipe=recipe,
        train=open_training_pixels(dataset.of_split("train"), dataset.rule, recipe),
        team=team,
        checkpoint=None if order["checkpoint"] is None else Path(order["checkpoint"]),
        seconds=order["seconds"],
    )


def _device(recipe: Recipe, place: Place) -> torch.device:
    """Give the device of this process, and make it torch's own."""
    device = resolve_device(recipe.train.device)
    if device.type == "cuda":
        torch.cuda.set_device(place.local_rank)
        return torch.device("cuda", place.local_rank)
    return device


@contextlib.contextmanager
def _share_of_threads(place: Place) -> Iterator[None]:
    """Use this process's share of the machine's cores: more threads than cores slow all down."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // place.local_num))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> int:
    """Follow the leader that has started this process."""
    place = external_place()
    assert place is not None, "started by a leader, which sets the variables"
    try:
        follow_leader(replace(place, is_external=True), device=sys.argv[1])
    except BinsegError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
