"""The page of an evaluation: its figures, with what is known of the model and the data."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from binseg.data.dataset import Dataset
from binseg.evaluation.evaluation_data import Known
from binseg.metrics import MEANINGS, OBJECT_MEANINGS, OUTLINE_MEANINGS
from binseg.packaging import Card
from binseg.report import GalleryItem
from binseg.report.page import Background, Gallery, write_page
from binseg.training.run_folder import RunFolder
from binseg.types import Report

__all__ = ["NUM_IMAGES", "PAGE_NAME", "write_report_page"]

PAGE_NAME = "report.html"
NUM_IMAGES = 18
"""On the page: a third of them the worst, a third the middle, a third the best."""


def write_report_page(
    folder: Path,
    report: Report,
    *,
    items: Sequence[GalleryItem],
    dataset: Dataset,
    known: Known,
) -> None:
    """Write report.html.

    Args:
        folder: where to.
        report: the figures.
        items: images, the worst first.
        dataset: what was scored.
        known: the model's origin.
    """
    meanings = {**MEANINGS, **OUTLINE_MEANINGS}
    meanings |= {f"objects_{name}": text for name, text in OBJECT_MEANINGS.items()}
    write_page(
        folder / PAGE_NAME,
        report=report,
        galleries=_galleries(items),
        meanings=meanings,
        background=_background(report, dataset, known),
    )


def _galleries(items: Sequence[GalleryItem]) -> list[Gallery]:
    if len(items) < NUM_IMAGES:
        return [("All images, worst first", items)]
    third = NUM_IMAGES // 3
    best = list(reversed(items[-third:]))
    return [("Worst", items[:third]), ("Median", items[third:-third]), ("Best", best)]


def _background(report: Report, dataset: Dataset, known: Known) -> Background:
    data = [
        ("path", str(dataset.root)),
        ("kind", dataset.kind),
        ("scored", f"{len(dataset.records):,} images, split {report.split}"),
        ("fingerprint of these", dataset.fingerprint()),
        ("masks", dataset.rule.describe()),
    ]
    card = known.card
    if card is None:
        return Background(data=data)
    data.append(("trained on", _trained_on(card)))
    # One of several models that answer together doesn't speak for all.
    is_whole = card.id == report.bundle_id
    several = [("models", report.bundle_id), ("below", "the card of the first of them")]
    rows = card.rows() if is_whole else [*several, *card.rows()]
    is_its_threshold = report.threshold == card.threshold.value
    return Background(
        model=rows,
        data=data,
        recipe=_recipe_text(card, known.run) if is_whole else "",
        training=_read_metrics(known.run) if known.run is not None and is_whole else (),
        by_loss=_chosen_by_loss(card),
        threshold_method=(
            (card.threshold.method if is_its_threshold else "")
            if is_whole
            else "the mean of the models'"
        ),
    )


def _trained_on(card: Card) -> str:
    data = card.data
    counts = f"{data.num_train:,} images, {data.num_val:,} to validate, {data.num_test:,} to test"
    return f"{counts}; fingerprint {data.fingerprint or 'not recorded'}"


def _recipe_text(card: Card, run: RunFolder | None) -> str:
    if run is not None:
        return run.recipe_path.read_text("utf-8")
    return json.dumps(card.recipe, indent=2, ensure_ascii=False) if card.recipe else ""


def _chosen_by_loss(card: Card) -> bool:
    train = card.recipe.get("train")
    return isinstance(train, dict) and train.get("monitor") == "loss"


def _read_metrics(run: RunFolder) -> list[dict[str, str]]:
    """Read metrics.csv; a run that was copied without it has no curves."""
    if not run.metrics_path.is_file():
        return []
    with run.metrics_path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
