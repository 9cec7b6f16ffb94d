"""Search the settings of a small network on the validation split: one change at a time, all logged.

    python benchmarks/search.py --data oxford-iiit-pet/ --out runs/search
    python benchmarks/search.py --data oxford-iiit-pet/ --out runs/search --part 2/3  # of three
    python benchmarks/search.py --data oxford-iiit-pet/ --out runs/search --table
    python benchmarks/search.py --epochs 1 --only base "rate 5e-4"  # on generated images

Each trial trains the base settings with one change, on a part of the training images, and is
scored on a part of the validation images; the test split isn't looked at. Every trial is a line
of `search.jsonl`, failures included; a second call goes on where the first was stopped. Two further
seeds of the base tell what is noise. Trials so short find what learns fast, not what ends best:
what looks better is tried again for longer, with --only, --epochs and --images.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from binseg.cli.console import PlainProgress
from binseg.config import Recipe, load_recipe
from binseg.data.dataset import Dataset
from binseg.data.patches import open_training_pixels, open_validation_pixels
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.errors import BinsegError, StoppedError
from binseg.models import build_model
from binseg.storage import write_text
from binseg.training.loop import fit
from binseg.types import Record

LOG = "search.jsonl"
BASE: Mapping[str, object] = {
    "input.size": 128,
    "train.progressive": {},
    "train.batch_size": 16,
    "train.ema_decay": 0.98,
    "schedule.name": "onecycle",
    "schedule.rise": 0.15,
    "optimizer.lr": 1.5e-3,
    "loss.name": "bce-dice",
    "augment.preset": "mild",
}
"""Changes to `pet-small` that suit a short run: one size, mild augmentation, a short average."""
SEEDS = 3
CHANGES: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("augmentation: none", {"augment.preset": "none"}),
    ("augmentation: medium", {"augment.preset": "medium"}),
    ("augmentation: strong", {"augment.preset": "strong"}),
    ("rate 5e-4", {"optimizer.lr": 5e-4}),
    ("rate 3e-3", {"optimizer.lr": 3e-3}),
    ("loss: bce", {"loss.name": "bce"}),
    ("loss: dice", {"loss.name": "dice"}),
    ("no average of weights", {"train.ema_decay": 0.0}),
    ("schedule: cosine", {"schedule.name": "cosine"}),
    ("loss: boundary", {"loss.name": "boundary"}),
    ("average of weights 0.998", {"train.ema_decay": 0.998}),
    ("schedule: none", {"schedule.name": "none"}),
    ("rate 6e-3", {"optimizer.lr": 6e-3}),
    ("loss: lovasz", {"loss.name": "lovasz"}),
    ("batch 8", {"train.batch_size": 8}),
    ("augmentation: report D's", {"augment.preset": "pet-cosine"}),
    ("weight decay 0.1", {"optimizer.weight_decay": 0.1}),
    ("weight decay 0", {"optimizer.weight_decay": 0.0}),
    ("optimiser: sgd, rate 0.05", {"optimizer.name": "sgd", "optimizer.lr": 0.05}),
    ("rate 3e-3, schedule: cosine", {"optimizer.lr": 3e-3, "schedule.name": "cosine"}),
)


def trials() -> list[tuple[str, dict[str, object]]]:
    """Name every trial with its changes; seeds of the base come first, to measure the noise."""
    seeds = [
        ("base" if seed == 0 else f"base, seed {seed}", {"train.seed": seed})
        for seed in range(SEEDS)
    ]
    return [*seeds, *((name, dict(change)) for name, change in CHANGES)]


def main() -> int:
    """Run the trials that are not in the log yet, and print the table."""
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / LOG
    if not options.table:
        done = {row["trial"] for row in _read(log)}
        number, num = options.part
        chosen = [one for one in trials() if options.only is None or one[0] in options.only]
        for name, change in chosen[number - 1 :: num]:
            if name not in done:
                row = _try(options, name, change)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    table = _table(_read(log))
    write_text(options.out / "search.md", table + "\n")
    print(table)
    return 0


def _try(options: argparse.Namespace, name: str, change: Mapping[str, object]) -> dict[str, object]:
    """Train one trial; what goes wrong is its result."""
    settings = {**BASE, "data.path": options.data, "train.epochs": options.epochs, **change}
    recipe = load_recipe(
        "pet-small",
        overrides=tuple(f"{key}={json.dumps(value)}" for key, value in settings.items()),
    )
    start = time.perf_counter()
    row: dict[str, object] = {"trial": name, "change": dict(change), "epochs": options.epochs}
    try:
        history = _train(options, recipe)
    except StoppedError:
        raise  # of the search, not of a trial
    except BinsegError as problem:
        row |= {"failed": str(problem)}
    else:
        row |= {
            "best_dice": max(line["val_dice"] for line in history),
            "last_dice": history[-1]["val_dice"],
            "train_dice": history[-1]["train_dice"],
            "dice_of_epochs": [round(line["val_dice"], 4) for line in history],
        }
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def _train(options: argparse.Namespace, recipe: Recipe) -> list[dict[str, float]]:
    dataset: Dataset = assign_splits(open_dataset(recipe.data), recipe.data.split)
    train, val = (
        _spread(dataset.of_split(split), num)
        for split, num in (("train", options.images), ("val", options.val_images))
    )
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        return fit(
            model,
            recipe=recipe,
            train=open_training_pixels(train, dataset.rule, recipe),
            val=open_validation_pixels(val, dataset.rule, recipe),
            folder=Path(scratch),
            progress=PlainProgress(),
        ).history


def _spread(records: Sequence[Record], num: int) -> list[Record]:
    """So many records, spread evenly: the images are in the order of their breeds."""
    return [records[index * len(records) // num] for index in range(min(num, len(records)))]


def _read(log: Path) -> list[dict[str, object]]:
    if not log.is_file():
        return []
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Give the log as a Markdown table, with the noise of the base above it."""
    base = [_number(row, "best_dice") for row in rows if str(row["trial"]).startswith("base")]
    lines = ["| trial | best validation Dice | against the base | training Dice | s |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    mean = statistics.fmean(base) if base else 0.0
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['trial']} | failed: {row['failed']} | | | {row['seconds']} |")
            continue
        dice = _number(row, "best_dice")
        lines.append(
            f"| {row['trial']} | {dice:.4f} | {dice - mean:+.4f} | "
            f"{_number(row, 'train_dice'):.4f} | {row['seconds']} |"
        )
    if len(base) > 1:
        noise = f"{len(base)} seeds of the base: {mean:.4f} with deviation "
        lines = [f"{noise}{statistics.stdev(base):.4f}.", "", *lines]
    return "\n".join(lines)


def _number(row: Mapping[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, float)
    return value


def _part(text: str) -> tuple[int, int]:
    """Read which trials are this process's.

    >>> _part("2/3")
    (2, 3)
    """
    number, num = map(int, text.split("/"))
    if not 1 <= number <= num:
        raise argparse.ArgumentTypeError(f"{text}: give 1/{num} to {num}/{num}")
    return number, num


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="synthetic", help="a folder of Oxford-IIIT Pet")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-search"), help="folder of the log and the table"
    )
    parser.add_argument("--images", type=int, default=600, help="of the training split")
    parser.add_argument("--val-images", type=int, default=200, help="of the validation split")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help="these by name, not all")
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="K/N", help="every N-th trial, from the K-th"
    )
    parser.add_argument("--table", action="store_true", help="only print what is in the log")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
