"""Train the reports' recipes, or the rungs of report A's ladder, at one equal small budget.

    python benchmarks/recipes.py --data oxford-iiit-pet/ --size 96 --images-seen 20000 --out bench/
    python benchmarks/recipes.py --data oxford-iiit-pet/ --ladder --out bench/
    python benchmarks/recipes.py --size 32 --images-seen 100  # on generated images

Each run is the recipe as it ships, but for its input size, the epochs that follow from the number
of images that it may see, and what --set says. A finished run adds a row to rows.json; the rows
that are there already are not trained again, and a run that was killed goes on where it stopped.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile

from binseg.cli.console import PlainProgress
from binseg.config import Recipe, load_recipe, recipe_names
from binseg.data.cache import open_cache
from binseg.data.sources import open_dataset
from binseg.data.sources.synthetic import is_synthetic
from binseg.data.splits import assign_splits
from binseg.errors import BinsegError
from binseg.models import build_model, num_parameters
from binseg.pipelines.train_model import TrainResult, resume_training, train
from binseg.storage import write_json, write_text
from binseg.training.devices import resolve_device, resolve_precision
from binseg.training.run_folder import RunFolder, environment

LADDER: Mapping[str, tuple[str, ...]] = {
    "1 BCE, lr 1e-5, no augmentation": (
        "augment.preset=none",
        "loss.name=bce",
        "optimizer.lr=1e-5",
        "optimizer.weight_decay=0",
        "schedule.name=none",
    ),
    "2 + augmentation": (
        "loss.name=bce",
        "optimizer.lr=1e-5",
        "optimizer.weight_decay=0",
        "schedule.name=none",
    ),
    "3 BCE -> BCE + Dice": (
        "optimizer.lr=1e-5",
        "optimizer.weight_decay=0",
        "schedule.name=none",
    ),
    "4 lr 1e-5 -> 1e-4": (
        "optimizer.lr=1e-4",
        "optimizer.weight_decay=0",
        "schedule.name=none",
    ),
    "5 + weight decay, plateau": ("optimizer.lr=1e-4",),
}
"""What each rung changes in report A's recipe; each adds one thing to the one before."""
TOLD = {
    "1 BCE, lr 1e-5, no augmentation": "0.81",
    "2 + augmentation": "0.84",
    "3 BCE -> BCE + Dice": "0.86",
    "4 lr 1e-5 -> 1e-4": "0.88",
    "5 + weight decay, plateau": "0.90",
}
"""The Dice that report A tells for each rung, on its own protocol."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One line of the table to be: a recipe with the settings that this comparison changes."""

    name: str
    recipe_name: str
    data: str
    images_seen: int
    changes: tuple[str, ...]

    def recipe(self) -> Recipe:
        """All settings."""
        return load_recipe(self.recipe_name, overrides=(f"data.path={self.data}", *self.changes))

    def command(self) -> str:
        """What to type for the same run."""
        settings = " ".join(f"--set {shlex.quote(change)}" for change in self.changes)
        data = shlex.quote(self.data if is_synthetic(self.data) else f"{Path(self.data).name}/")
        return f"binseg train --recipe {self.recipe_name} --data {data} {settings}"


def main() -> int:
    """Run what is asked for, and print the table; 1 where a run failed."""
    options = _arguments()
    progress = PlainProgress()
    rows_path = options.out / ("ladder.json" if options.ladder else "rows.json")
    failed = []
    for asked in _asked(options):
        try:
            run = _at_budget(asked)
            key = run.command()
            if key in {row["command"] for row in _read(rows_path)}:
                progress.say(f"{run.name}: done before")
                continue
            progress.say(f"{run.name}: {key}")
            row = _row(run, _train(run, options.out / "runs" / _folder_name(run), progress))
        except BinsegError as problem:
            progress.say(f"{asked.name}: {problem}")
            failed.append(asked.name)
            continue
        write_json(rows_path, [*_read(rows_path), row])
        write_text(rows_path.with_suffix(".md"), _table(_read(rows_path)))
    print(_table(_read(rows_path)))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="synthetic:num=60", help="a folder of Oxford-IIIT Pet")
    parser.add_argument("--em", help="a folder of EM stacks, for the recipes of tutorial C")
    parser.add_argument("--size", type=int, default=96, help="of the input, for all but C")
    parser.add_argument("--em-size", type=int, default=256, help="of the patches of C")
    parser.add_argument("--images-seen", type=int, default=20_000, help="images x epochs")
    parser.add_argument("--em-images-seen", type=int, help="patches x epochs; else --images-seen")
    parser.add_argument("--em-pages", type=int, help="take so many pages, from the first one on")
    parser.add_argument("--images", type=int, help="take so many of the Pet images, spread")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the recipes or rungs")
    parser.add_argument("--ladder", action="store_true", help="the rungs of report A instead")
    parser.add_argument(
        "--recipe", default="pet-resnet34-unet-plain", help="of the ladder, with its network"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for all runs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench-recipes"), help="folder for rows and runs"
    )
    return parser.parse_args()


def _asked(options: argparse.Namespace) -> list[Run]:
    """List the runs that the options ask for."""
    data = options.data
    if options.images:
        data = str(_subset(Path(data), options.images, options.out / "data"))
    common = (f"input.size={options.size}", *options.set)
    if options.ladder:
        runs = [
            Run(
                name=rung,
                recipe_name=options.recipe,
                data=data,
                images_seen=options.images_seen,
                changes=(*common, *changes),
            )
            for rung, changes in LADDER.items()
        ]
    else:
        runs = [
            Run(
                name=name,
                recipe_name=name,
                data=data,
                images_seen=options.images_seen,
                changes=common,
            )
            for name in _recipes_of("lab report")
        ]
        runs += _asked_of_em(options) if options.em else []
    chosen = options.only or [run.name for run in runs]
    wrong = set(chosen) - {run.name for run in runs} - {run.name[0] for run in runs}
    if wrong:
        sys.exit(
            f"no run is called {', '.join(sorted(wrong))}; there are: "
            + ", ".join(run.name for run in runs)
        )
    return [run for run in runs if run.name in chosen or run.name[0] in chosen]


def _recipes_of(source: str) -> list[str]:
    """Name the recipes whose source begins so."""
    return [one for one in recipe_names() if load_recipe(one).about.source.startswith(source)]


def _asked_of_em(options: argparse.Namespace) -> list[Run]:
    """List the runs of tutorial C, on stacks of their own."""
    data = options.em
    if options.em_pages:
        data = str(_first_pages(Path(data), options.em_pages, options.out / "data"))
    return [
        Run(
            name=name,
            recipe_name=name,
            data=data,
            images_seen=options.em_images_seen or options.images_seen,
            changes=(f"input.size={options.em_size}", *options.set),
        )
        for name in _recipes_of("tutorial C")
    ]


def _first_pages(root: Path, num: int, folder: Path) -> Path:
    """Copy the first pages of all stacks of a folder."""
    subset = folder / f"{root.name}-{num}-pages"
    subset.mkdir(parents=True, exist_ok=True)
    for stack in sorted(root.glob("*.tif*")):
        with tifffile.TiffFile(stack) as pages:
            kept = np.stack([page.asarray() for page in pages.pages[:num]])
        tifffile.imwrite(subset / stack.name, kept, photometric="minisblack")
    return subset


def _subset(root: Path, num: int, folder: Path) -> Path:
    """Make a Pet folder of `num` images, evenly over the official list (it is by breed)."""
    lines = [
        line
        for line in (root / "annotations" / "trainval.txt").read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    chosen = [lines[index * len(lines) // num] for index in range(min(num, len(lines)))]
    subset = folder / f"{root.name}-{len(chosen)}"
    (subset / "annotations").mkdir(parents=True, exist_ok=True)
    for name in ("images", "annotations/trimaps"):
        if not (subset / name).exists():
            (subset / name).symlink_to((root / name).resolve(), target_is_directory=True)
    write_text(subset / "annotations" / "trainval.txt", "\n".join(chosen) + "\n")
    return subset


def _at_budget(run: Run) -> Run:
    """Choose the epochs so that the run sees about its number of images (patches, where tiled)."""
    epochs = max(1, round(run.images_seen / _num_inputs(run.recipe())))
    return replace(run, changes=(*run.changes, f"train.epochs={epochs}"))


def _num_inputs(recipe: Recipe) -> int:
    """Count the inputs of the training split; their pixels are cached, and training finds them."""
    dataset = assign_splits(open_dataset(recipe.data), recipe.data.split)
    return len(open_cache(dataset.of_split("train"), dataset.rule, recipe.input.preprocessing()))


def _train(run: Run, folder: Path, progress: PlainProgress) -> TrainResult:
    """Train, or go on with what a killed run left; a finished run without a row starts anew."""
    begun = RunFolder.find(folder)
    if begun is not None and not begun.bundle_path.exists():
        return resume_training(folder, progress=progress)
    if folder.exists():
        shutil.rmtree(folder)
    return train(run.recipe(), out=folder, progress=progress)


def _folder_name(run: Run) -> str:
    """Name the run's folder after all that decides it."""
    plain = "".join(c if c.isalnum() else "-" for c in f"{run.name} {' '.join(run.changes)}")
    return "-".join(part for part in plain.split("-") if part)[:200]


def _row(run: Run, result: TrainResult) -> dict[str, object]:
    """Gather the facts of a finished run."""
    recipe = run.recipe()
    run_folder = RunFolder(path=result.folder)
    lines = run_folder.metrics_path.read_text("utf-8").splitlines()
    column = lines[0].split(",").index("seconds")
    seconds = sum(float(line.split(",")[column]) for line in lines[1:])
    num_inputs = _num_inputs(recipe)
    report, intervals = result.report, result.report.intervals["mean"]["original"]
    device = resolve_device(recipe.train.device)
    facts = environment()
    return {
        "name": run.name,
        "model": recipe.model.name,
        "parameters": num_parameters(build_model(recipe)),
        "mean": dict(report.mean["original"]),
        "intervals": {
            name: None if found is None else [found.low, found.high]
            for name, found in intervals.items()
        },
        "threshold": report.threshold,
        "num_val": len(report.images),
        "num_train_inputs": num_inputs,
        "images_seen": num_inputs * result.num_epochs,
        "best_epoch": result.best_epoch,
        "num_epochs": result.num_epochs,
        "seconds": round(seconds, 1),
        "seconds_per_image": seconds / (num_inputs * result.num_epochs),
        "device": str(device),
        "precision": resolve_precision(recipe.train.precision, device, PlainProgress()),
        "cpu": facts["cpu"],
        "threads": facts["threads"],
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "command": run.command(),
    }


def _read(path: Path) -> list[dict[str, object]]:
    """Read the rows so far."""
    if not path.exists():
        return []
    rows: list[dict[str, object]] = json.loads(path.read_text("utf-8"))
    return rows


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Draw the rows as a Markdown table."""
    ladder = any(row["name"] in TOLD for row in rows)
    heads = ["run", "model", "parameters", "Dice [95 %]", "IoU", "mean IoU", "best epoch"]
    heads += ["images seen", "s / image"]
    heads += ["told by A"] if ladder else []
    lines = ["| " + " | ".join([*heads, "command"]) + " |", "|" + " --- |" * (len(heads) + 1)]
    for row in rows:
        mean, found = row["mean"], row["intervals"]
        assert isinstance(mean, dict)
        assert isinstance(found, dict)
        interval = found["dice"]
        span = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        cells = [
            f"{row['name']}",
            f"{row['model']}",
            f"{row['parameters']:,}",
            f"{mean['dice']:.4f}{span}",
            f"{mean['iou']:.4f}",
            f"{mean['mean_iou']:.4f}",
            f"{row['best_epoch']} of {row['num_epochs']}",
            f"{row['images_seen']:,}",
            f"{row['seconds_per_image']:.4f}",
        ]
        cells += [TOLD.get(str(row["name"]), "")] if ladder else []
        lines.append("| " + " | ".join([*cells, f"`{row['command']}`"]) + " |")
    note = (
        "Validation split, mean over images at their original size; seconds include the "
        "validation after each epoch."
    )
    return "\n".join([*lines, "", note, ""])


if __name__ == "__main__":
    sys.exit(main())
