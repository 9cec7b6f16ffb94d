"""Check a data set: what is in it and wrong with it, a page, and samples as training gets them."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from binseg.config import DataConfig, Recipe
from binseg.data.dataset import SPLITS, Dataset, spread
from binseg.data.patches import WholeImages, open_images, sample_places
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.datacheck import CHECKS, Look, examine, foreground_share, ranked, take_in
from binseg.datacheck.checks import make_finding
from binseg.datacheck.contradictions import (
    SUSPICIOUS,
    Compared,
    Contradiction,
    compare_mask,
    rank_masks,
)
from binseg.datacheck.looks import look_at_all, looks_as_dict
from binseg.errors import DataError, ImageError
from binseg.imageio import read_image, read_pixel_size, write_image
from binseg.inference import Predictor, load
from binseg.inference.quality import expected_dice, signs
from binseg.progress import SILENT, Progress, track
from binseg.report import for_display, overlay
from binseg.report.overlay import small_overlay
from binseg.report.rendering import images_shown, write_doctor_page
from binseg.shards import Shard
from binseg.storage import cache_dir
from binseg.training.run_folder import RunFolder
from binseg.transforms.augmentation import build_augment
from binseg.transforms.preprocess import prepare, prepare_truth
from binseg.types import Finding, Record

NUM_SAMPLES, SHEET_COLUMNS = 12, 4  # images of a sheet, and how many stand beside each other
THUMB_SIDE = 296  # Longer side in pixels of the page's images, sharp on a phone at half that size


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Facts about a data set; its findings, worst first; the foreground's share of each mask."""

    path: str
    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    shares: tuple[float, ...] = ()
    suspects: tuple[Contradiction, ...] = ()  # Masks beside a model's, most suspicious first
    sheet: Path | None = None  # Samples with their masks, where asked for

    def failed(self, *, strict: bool = False) -> bool:
        """Tell whether anything is wrong; `strict` counts warnings too."""
        bad = {"error", "warning"} if strict else {"error"}
        return any(finding.severity in bad for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return facts, findings and the histogram of shares in 20 bins as plain data."""
        counts, _ = np.histogram(self.shares, bins=20, range=(0.0, 1.0))
        return {
            "path": self.path,
            "facts": dict(self.facts),
            "foreground_histogram": counts.tolist(),
            "findings": [asdict(finding) for finding in self.findings],
            "suspects": [asdict(one) for one in self.suspects],
            "samples": None if self.sheet is None else str(self.sheet),
        }


def check(
    data: DataConfig | str | Path,
    *,
    model: str | Path | None = None,
    page: str | Path | None = None,
    sheet: str | Path | None = None,
    known: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> CheckResult:
    """Look at every image and mask of a data set; one that can't be opened at all is one finding.

    `model` is a run, a bundle, or the folder of a cross-validation (each mask is then judged by the
    model that did not learn from it); masks that it contradicts are findings, too. `page` is an
    HTML file of the findings and their images, `sheet` a PNG of samples under their masks, where an
    inverted or shifted mask is seen. Raises OutputError where they can't be written. What is
    `known`, by `look_at_shard`, of all images isn't looked at again.
    """
    config = data if isinstance(data, DataConfig) else DataConfig(path=str(data))
    suspects: list[Contradiction] = []
    models: dict[str, Predictor] = {}
    intake = take_in(config, progress=progress)
    if intake.dataset is None:
        result = CheckResult(path=str(config.path), facts=(), findings=intake.findings)
    else:
        looks = None if known is None else {k: v for part in known for k, v in part.items()}
        seen = examine(intake.dataset, known=looks, progress=progress)
        contradicted: list[Finding] = []
        if model is not None:
            suspects, models = contradictions(intake.dataset, Path(model), progress)
            contradicted = [
                make_finding("contradicted", _suspicion(one, len(suspects), place), ids=[one.id])
                for place, one in enumerate(suspects, start=1)
                if one.score >= SUSPICIOUS
            ]
        found = seen.findings
        facts = dict(_facts(intake.dataset, seen.looks))
        if not intake.knows_masks:  # the error says all that is known of them
            del facts["masks"]
            found = tuple(one for one in found if one.code != "no-mask")
        result = CheckResult(
            path=str(config.path),
            facts=tuple(facts.items()),
            findings=ranked([*intake.findings, *found, *contradicted]),
            suspects=tuple(suspects),
            shares=tuple(x.foreground for x in seen.looks if x.foreground is not None),
            sheet=None if sheet is None else _write_sheet(intake.dataset, Path(sheet)),
        )
    if page is not None:
        write_doctor_page(
            Path(page),
            title=result.path,
            facts=result.facts,
            findings=result.findings,
            shares=result.shares,
            thumbs=_thumbs(intake.dataset, result.findings, progress, models),
            titles={code: check.title for code, check in CHECKS.items()},
        )
        progress.say(f"page: {page}")
    return result


def look_at_shard(data: DataConfig, shard: Shard, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Look at the images of a shard alone, as `check` does, for its `known`."""
    dataset = take_in(data, progress=progress).dataset
    if dataset is None:  # `gather` will say why
        return {}
    own = replace(dataset, records=tuple(r for r in dataset.records if shard.holds(r.id)))
    return looks_as_dict(look_at_all(own, progress=progress))


def contradictions(
    dataset: Dataset, model: Path, progress: Progress = SILENT
) -> tuple[list[Contradiction], dict[str, Predictor]]:
    """Rank the masks of a data set by how a model contradicts them; give the model of each, too."""
    folds = sorted(model.glob("fold-*"))
    of_image: dict[str, Predictor] = {}
    ids = {record.id for record in dataset.records}
    for folder in folds or [model]:
        predictor = load(folder)
        run = RunFolder.find(folder)
        splits = run.splits() if run is not None else {}
        own = {id_ for id_, split in splits.items() if split == "val"} if folds else ids
        of_image |= dict.fromkeys(own & ids, predictor)
        learnt = sum(splits.get(id_) == "train" for id_ in ids)
        if learnt and not folds:
            progress.say(
                f"{learnt} of these images trained the model, which may have learnt their mistakes "
                "too; a cross-validation's folder judges each by a model that never saw it"
            )
    if missing := len(ids - set(of_image)):
        progress.say(f"{missing} images are of no fold, and aren't compared with a model")
    records = [one for one in dataset.with_truth().records if one.id in of_image]
    found: list[Compared] = []
    for record in track(records, progress=progress, label="comparing", total=len(records)):
        with suppress(ImageError):  # another finding says so
            sample = read_sample(record, dataset.rule)
            assert sample.mask_HW is not None
            made = of_image[record.id].predict(sample.image_HWC)
            expected = float(expected_dice(signs(made.probability, made.mask)[None], ())[0])
            compared: Any = {"mask_HW": sample.mask_HW, "valid_HW": sample.valid_HW}
            compared |= {"image_HWC": sample.image_HWC}
            compared |= {"probability_HW": made.probability, "model_HW": made.mask}
            expected = made.quality.expected_dice if made.quality else expected
            found.append(compare_mask(record.id, expected_dice=expected, **compared))
    return rank_masks(found), of_image


def _suspicion(one: Contradiction, num: int, place: int) -> str:
    return (
        f"{one.kind} (number {place} of {num}; Dice with the model's mask {one.dice:.2f}, expected "
        f"{one.expected_dice:.2f}); on the page the mask is left, the model's right"
    )


def sheet_path(data: str) -> Path:
    """Name the image of samples of a data set that nobody named, in the cache folder."""
    told = hashlib.sha256(str(Path(data).absolute()).encode()).hexdigest()[:6]
    return cache_dir() / "checks" / f"{Path(data).name or 'data'}-{told}.png"


def _write_sheet(dataset: Dataset, path: Path) -> Path | None:
    """Draw samples from all over the data set; those that can't be read are findings already."""
    cells: list[UInt8[np.ndarray, "h w 3"]] = []
    for record in spread(dataset.with_truth().records, NUM_SAMPLES):
        with suppress(ImageError):
            thumb_HW3 = _thumb(record, dataset)
            times = max(1, THUMB_SIDE // max(thumb_HW3.shape))  # enlarges images that are tiny
            thumb_HW3 = thumb_HW3.repeat(times, axis=0).repeat(times, axis=1)
            height, width = thumb_HW3.shape[:2]
            cell = np.full((THUMB_SIDE, THUMB_SIDE, 3), 255, np.uint8)
            cell[:height, :width] = thumb_HW3
            cells.append(cell)
    if not cells:
        return None
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % SHEET_COLUMNS)
    starts = range(0, len(cells), SHEET_COLUMNS)
    write_image(path, np.vstack([np.hstack(cells[at : at + SHEET_COLUMNS]) for at in starts]))
    return path


def _thumbs(
    dataset: Dataset | None,
    findings: Sequence[Finding],
    progress: Progress,
    models: Mapping[str, Predictor],
) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Draw the images that the page shows, with their masks where these can be read."""
    if dataset is None:
        return {}
    known = {record.id: record for record in dataset.records}
    wanted = [known[id_] for id_ in images_shown(findings) if id_ in known]
    doubted = {id_ for one in findings if one.code == "contradicted" for id_ in one.ids}
    thumbs = {}
    for record in track(wanted, progress=progress, label="drawing", total=len(wanted)):
        with suppress(ImageError):  # the finding says why there is nothing to see
            thumbs[record.id] = _thumb(record, dataset)
            if record.id in doubted:
                made = models[record.id].predict(read_sample(record, dataset.rule).image_HWC)
                if made.image_HWC is not None:
                    drawn_HW3 = small_overlay(made.image_HWC, made.mask, THUMB_SIDE)
                    thumbs[record.id] = np.hstack([thumbs[record.id], drawn_HW3])
    return thumbs


def _thumb(record: Record, dataset: Dataset) -> UInt8[np.ndarray, "h w 3"]:
    try:
        sample = read_sample(record, dataset.rule)
        image_HWC, mask_HW = sample.image_HWC, sample.mask_HW
    except ImageError:
        image_HWC, mask_HW = read_image(record.image_path, page=record.page), None
    return small_overlay(image_HWC, mask_HW, THUMB_SIDE)


def _facts(dataset: Dataset, looks: Sequence[Look]) -> Iterator[tuple[str, str]]:
    yield "kind", dataset.kind
    yield "images", str(len(dataset.records))
    yield "masks", dataset.rule.describe()
    sizes = Counter[str](record.split or "in no split" for record in dataset.records)
    names = (*SPLITS, "in no split")
    yield "splits", ", ".join(f"{sizes[name]} {name}" for name in names if sizes[name])
    groups = {record.group for record in dataset.records if record.group is not None}
    if groups:
        yield "groups", str(len(groups))
    if not looks:
        return
    yield "sizes", _spread([f"{look.height}x{look.width}" for look in looks])
    known = [read_pixel_size(path) for path in {record.image_path for record in dataset.records}]
    if stated := [one for one in known if one is not None]:
        sides = _spread([f"{one.height:.3g} x {one.width:.3g} µm" for one in stated])
        silent = len(known) - len(stated)
        yield "pixel size", sides + (f"; not stated by {silent}" if silent else "")
    yield "channels", _spread([f"{look.channels} x {look.dtype}" for look in looks])
    shares = [x.foreground for x in looks if x.foreground is not None and x.num_valid]
    if shares:
        low, middle, high = np.percentile(shares, [5, 50, 95])
        yield (
            "foreground",
            f"{foreground_share(looks):.1%} of the pixels (5% of images below {low:.1%}, half "
            f"below {middle:.1%}, 95% below {high:.1%})",
        )


def _spread(values: Sequence[str]) -> str:
    frequent = Counter(sorted(values)).most_common()
    shown = ", ".join(f"{value} ({num})" for value, num in frequent[:4])
    return shown + (f" and {len(frequent) - 4} others" if len(frequent) > 4 else "")


GAP = 4
Sample = tuple[np.ndarray, np.ndarray]  # Image as bytes, and target, as the model sees them


def plot_augmentation(
    recipe: Recipe,
    *,
    out: str | Path,
    num_samples: int = 4,
    num_variants: int = 5,
    progress: Progress = SILENT,
) -> None:
    """Show a recipe's augmentation in the PNG `out`, a row a sample; DataError without any mask."""
    dataset = open_dataset(recipe.data, progress=progress)
    chosen = spread([r for r in dataset.records if r.mask_path or r.shapes], num_samples)
    if not chosen:
        raise DataError(f"{dataset.root}: no image has a mask; there is nothing to show")
    augment, size, seed = build_augment(recipe.augment), recipe.input.size, recipe.train.seed
    pairs = [
        _patch(record, dataset, recipe, augment.context)
        if recipe.draws_patches
        else _prepared(record, dataset, recipe)
        for record in chosen
    ]
    inputs_NHWC, targets_NHW = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    margin = (inputs_NHWC.shape[1] - size) // 2
    middle = (slice(None), slice(margin, margin + size), slice(margin, margin + size))
    columns = [_outlined(inputs_NHWC[middle], targets_NHW[middle])]
    if inputs_NHWC.dtype == np.uint16:
        inputs_NHWC = inputs_NHWC.astype(np.float32) / np.float32(65535)
    images = torch.from_numpy(inputs_NHWC).permute(0, 3, 1, 2)
    targets = torch.from_numpy(targets_NHW)
    for epoch in range(num_variants):
        changed, target = augment(images, targets, seed=seed, epoch=epoch, step=0, size=size)
        bytes_NCHW = (changed * 255).round().clamp(0, 255).to(torch.uint8)
        columns.append(_outlined(bytes_NCHW.permute(0, 2, 3, 1).numpy(), target.numpy()))
    write_image(Path(out), _sheet(columns))


def _prepared(record: Record, dataset: Dataset, recipe: Recipe) -> Sample:
    """Prepare a sample for the model; of tiles, take the one with the most foreground."""
    sample = read_sample(record, dataset.rule)
    assert sample.mask_HW is not None
    inputs_NHWC, placements = prepare(sample.image_HWC, recipe.preprocessing().as_trained())
    targets_NHW = prepare_truth(sample.mask_HW, sample.valid_HW, placements)
    best = int((targets_NHW == 1).sum(axis=(1, 2)).argmax())
    return inputs_NHWC[best], targets_NHW[best]


def _patch(record: Record, dataset: Dataset, recipe: Recipe, context: float) -> Sample:
    """Cut a patch as training does, surroundings included: the first one with foreground."""
    cache = open_images([record], dataset.rule, recipe.preprocessing().as_trained())
    size, seed = recipe.input.size, recipe.train.seed
    margin = round(size * (context - 1) / 2)
    places_N3 = sample_places(cache, size=size, num=1, foreground=1.0, seed=seed, epoch=0)
    places_N3[:, 1:] -= margin
    inputs_NCHW, targets_NHW = WholeImages(cache).patches(places_N3, size=size + 2 * margin)
    return inputs_NCHW[0].transpose(1, 2, 0), targets_NHW[0]


def _outlined(inputs_NHWC: np.ndarray, targets_NHW: np.ndarray) -> list[np.ndarray]:
    return [
        overlay(for_display(np.ascontiguousarray(image_HWC)), target_HW == 1, strength=0.0)
        for image_HWC, target_HW in zip(inputs_NHWC, targets_NHW, strict=True)
    ]


def _sheet(columns: list[list[np.ndarray]]) -> np.ndarray:
    def framed(image_HW3: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        return np.pad(image_HW3, ((top, bottom), (left, right), (0, 0)), constant_values=255)

    first, *others = (np.concatenate([framed(x, GAP, GAP, 0, 0) for x in one]) for one in columns)
    return framed(np.concatenate([framed(first, 0, 0, 0, GAP), *others], 1), 0, 0, GAP, 2 * GAP)
