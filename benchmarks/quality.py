"""What predictions know of their own quality, on images that taught nothing of it.

    python benchmarks/quality.py --pets oxford-iiit-pet/ --nuclei nuclei/ --em em-mitochondria/
    python benchmarks/quality.py --nuclei nuclei/ --budget 10m --out bench/
    python benchmarks/quality.py --quick

pets    the built-in model on its validation images
nuclei  a plan on half of the images, five small ones of other seeds, a cross-validation on masks of
        which some are wrong, a model of grey images alone, and one of twelve of these
em      a plan on the quarters of slices 0 to 49; 55 to 74 and 80 to 99 are left out

Of the images that trained no model, one half (of groups) teaches what Dice to expect and the other
one measures it, for 50 random halves. Models and predictions are kept in --out, so that another
run costs figures alone. The short form, which is also the default, draws its own nuclei.
"""

import argparse
import csv
import hashlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image
from scipy import ndimage

from binseg.cli.console import PlainProgress
from binseg.config import DataConfig
from binseg.data import Dataset, open_dataset, read_sample
from binseg.datacheck import keep_together
from binseg.datacheck.contradictions import Compared, compare_mask, rank_masks
from binseg.errors import DataError
from binseg.evaluation.learning_quality import (
    choose_guaranteed,
    fit_knowledge,
    gather_lessons,
    learn_quality,
)
from binseg.inference import Prediction, load
from binseg.inference.quality import (
    UNLIKE,
    Judge,
    Quality,
    distances,
    expected_dice,
    interval,
    off_scale,
    signs,
)
from binseg.metrics import dice_of
from binseg.metrics.probabilities import NUM_THRESHOLDS
from binseg.metrics.scores import score_table
from binseg.packaging.card import Knowledge
from binseg.pipelines.cross_validate import cross_validate
from binseg.pipelines.plan_recipe import parse_budget, plan
from binseg.pipelines.train_model import train
from binseg.postprocess import label_objects
from binseg.report.overlay import small_overlay
from binseg.storage import write_text
from binseg.training.run_folder import RunFolder

PROGRESS = PlainProgress()
EM_SPLITS = {"train": range(50), "val": range(55, 75), "test": range(80, 100)}
KINDS = ("missed", "extra", "shifted", "inverted", "swapped")
PROMISES = (("recall", 0.9), ("recall", 0.95), ("fpr", 0.05), ("dice", 0.9))
NUM_HALVES, NUM_DRAWS, NUM_MODELS, FOLDS = 50, 20, 5, 3


class Row(NamedTuple):
    """One image of a set."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    split: str
    group: str


def write_set(folder: Path, rows: Iterable[Row]) -> str:
    """Write images, masks and their manifest, unless it is there; give its path."""
    path = folder / "manifest.csv"
    if not path.exists():
        lines = [("id", "image", "mask", "split", "group")]
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for row in rows:
            places = [f"{kind}/{row.name}.png" for kind in ("images", "masks")]
            Image.fromarray(row.image.squeeze()).save(folder / places[0])
            Image.fromarray(row.mask.astype(np.uint8) * 255).save(folder / places[1])
            lines.append((row.name, *places, row.split, row.group))
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    return str(path)


def read_set(path: str) -> list[Row]:
    """Read all images of a set; those in no split are dealt: half train, a quarter is val, test."""
    config = DataConfig(path=path)
    return rows_of(keep_together(open_dataset(config), config, progress=PROGRESS))


def rows_of(dataset: Dataset) -> list[Row]:
    """Read the images of a data set; nearly the same ones come into one split."""
    groups = dict.fromkeys(record.group or record.id for record in dataset.records)
    dealt = dict(zip(groups, np.random.default_rng(0).permutation(len(groups)), strict=True))
    found = []
    for record in dataset.records:
        sample = read_sample(record, dataset.rule)
        assert sample.mask_HW is not None
        group = record.group or record.id
        split = record.split or ("train", "train", "val", "test")[dealt[group] % 4]
        name = record.id.split("/")[-1]
        found.append(Row(name, sample.image_HWC, sample.mask_HW, split, group))
    return found


def quarters(slices: Sequence[Row]) -> list[Row]:
    """Cut slices in four; five neighbours are one group."""
    found = []
    for split, place in ((name, at) for name, places in EM_SPLITS.items() for at in places):
        for part in range(4):
            rows, columns = (
                slice(s * at, s * at + s) for s, at in ((384, part // 2), (512, part % 2))
            )
            image, mask = (one[rows, columns] for one in slices[place][1:3])
            found.append(Row(f"{place:03}-{part}", image, mask, split, f"block {place // 5}"))
    return found


def drawn() -> list[Row]:
    """Draw nuclei: two thirds of the images bright discs on black, the others stained."""
    rows = []
    for seed in range(96):
        random = np.random.default_rng(seed)
        height, width = np.mgrid[:96, :96]
        discs = [
            (height - y) ** 2 + (width - x) ** 2 < radius**2
            for y, x, radius in random.uniform((12, 12, 6), (84, 84, 10), (6, 3))
        ]
        mask = np.logical_or.reduce(discs)
        light = ndimage.gaussian_filter(mask * random.uniform(0.2, 0.6), 1)
        grey = (light + random.normal(0.1, 0.02, mask.shape)).clip(0, 1)[:, :, None]
        tint = np.array([1, 1, 1]) if seed % 3 else -np.array([0.4, 0.9, 0.3])
        image = ((seed % 3 == 0) + grey * tint).clip(0, 1)
        split = ("train", "train", "val", "test")[seed // 3 % 4]
        rows.append(Row(f"{seed}", (image * 255).astype(np.uint8), mask, split, f"{seed}"))
    return rows


def is_grey(row: Row) -> bool:
    """Tell a fluorescent image from a stained one."""
    return float(row.image.std(axis=2).mean()) < 2 and row.image.mean() < 128


def noise(seed: int) -> np.ndarray:
    """Draw an image of noise, of two kinds."""
    random = np.random.default_rng(seed)
    if seed % 2:
        return random.integers(0, 256, (256, 256, 3), np.uint8)
    return random.normal(128, 30, (256, 256, 3)).clip(0, 255).astype(np.uint8)


def at_scale(pixels: np.ndarray, times: int) -> np.ndarray:
    """Give what the same camera would take with pixels `times` as large, or with a third (-3).

    Larger ones show mirrored surroundings, smaller ones the middle alone. Masks take the nearest.
    """
    height, width = pixels.shape[:2]
    tall, wide = height // 3, width // 3
    if times < 0:
        pixels = pixels[tall : 2 * tall, wide : 2 * wide]
        filters = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
        small = Image.fromarray(pixels.squeeze())
        return np.asarray(small.resize((width, height), filters[pixels.ndim - 2]))
    border = ((height, height), (width, width), (0, 0))[: pixels.ndim]
    around = Image.fromarray(np.pad(pixels, border, mode="symmetric").squeeze())
    filters = (Image.Resampling.NEAREST, Image.Resampling.BOX)
    return np.asarray(around.resize((width, height), filters[pixels.ndim - 2]))


def harmed(rows: Sequence[Row], seed: int) -> tuple[list[np.ndarray], dict[int, str]]:
    """Plant mistakes of five kinds in 5 % of the masks; give all masks, and the kinds by place."""
    random = np.random.default_rng(seed)
    masks = [row.mask for row in rows]
    fit = [at for at, mask in enumerate(masks) if 0.01 < mask.mean() < 0.8]
    kinds: dict[int, str] = {}
    for number in range(round(0.05 * len(rows))):
        at = int(random.choice([at for at in fit if at not in kinds]))
        kinds[at] = KINDS[number % len(KINDS)]
        same = [other for other in fit if masks[other].shape == masks[at].shape and other != at]
        if kinds[at] == "swapped":
            masks[at] = rows[int(random.choice(same))].mask
        else:
            masks[at] = _wrong(masks[at], kinds[at], random)
    return masks, kinds


def _wrong(mask: np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    """Make one mistake in a mask."""
    if kind == "inverted":
        return ~mask
    if kind == "shifted":
        step = round(0.06 * max(mask.shape))
        moved = np.zeros_like(mask)
        moved[step:, step:] = mask[:-step, :-step]
        return moved
    labels, _ = label_objects(mask)
    areas = np.bincount(labels.ravel())[1:]
    if kind == "missed":  # one of the larger half of the objects
        larger = np.flatnonzero(areas >= np.median(areas)) + 1
        return np.asarray(mask & (labels != random.choice(larger)))
    # A disc of an object's size where there is most room, or one that fits there.
    room = ndimage.distance_transform_edt(np.pad(~mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(room.argmax()), room.shape)
    radius = min(float(room.max()) - 1, float(np.sqrt(np.median(areas) / np.pi)))
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    return np.asarray(mask | ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2))


def trained(folder: Path, data: str, budget: float, *, folds: int = 1, **settings: Any) -> Path:
    """Train by a plan unless that is done; `folds` make it a cross-validation."""
    if (folder / ("pooled" if folds > 1 else "val")).exists():
        return folder
    start = time.perf_counter()
    sections = {"data": {"path": data}, **settings}
    made = plan(sections=sections, budget=budget, folds=folds, progress=PROGRESS)
    common: dict[str, Any] = {"plan": made.as_yaml(), "progress": PROGRESS, "out": folder}
    common["spent"] = time.perf_counter() - start
    if folds > 1:
        cross_validate(made.recipe, folds=folds, **common)
    else:
        train(made.recipe, **common)
    return folder


class Remembered:
    """A model whose probabilities are kept on disk, by the images' contents."""

    def __init__(self, model: Path | str, folder: Path) -> None:
        self.inner, self.folder = load(model), folder / "predictions"
        assert self.inner.preprocessing is not None
        self.preprocessing = self.inner.preprocessing
        self.folder.mkdir(parents=True, exist_ok=True)

    def predict_array(self, image: np.ndarray, *, size: Any = None) -> Prediction:
        """Predict an image, or read what was found before."""
        content = np.ascontiguousarray(image).tobytes() + str(image.shape).encode()
        path = self.folder / f"{self.inner.bundle_id}-{hashlib.sha1(content).hexdigest()}.npz"
        if not path.exists():
            found = self.inner.predict_array(image, size=size).probability
            np.savez_compressed(path, (found * 65535).round().astype(np.uint16))
        return Prediction(
            probability_HW=np.load(path)["arr_0"].astype(np.float32) / np.float32(65535),
            threshold=self.inner.threshold,
            bundle_id=self.inner.bundle_id,
            postprocessing=self.inner.postprocessing,
            image_HWC=image,
            judge=self.inner.judge,
        )


class Study:
    """A model with the images of a set that it never trained on, and what they teach."""

    def __init__(self, model: Remembered, data: DataConfig) -> None:
        dataset = open_dataset(data)
        records = tuple(one for one in dataset.records if one.split != "train")
        self.dataset, self.model = dataset, cast("Any", model)
        self.rows = rows_of(replace(dataset, records=records))
        asked = replace(dataset, records=tuple(replace(one, split="val") for one in records))
        self.lessons = gather_lessons(self.model, asked, progress=PROGRESS)
        assert len(self.lessons) == len(records), "each image has pixels to score"
        self.dice = np.array([one.dice for one in self.lessons])
        self.signs = np.stack([one.signs_K for one in self.lessons])
        self.statistics = np.stack([one.statistics_D for one in self.lessons])

    def half(self, seed: int) -> tuple[Knowledge, np.ndarray]:
        """Learn from half of the groups; give also the places of the other images."""
        groups = [*dict.fromkeys(one.group for one in self.lessons)]
        order = np.random.default_rng(seed).permutation(len(groups))
        taught = {groups[at] for at in order[: len(groups) // 2]}
        known = fit_knowledge([one for one in self.lessons if one.group in taught])
        return known, np.flatnonzero([one.group not in taught for one in self.lessons])

    def judged(self, known: Knowledge, images: Iterable[np.ndarray]) -> list[Quality]:
        """Judge further images."""
        judge = Judge(knowledge=known, preprocessing=self.model.preprocessing)
        made = ((one, self.model.predict_array(one)) for one in images)
        return [judge.quality(image, one.probability, one.mask) for image, one in made]


class Table:
    """The lines of figures asked and measured, printed as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = [("what", "asked", "measured"), ("---",) * 3]

    def add(self, what: str, asked: str, measured: str) -> None:
        """Add a line and write all."""
        self.lines.append((what, asked, measured))
        print(f"| {what} | {asked} | {measured} |", flush=True)
        text = "".join(f"| {' | '.join(line)} |\n" for line in self.lines)
        write_text(self.folder / "table.md", text)


def measure_dice(name: str, study: Study, table: Table) -> None:
    """Predict the Dice of one half by the other half."""
    figures = []
    for seed in range(NUM_HALVES):
        known, rest = study.half(seed)
        truth, expected = study.dice[rest], expected_dice(study.signs[rest], known.coefficients)
        low, high = interval(expected, known)
        inside = ((truth >= low) & (truth <= high)).mean()
        strange = off_scale(study.statistics[rest], known).max(axis=0) > 0
        far = (strange | (distances(study.statistics[rest], known) > known.limit)).mean()
        alike = [np.corrcoef(expected[one], truth[one])[0, 1] for one in (truth >= 0, truth > 0.5)]
        figures.append((np.abs(expected - truth).mean(), *alike, inside, far))
    mae, r, r_found, inside, far = np.nanmean(figures, axis=0)
    what = f"{len(study.dice)} images, Dice {study.dice.mean():.3f} +- {study.dice.std():.3f}"
    table.add(f"{name}: error of the expected Dice ({what})", "<= 0.03", f"{mae:.4f}")
    table.add(f"{name}: r (of images with Dice above 0.5)", ">= 0.9", f"{r:.3f} ({r_found:.3f})")
    table.add(f"{name}: 90 % intervals hold", "87 to 93 %", f"{inside:.1%}")
    table.add(f"{name}: flagged as unlike", "<= 5 %", f"{far:.1%}")


def measure_unlike(
    name: str, study: Study, table: Table, asked: str, **unlike: Sequence[np.ndarray]
) -> None:
    """Tell unlike images from those that are like validation's, for ten halves."""
    for what, images in unlike.items():
        areas, found = [], list[Quality]()
        for seed in range(10 if images else 0):
            known, rest = study.half(seed)
            usual = distances(study.statistics[rest], known) / known.limit
            found += (judged := study.judged(known, images))
            strange = np.array([one.distance for one in judged])[:, None]
            areas.append((strange > usual).mean() + (strange == usual).mean() / 2)
        if images:
            table.add(f"{what} under the {name} model: AUROC", asked, f"{np.mean(areas):.4f}")
            table.add(f"{what} under the {name} model: flagged", "", _flagged(found))


def measure_scale(name: str, study: Study, table: Table) -> None:
    """Tell images of larger and of smaller pixels from usual ones, for five halves."""
    for times, what in ((3, "3 times"), (-3, "a third")):
        found, quality = list[Quality](), []
        for seed in range(5):
            known, rest = study.half(seed)
            rows = [study.rows[at] for at in rest[::3]]
            images = [np.atleast_3d(at_scale(row.image, times)) for row in rows]
            found += study.judged(known, images)
            masks = (study.model.predict_array(image).mask for image in images)
            truths = (at_scale(row.mask, times) for row in rows)
            quality += [dice_of(*pair) for pair in zip(masks, truths, strict=True)]
        told = f"{_flagged(found)}; Dice {np.mean(quality):.3f}"
        table.add(f"{name}, pixels of {what} the size: flagged", "most", told)


def _flagged(found: Sequence[Quality]) -> str:
    """Tell the share of images that count as unlike, and the most common reasons."""
    flagged = [one for one in found if one.flag == UNLIKE]
    reasons = Counter(part for one in flagged for part in one.reason.split("; "))
    told = [f"{part} ({num / len(flagged):.0%})" for part, num in reasons.most_common(3)]
    return f"{len(flagged) / len(found):.0%}" + (": " + "; ".join(told) if told else "")


def measure_guarantees(name: str, study: Study, table: Table) -> None:
    """Calibrate 100 times by 200 images drawn from all of them, whose mean is the truth."""
    counts = np.stack([one.counts_T4 for one in study.lessons]).astype(np.int64)
    own = study.model.inner.threshold
    for score, wanted in PROMISES:
        held = refused = 0
        for seed in range(100):
            chosen = [*counts[np.random.default_rng(seed).integers(0, len(counts), 200)]]
            options = {"groups": range(200), "own_threshold": own}
            try:
                found = choose_guaranteed(score, wanted, chosen, **cast("Any", options))
            except DataError:
                refused += 1
                continue
            tp, fp, fn, tn = counts[
                :, min(NUM_THRESHOLDS - 1, round(found.threshold * NUM_THRESHOLDS))
            ].T
            if score == "fpr":
                held += bool((fp / np.maximum(1, fp + tn)).mean() <= wanted)
            else:
                reached = np.asarray(score_table(np.stack([tp, fp, fn, tn], axis=1))[score])
                reached = np.where((tp + fn == 0) & (score == "recall"), 1.0, reached)
                held += bool(reached.mean() >= wanted)
        told = f"{held} held" + (
            f", {refused} refused, {100 - held - refused} broken" * bool(refused)
        )
        table.add(f"{name}: {score}={wanted}, of 100 calibrations", ">= 93", told)


def measure_errors(
    name: str, rows: Sequence[Row], models: Sequence[Remembered], table: Table
) -> None:
    """Plant mistakes in 5 % of the masks, 20 times, and count those in the worst tenth."""
    made = [model.predict_array(row.image) for model, row in zip(models, rows, strict=True)]

    def compare(place: int, mask: np.ndarray) -> Compared:
        one = made[place]
        promised = float(expected_dice(signs(one.probability, one.mask)[None], ())[0])
        return compare_mask(
            str(place),
            image_HWC=rows[place].image,
            probability_HW=one.probability,
            model_HW=one.mask,
            mask_HW=mask,
            valid_HW=np.ones(mask.shape, np.bool_),
            expected_dice=one.quality.expected_dice if one.quality else promised,
        )

    clean = [compare(place, row.mask) for place, row in enumerate(rows)]
    found, planted = Counter[str](), Counter[str]()
    for seed in range(NUM_DRAWS):
        masks, kinds = harmed(rows, seed)
        every = enumerate(clean)
        ranked = rank_masks([compare(at, masks[at]) if at in kinds else one for at, one in every])
        top = {int(one.id) for one in ranked[: round(len(rows) / 10)]}
        planted.update(kinds.values())
        found.update(kind for at, kind in kinds.items() if at in top)
    told = ", ".join(f"{kind} {found[kind] / planted[kind]:.0%}" for kind in KINDS)
    share = found.total() / planted.total()
    table.add(f"{name}: planted errors in the worst tenth", ">= 90 %", f"{share:.1%} ({told})")
    cells = []
    for one in rank_masks(clean)[:10]:
        row, model_HW = rows[int(one.id)], made[int(one.id)].mask
        PROGRESS.say(f"suspicious in {name}: {row.name}: {one.kind}, Dice {one.dice:.2f}")
        cells.append([small_overlay(row.image, mask, 128) for mask in (row.mask, model_HW)])
    sheet = np.full((2 * 2 * 128, 5 * 128, 3), 255, np.uint8)
    for place, pair in enumerate(cells):
        for below, cell in enumerate(pair):
            top, left = 128 * (2 * (place // 5) + below), 128 * (place % 5)
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    Image.fromarray(sheet).save(table.folder / f"suspicious-{name}.jpg", quality=85)


def measure_ranking(studies: Sequence[Study], table: Table) -> None:
    """Rank each model's failures by its own word, and by the Dice between all models' masks."""
    masks = [[s.model.predict_array(row.image).mask for row in s.rows] for s in studies]
    pairs = np.array([[[*map(dice_of, x, y)] for y in masks] for x in masks])
    other = (pairs.sum(axis=1) - 1) / (len(studies) - 1)  # of each model's mask with the others'
    figures = []
    for place, study in enumerate(studies):
        for seed in range(10):
            known, rest = study.half(seed)
            own = expected_dice(study.signs[rest], known.coefficients)
            truth = study.dice[rest]
            words = (own, other[place, rest], other[:, rest].mean(axis=0), truth)
            figures.append([_aurc(truth, one) for one in words])
    own, others, pairwise, best = np.mean(figures, axis=0)
    told = f"<= {pairwise:.4f} by pairwise Dice, {others:.4f} by that with the model's own mask"
    shown = f"{own:.4f} (by the truth: {best:.4f})"
    table.add(f"nuclei: AURC of one model of {len(studies)} by its own word", told, shown)


def _aurc(truth: np.ndarray, confidence: np.ndarray) -> float:
    """Give the mean loss of the most confident images, over all numbers of these."""
    risk = 1 - truth[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(risk) / np.arange(1, len(risk) + 1)).mean())


def measure_failures(rows: Sequence[Row], study: Study, table: Table) -> None:
    """Repeat two failures: stained images, and another pixel size, with 12 grey ones learnt."""
    grey = [row.image for row in rows if is_grey(row) and row.split != "train"]
    stained = [row.image for row in rows if not is_grey(row)]
    known = learn_quality(study.model, study.dataset, study.lessons)
    for what, asked, images in (
        ("stained images", "flagged", stained),
        ("pixels 3 times as large", "flagged", [np.atleast_3d(at_scale(x, 3)) for x in grey]),
        ("other grey images as they are", "", grey),
    ):
        shown = _flagged(study.judged(known, images))
        table.add(f"12 grey images learnt, then {what}", asked, shown)
    folder = str(table.folder / "data" / "twelve" / "images")
    command = [sys.executable, "-m", "binseg", "predict", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}"
    table.add("`binseg predict FOLDER` without a model", "one line", told)


def measure_nuclei(rows: list[Row], options: Any, photos: list[np.ndarray], table: Table) -> None:
    """Train all models of nuclei, and measure what they know."""
    out, runs, budget = options.out, options.out / "runs", options.budget
    grey = [row for row in rows if is_grey(row)]
    some = [row for row in grey if row.split == "train"][:12]
    masks, _ = harmed(rows, 0)
    wrong = [row._replace(mask=mask, split="") for row, mask in zip(rows, masks, strict=True)]
    twelve = [row._replace(split="val" if at > 8 else "train") for at, row in enumerate(some)]
    made = {"nuclei": rows, "grey": grey, "twelve": twelve, "harmed": wrong}
    sets = {name: write_set(out / "data" / name, one) for name, one in made.items()}

    def study(name: str, of: str, share: float, **settings: Any) -> Study:
        run = trained(runs / name, sets[of], share * budget, **settings)
        return Study(Remembered(run, out), DataConfig(path=sets[of]))

    whole = study("nuclei", "nuclei", 1)
    measure_dice("nuclei", whole, table)
    measure_guarantees("nuclei", whole, table)
    measure_scale("nuclei", whole, table)
    strange = {"noise": [noise(seed) for seed in range(40)], "photos": photos}
    measure_unlike("nuclei", whole, table, ">= 0.99", **strange)
    stained = [row.image for row in rows if not is_grey(row)]
    measure_unlike("grey-nuclei", study("grey", "grey", 0.3), table, ">= 0.93", stained=stained)
    by_pixels = {"resize": "tile"}  # a whole image fills the network's input, whatever its pixels
    measure_failures(rows, study("twelve", "twelve", 0.2, input=by_pixels), table)
    seeds = [{"seed": seed} for seed in range(1, 1 + NUM_MODELS)]
    small = [study(f"nuclei-{x['seed']}", "nuclei", 0.2, train=x) for x in seeds]
    measure_ranking(small, table)
    folder = trained(runs / "harmed", sets["harmed"], 0.8 * budget, folds=FOLDS)
    of_image: dict[str, Remembered] = {}
    for run in (RunFolder(path=folder / f"fold-{fold}") for fold in range(FOLDS)):
        judging = {name for name, split in run.splits().items() if split == "val"}
        of_image |= dict.fromkeys(judging, Remembered(run.path, out))
    measure_errors("nuclei", rows, [of_image[row.name] for row in rows], table)


def main() -> int:
    """Measure the sets that are given, and print the figures."""
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0],
        epilog="\n".join(lines[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pets", help="the official layout of Oxford-IIIT Pet")
    parser.add_argument("--nuclei", help="nuclei, grey and stained ones")
    parser.add_argument("--em", help="100 slices of 1024 x 768 with mitochondria")
    parser.add_argument("--budget", default="5m", help="of the largest trainings")
    parser.add_argument("--quick", action="store_true", help="drawn nuclei, short trainings")
    parser.add_argument("--out", type=Path, default=Path("bench-quality"), help="all that is kept")
    options = parser.parse_args()
    is_quick = options.quick or not (options.pets or options.nuclei or options.em)
    options.budget = parse_budget("20s" if is_quick else options.budget)
    out, table, photos = options.out, Table(options.out), []
    em = quarters(read_set(options.em)) if options.em else []
    if options.pets:
        data = DataConfig(path=options.pets, border="foreground")
        pets = Study(Remembered("pets", out), data)
        photos = [row.image for row in pets.rows[::6]]
        measure_dice("pets", pets, table)
        measure_guarantees("pets", pets, table)
        strange = {"noise": [noise(seed) for seed in range(40)], "EM": [x.image for x in em[::6]]}
        measure_unlike("pet", pets, table, ">= 0.99", **strange)
        measure_errors("pets", pets.rows, [pets.model] * len(pets.rows), table)
    if options.nuclei or is_quick:
        rows = read_set(options.nuclei) if options.nuclei else drawn()
        measure_nuclei(rows, options, photos, table)
    if options.em:
        path = write_set(out / "data" / "em", em)
        run = trained(out / "runs" / "em", path, options.budget)
        study = Study(Remembered(run, out), DataConfig(path=path))
        measure_dice("EM", study, table)
        measure_guarantees("EM", study, table)
        measure_scale("EM", study, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
