"""The files of an evaluation: report.html, report.json, per_image.csv and two images."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from binseg.data.dataset import Dataset
from binseg.data.samples import read_sample
from binseg.errors import OutputError
from binseg.evaluation.origin import Origin
from binseg.inference import Predictor
from binseg.metrics import image_rows, report_as_dict
from binseg.packaging import Card
from binseg.report import GalleryItem, plot_gallery, plot_histogram
from binseg.report.page import Background, Gallery, write_page
from binseg.storage import csv_text, write_json, write_text
from binseg.training.run_folder import RunFolder
from binseg.types import Report

PAGE_NAME = "report.html"
NUM_IMAGES = 48
"""On the page: a third of them the worst, a third the middle, a third the best."""
NUM_GALLERY = 9
"""In gallery.png, chosen alike."""
SHOWN_SIDE = 1024
"""Longest side of an image that is kept to be shown."""

T = TypeVar("T")


def write_report(
    folder: Path,
    report: Report,
    *,
    dataset: Dataset,
    predictor: Predictor,
    origin: Origin | None = None,
    predictor_of: Mapping[str, Predictor] | None = None,
) -> None:
    """Write all files of an evaluation; the images that are shown are predicted once more.

    `predictor_of` gives the predictor of each image by id, where it wasn't one for all. Raises
    OutputError.
    """
    make_folder(folder)
    write_json(folder / "report.json", report_as_dict(report))
    rows = image_rows(report)
    write_text(folder / "per_image.csv", csv_text(rows, list(rows[0])))
    dice_of = {
        one.id: one.scores["original"]["dice"]
        for one in report.images
        if one.counts["original"].num_valid
    }
    # Predicted again, so as not to keep the masks of all images in memory.
    chosen = _worst_middle_best(
        sorted(dice_of, key=lambda id_: (dice_of[id_], id_)), NUM_IMAGES // 3
    )
    record_of = {record.id: record for record in dataset.records}
    items = []
    for id_ in chosen:
        sample = read_sample(record_of[id_], dataset.rule)
        mask_HW = (predictor_of or {}).get(id_, predictor).predict(sample.image_HWC).mask
        # They are shown small: so many huge images would fill the memory.
        every = -(-max(mask_HW.shape) // SHOWN_SIDE)
        shown = (slice(None, None, every),) * 2
        assert sample.mask_HW is not None, "scored images have a truth"
        items.append(
            GalleryItem(
                id=id_,
                image_HWC=sample.image_HWC[shown].copy(),
                prediction_HW=mask_HW[shown].copy(),
                truth_HW=sample.mask_HW[shown].copy(),
                valid_HW=sample.valid_HW[shown].copy(),
                dice=dice_of[id_],
            )
        )
    write_page(
        folder / PAGE_NAME,
        report=report,
        galleries=_galleries(items),
        background=_background(report, dataset, origin or Origin.of(predictor)),
    )
    plot_histogram(list(dice_of.values()), folder / "histogram.png")
    title = f"{report.title}: worst, middle, best"
    plot_gallery(_worst_middle_best(items, NUM_GALLERY // 3), folder / "gallery.png", title=title)


def make_folder(folder: Path) -> None:
    """Make a report's folder, rather than lose hours of work later; OutputError if it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {folder}: {error.strerror}") from None


def _worst_middle_best(ranked: Sequence[T], num: int) -> list[T]:
    """Take `num` from each of the start, the middle and the end, each at most once.

    >>> _worst_middle_best("abcdefghi", 1)
    ['a', 'e', 'i']
    """
    if len(ranked) <= 3 * num:
        return list(ranked)
    middle = (len(ranked) - num) // 2
    return [*ranked[:num], *ranked[middle : middle + num], *ranked[-num:]]


def _galleries(items: Sequence[GalleryItem]) -> list[Gallery]:
    if len(items) < NUM_IMAGES:
        return [("All images, worst first", items)]
    third = NUM_IMAGES // 3
    best = list(reversed(items[-third:]))
    return [("Worst", items[:third]), ("Median", items[third:-third]), ("Best", best)]


def _background(report: Report, dataset: Dataset, origin: Origin) -> Background:
    data = [
        ("path", str(dataset.root)),
        ("kind", dataset.kind),
        ("scored", f"{len(dataset.records):,} images, split {report.split}"),
        ("fingerprint of these", dataset.fingerprint()),
        ("masks", dataset.rule.describe()),
    ]
    card, run = origin.card, origin.run
    if card is None:
        return Background(data=data)
    trained = card.data
    data.append(
        (
            "trained on",
            f"{trained.num_train:,} images, {trained.num_val:,} to validate, "
            f"{trained.num_test:,} to test; fingerprint {trained.fingerprint or 'not recorded'}",
        )
    )
    if card.id != report.bundle_id:
        # One of several models that predict together doesn't speak for all.
        several = [("models", report.bundle_id), ("below", "the card of the first of them")]
        method = "the mean of the models'"
        return Background(model=[*several, *card.rows()], data=data, threshold_method=method)
    is_its_threshold = report.threshold == card.threshold.value
    train = card.recipe.get("train")
    return Background(
        model=card.rows(),
        data=data,
        recipe=_recipe_text(card, run),
        training=_read_metrics(run) if run is not None else (),
        by_loss=isinstance(train, dict) and train.get("monitor") == "loss",
        threshold_method=card.threshold.method if is_its_threshold else "",
    )


def _recipe_text(card: Card, run: RunFolder | None) -> str:
    if run is not None:
        return run.recipe_path.read_text("utf-8")
    return json.dumps(card.recipe, indent=2, ensure_ascii=False) if card.recipe else ""


def _read_metrics(run: RunFolder) -> list[dict[str, str]]:
    """Read metrics.csv; a run that was copied without it has no curves."""
    if not run.metrics_path.is_file():
        return []
    with run.metrics_path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
