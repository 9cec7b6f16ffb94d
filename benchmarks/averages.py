"""Show on a real run how the averages differ, and how the border rule moves a perfect score.

    python benchmarks/averages.py runs/pet --data oxford-iiit-pet/
    python benchmarks/averages.py

Without a run, a short one is made on generated images.

From the run's val/per_image.csv: the mean over images, the pooled score, and what means over
batches give, for several batch sizes and many orders of the same images. From the trimaps of the
run's validation split: a perfect mask under border = background, scored under the other rules.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

from binseg.cli.console import PlainProgress
from binseg.config import DataConfig, load_recipe
from binseg.data import open_dataset, read_sample
from binseg.data.splits import read_split
from binseg.metrics import count, pool, score_all
from binseg.pipelines.train_model import train
from binseg.types import Counts

BATCH_SIZES = (1, 4, 8, 16, 64)
NUM_ORDERS = 1000


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="with val/per_image.csv; left out: a short one, made now"
    )
    parser.add_argument("--data", type=Path, help="the run's Oxford-IIIT Pet data")
    given = parser.parse_args()
    if given.run is None and given.data is not None:
        parser.error("--data goes with a run that was trained on it")
    with tempfile.TemporaryDirectory() as scratch:
        run = given.run
        if run is None:
            recipe = load_recipe("demo", overrides=("train.epochs=2", "data.path=synthetic:num=60"))
            run = train(recipe, out=Path(scratch) / "run", progress=PlainProgress()).folder
        tell_averages(run)
    if given.data is not None:
        tell_borders(given.run, given.data)


def tell_averages(run: Path) -> None:
    """Print Dice and IoU of the same images under each average."""
    counts_N4 = read_counts(run / "val" / "per_image.csv")
    print(f"{len(counts_N4)} validation images, original size")
    print(f"{'average':22} {'Dice':>8} {'IoU':>8}   Dice, lowest to highest of {NUM_ORDERS} orders")
    pooled_4 = counts_N4.sum(axis=0)
    print(f"{'mean over images':22} {dice(counts_N4).mean():8.4f} {iou(counts_N4).mean():8.4f}")
    print(f"{'pooled pixels':22} {dice(pooled_4):8.4f} {iou(pooled_4):8.4f}")
    random = np.random.default_rng(0)
    orders = [random.permutation(len(counts_N4)) for _ in range(NUM_ORDERS)]
    for size in BATCH_SIZES:
        starts = np.arange(0, len(counts_N4), size)
        sums = [np.add.reduceat(counts_N4[order], starts, axis=0) for order in orders]
        dices, ious = ([score(one).mean() for one in sums] for score in (dice, iou))
        name = f"mean over batches, {size}"
        print(
            f"{name:22} {np.mean(dices):8.4f} {np.mean(ious):8.4f}   "
            f"{min(dices):.4f} to {max(dices):.4f}"
        )


def read_counts(path: Path) -> np.ndarray:
    """Read tp, fp, fn, tn of every image that has a pixel to score."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    counts_N4 = np.array([[int(row[name]) for name in ("tp", "fp", "fn", "tn")] for row in rows])
    return counts_N4[counts_N4.sum(axis=1) > 0]


def dice(counts_K4: np.ndarray) -> np.ndarray:
    """Score rows of counts; 1 where there is nothing to find and nothing was found."""
    tp, fp, fn, _ = np.moveaxis(counts_K4, -1, 0)
    return np.where(tp + fp + fn == 0, 1.0, 2 * tp / np.maximum(1, 2 * tp + fp + fn))


def iou(counts_K4: np.ndarray) -> np.ndarray:
    """The same for IoU."""
    tp, fp, fn, _ = np.moveaxis(counts_K4, -1, 0)
    return np.where(tp + fp + fn == 0, 1.0, tp / np.maximum(1, tp + fp + fn))


def tell_borders(run: Path, data: Path) -> None:
    """Print what a perfect mask without the border scores under each rule."""
    splits = read_split(run / "split.csv")
    answers: dict[str, np.ndarray] = {}
    print("\na perfect mask under border = background, scored under")
    for border in ("background", "foreground", "ignore"):
        dataset = open_dataset(DataConfig(path=str(data), kind="oxford-pet", border=border))
        records = [record for record in dataset.records if splits.get(record.id) == "val"]
        found: list[Counts] = []
        for record in records:
            sample = read_sample(record, dataset.rule)
            assert sample.mask_HW is not None
            answers.setdefault(record.id, sample.mask_HW)
            found.append(count(answers[record.id], sample.mask_HW, sample.valid_HW))
        means = {name: np.mean([score_all(one)[name] for one in found]) for name in ("dice", "iou")}
        total = score_all(pool(found))
        print(
            f"  {border:11} {len(records)} images: mean Dice {means['dice']:.4f}, mean IoU "
            f"{means['iou']:.4f}; pooled Dice {total['dice']:.4f}, pooled IoU "
            f"{total['iou']:.4f}"
        )


if __name__ == "__main__":
    main()
