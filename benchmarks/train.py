"""Training by binseg against the plain loop of the source reports, in one run.

    python benchmarks/train.py --data oxford-iiit-pet/ --json train.json
    python benchmarks/train.py --quick
    python benchmarks/train.py --data oxford-iiit-pet/ --only time-to-dice --run runs/pet-small

The plain loop is what reports A, B and D have in common: float32, channels first, eager, each
image decoded, resized and augmented by Pillow each time it is needed, `loss.item()` each step.
Model, batch, images, loss, optimiser and rate are equal.

speed         seconds an image in the second epoch; medians over alternating repeats
dice          validation Dice after equal epochs, over seeds
time-to-dice  when a finished run (--run) passed a Dice, against the plain loop's time for as many
              epochs as report D trained (its measured seconds an image, extrapolated)
load          seconds of a step beside 0, 1 and 2 busy programs, for both ways in which torch's
              threads can wait (binseg chooses the passive one); asked for by name

Without --data the images are generated ones, and without --run a short run is made: the figures
of the documentation need the data that they name.
"""

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from binseg.cli.console import PlainProgress
from binseg.config import Recipe, load_recipe
from binseg.data.cache import PixelCache, open_cache
from binseg.data.dataset import Dataset as WholeImages
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.models import build_model
from binseg.progress import SILENT
from binseg.storage import write_json
from binseg.training.devices import resolve_device, resolve_precision
from binseg.training.loop import fit
from binseg.training.run_folder import environment
from binseg.types import Record

PARTS = ("speed", "dice", "time-to-dice", "load")
REPORT_EPOCHS = 50
"""Report D trained for 50 epochs to its 0.9165 (validation, U-Net)."""
REPORT_DICE = 0.9036
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRIMAP_BACKGROUND, BACKGROUND = 2, 0
"""Masks of Oxford-IIIT Pet are trimaps; those of generated images are black and white."""
GENERATED = "synthetic:num=260"
"""What is trained on where no data is given."""


class PlainImages(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Decode, resize, augment: each image, each time, as the reports' Dataset classes do."""

    def __init__(
        self, records: Sequence[Record], *, size: int, augmented: bool, background: int
    ) -> None:
        self._records = records
        self._size = size
        self._augmented = augmented
        self._background = background

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        record = self._records[index]
        assert record.mask_path is not None
        size = (self._size, self._size)
        image = Image.open(record.image_path).convert("RGB").resize(size, Image.Resampling.BILINEAR)
        mask = Image.open(record.mask_path).resize(size, Image.Resampling.NEAREST)
        if self._augmented:
            image, mask = _augment(image, mask, self._background)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255.0).permute(2, 0, 1)
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return pixels.contiguous(), torch.from_numpy(np.asarray(mask) != self._background)[None]


def _augment(
    image: Image.Image, mask: Image.Image, background: int
) -> tuple[Image.Image, Image.Image]:
    """Report D's: flip 0.5, rotation up to 15 degrees 0.3, jitter 0.5."""
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.3:
        angle = random.uniform(-15, 15)
        image = image.rotate(angle, Image.Resampling.BILINEAR)
        mask = mask.rotate(angle, Image.Resampling.NEAREST, fillcolor=background)
    if random.random() < 0.5:
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = change(image).enhance(random.uniform(0.8, 1.2))
    return image, mask


class PlainLoop:
    """A training loop as a report would have it.

    Args:
        recipe: model, size, batch, rate and workers are taken from it.
        records: what it learns from.
        seed: of the weights, the order and the augmentation.
    """

    def __init__(self, recipe: Recipe, records: Sequence[Record], *, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        self.model = build_model(recipe)
        self._recipe = recipe
        is_generated = str(recipe.data.path).startswith("synthetic")
        self._background = BACKGROUND if is_generated else TRIMAP_BACKGROUND
        self._loader = DataLoader(
            PlainImages(
                records,
                size=recipe.input.size,
                augmented=True,
                background=self._background,
            ),
            batch_size=recipe.train.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=recipe.train.workers,
        )
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.optimizer.lr,
            weight_decay=recipe.optimizer.weight_decay,
        )
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimizer, recipe.train.epochs
        )

    def epochs(self) -> Iterator[float]:
        """Train, and give the seconds an image of each epoch."""
        self.model.train()
        for _ in range(self._recipe.train.epochs):
            start, num = time.perf_counter(), 0
            for images, masks in self._loader:
                logits = self.model(images)
                loss = functional.binary_cross_entropy_with_logits(logits, masks.float())
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                loss.item()
                _batch_dice(logits, masks)
                num += len(images)
            self._schedule.step()
            yield (time.perf_counter() - start) / num

    def validate(self, records: Sequence[Record]) -> float:
        """Mean Dice over images at the model's size."""
        self.model.eval()
        images = PlainImages(
            records,
            size=self._recipe.input.size,
            augmented=False,
            background=self._background,
        )
        with torch.inference_mode():
            scores = [
                _batch_dice(self.model(pixels[None]), mask[None])
                for pixels, mask in (images[index] for index in range(len(images)))
            ]
        return statistics.fmean(scores)


def _batch_dice(logits: torch.Tensor, masks: torch.Tensor) -> float:
    found = logits > 0
    both = float((found & masks).sum())
    total = float(found.sum() + masks.sum())
    return 2 * both / total if total else 1.0


def _recipe(options: argparse.Namespace, model: str, **changes: object) -> Recipe:
    """Report D's recipe with the model and the few changes of a part."""
    settings = {"model.name": model, "data.path": str(options.data), "train.workers": 0}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_recipe(
        "pet-resnet34-unet-cosine",
        overrides=tuple(f"{key}={json.dumps(value)}" for key, value in settings.items()),
    )


def _open(recipe: Recipe) -> tuple[WholeImages, list[Record], list[Record]]:
    dataset = assign_splits(open_dataset(recipe.data, progress=SILENT), recipe.data.split)
    parts = {name: [r for r in dataset.records if r.split == name] for name in ("train", "val")}
    return dataset, parts["train"], parts["val"]


def _binseg(
    recipe: Recipe, train: PixelCache, val: PixelCache, *, folder: Path
) -> list[dict[str, float]]:
    """Train as `binseg train` does, and give the lines of metrics.csv."""
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe)
    folder.mkdir(parents=True)
    return fit(model, recipe=recipe, train=train, val=val, folder=folder).history


def measure_speed(options: argparse.Namespace, progress: PlainProgress) -> list[dict[str, object]]:
    """Seconds an image of both loops in turn, for both networks of the reports."""
    rows = []
    num = options.images
    for name in options.models:
        recipe = _recipe(
            options,
            name,
            train__epochs=2,
            train__batch_size=options.batch,
            **({"input__size": options.size} if options.size else {}),
        )
        dataset, train, val = _open(recipe)
        caches = [
            open_cache(part, dataset.rule, recipe.input.preprocessing())
            for part in (train[:num], val[:1])
        ]
        plain, ours, waits = [], [], []
        for repeat in range(options.repeats):
            with tempfile.TemporaryDirectory() as scratch:
                history = _binseg(recipe, caches[0], caches[1], folder=Path(scratch) / "run")
            ours.append(history[-1]["seconds"] / num)
            waits.append(history[-1]["data_share"])
            plain.append(list(PlainLoop(recipe, train[:num], seed=repeat).epochs())[-1])
            progress.say(f"{name}: plain {plain[-1]:.3f} s, binseg {ours[-1]:.3f} s an image")
        rows.append(
            {
                "model": name,
                "plain_seconds": statistics.median(plain),
                "binseg_seconds": statistics.median(ours),
                "ratio": statistics.median(p / o for p, o in zip(plain, ours, strict=True)),
                "data_share": statistics.median(waits),
            }
        )
    return rows


def measure_dice(options: argparse.Namespace, progress: PlainProgress) -> list[dict[str, object]]:
    """Validation Dice of both loops after equal epochs, at a small size, over seeds."""
    num_train, num_val = options.dice_images, options.dice_images // 4
    both: dict[str, list[float]] = {"plain": [], "binseg": []}
    for seed in range(options.seeds):
        recipe = _recipe(
            options,
            "resnet34-unet",
            input__size=options.dice_size,
            train__epochs=options.dice_epochs,
            train__seed=seed,
            optimizer__lr=5e-4,
        )
        dataset, train, val = _open(recipe)
        train, val = train[:: max(1, len(train) // num_train)], val[:: max(1, len(val) // num_val)]
        caches = [
            open_cache(part, dataset.rule, recipe.input.preprocessing()) for part in (train, val)
        ]
        with tempfile.TemporaryDirectory() as scratch:
            history = _binseg(recipe, caches[0], caches[1], folder=Path(scratch) / "run")
        both["binseg"].append(history[-1]["val_dice"])
        loop = PlainLoop(recipe, train, seed=seed)
        list(loop.epochs())
        both["plain"].append(loop.validate(val))
        progress.say(f"seed {seed}: plain {both['plain'][-1]:.4f}, binseg {both['binseg'][-1]:.4f}")
    return [
        {
            "loop": name,
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "values": values,
        }
        for name, values in both.items()
    ]


def _finished_run(options: argparse.Namespace) -> list[dict[str, float]]:
    """Give the epochs of a run: the one that is asked for, or a short one, made now."""
    if options.run is not None:
        with (options.run / "metrics.csv").open(encoding="utf-8") as file:
            return [{k: float(v) for k, v in line.items()} for line in csv.DictReader(file)]
    recipe = _recipe(
        options, "resnet34-unet", input__size=options.dice_size, train__epochs=options.dice_epochs
    )
    dataset, train, val = _open(recipe)
    num = options.dice_images
    parts = (train[:num], val[:num])
    caches = [open_cache(part, dataset.rule, recipe.input.preprocessing()) for part in parts]
    with tempfile.TemporaryDirectory() as scratch:
        return _binseg(recipe, caches[0], caches[1], folder=Path(scratch) / "run")


def time_to_dice(
    options: argparse.Namespace, speed: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    """Compare a finished run's hours to the target with the plain loop's."""
    lines = _finished_run(options)
    seconds, reached = 0.0, None
    for line in lines:
        seconds += line["seconds"]
        if line["val_dice"] >= options.target:
            reached = int(line["epoch"])
            break
    _, train, _ = _open(_recipe(options, "unet"))
    rows = []
    for row in speed:
        assert isinstance(row["plain_seconds"], float)
        epoch = row["plain_seconds"] * len(train)
        rows.append(
            {
                "model": row["model"],
                "target": options.target,
                "binseg_epochs": reached,
                "binseg_seconds": seconds if reached else None,
                "plain_seconds_an_epoch": epoch,
                "ratio_for_report_epochs": epoch * REPORT_EPOCHS / seconds if reached else None,
                "ratio_for_equal_epochs": epoch * reached / seconds if reached else None,
            }
        )
    return rows


STEPS = """
import statistics, sys, time
import binseg, torch
size, batch, num = map(int, sys.argv[1:])
network = binseg.create_model("unet", encoder="efficientnet_lite0", final_convs=1)
network = network.to(memory_format=torch.channels_last).train()
images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
seconds = []
for _ in range(num + 1):
    start = time.perf_counter()
    network(images).mean().backward()
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[1:]))
"""


def measure_load(options: argparse.Namespace, progress: PlainProgress) -> list[dict[str, object]]:
    """Seconds of a step beside busy programs, medians over alternating repeats."""
    rows: list[dict[str, object]] = []
    command = [sys.executable, "-c", STEPS, str(options.size or 192), str(options.batch)]
    for num_busy in (0, 1, 2):
        busy = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_busy)
        ]
        seconds: dict[str, list[float]] = {"active": [], "passive": []}
        try:
            for policy in [*seconds] * options.repeats:
                run = subprocess.run(
                    [*command, str(options.steps)],
                    env=os.environ | {"OMP_WAIT_POLICY": policy},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds[policy].append(float(run.stdout))
        finally:
            for one in busy:
                one.kill()
        found = {policy: statistics.median(values) for policy, values in seconds.items()}
        rows.append({"busy": num_busy, **found, "ratio": found["active"] / found["passive"]})
        progress.say(f"{num_busy} busy programs: {found}")
    return rows


def main() -> int:
    """Measure what is asked for, print it, and write it."""
    options = _arguments()
    progress = PlainProgress()
    device = resolve_device("auto")
    found: dict[str, object] = {
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "precision": resolve_precision("auto", device, SILENT),
        "options": {key: str(value) for key, value in vars(options).items()},
    }
    speed: list[dict[str, object]] = []
    if "speed" in options.only or "time-to-dice" in options.only:
        speed = measure_speed(options, progress)
        found["speed"] = speed
    if "dice" in options.only:
        found["dice"] = measure_dice(options, progress)
    if "time-to-dice" in options.only:
        found["time_to_dice"] = time_to_dice(options, speed)
    if "load" in options.only:
        found["load"] = measure_load(options, progress)
    for part in ("speed", "dice", "time_to_dice", "load"):
        for row in found.get(part, []):  # type: ignore[attr-defined]
            print(part, json.dumps(row))
    if options.json:
        write_json(options.json, found)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=GENERATED, help="a folder of Oxford-IIIT Pet")
    parser.add_argument(
        "--quick", action="store_true", help="one network, one repeat, few and small images"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="default: speed and dice")
    parser.add_argument("--models", nargs="+", default=["unet", "resnet34-unet"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=32, help="of an epoch, for speed")
    parser.add_argument("--size", type=int, help="of inputs, for speed; else the report's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="of a repeat, for load")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dice-size", type=int, default=64)
    parser.add_argument("--dice-images", type=int, default=800)
    parser.add_argument("--dice-epochs", type=int, default=4)
    parser.add_argument("--run", type=Path, help="a finished run, for time-to-dice")
    parser.add_argument("--target", type=float, default=REPORT_DICE)
    options = parser.parse_args()
    always = ["speed", "dice"]
    options.only = options.only or always + (["time-to-dice"] if options.run else [])
    if options.quick:
        options.images, options.repeats, options.seeds = 16, 1, 1
        options.models, options.size = options.models[-1:], options.size or 64
        options.dice_size, options.dice_images, options.dice_epochs = 32, 40, 2
    return options


if __name__ == "__main__":
    sys.exit(main())
