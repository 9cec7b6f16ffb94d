"""Lessons of validation for a finished model: thresholds with a guarantee, and its own quality."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from binseg.config import DataConfig
from binseg.errors import DataError
from binseg.evaluation.guarantees import choose_guaranteed, parse_guarantee
from binseg.evaluation.learning_quality import gather_lessons, learn_quality
from binseg.evaluation.origin import Origin, choose_data
from binseg.inference import load
from binseg.packaging import Guarantee, revise_card
from binseg.progress import SILENT, Progress


def calibrate(
    run: str | Path,
    data: DataConfig,
    *,
    guarantees: Sequence[str] = (),
    learn: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> tuple[Guarantee, ...]:
    """Choose thresholds with a guarantee on the validation images, and write them into the card.

    `run` is a run's folder or a bundle, `guarantees` are promises such as `recall=0.95` (a score
    that the card had is replaced), `learn` fits anew what the card knows of its data. Raises
    UsageError for an unknown score or value, DataError for no or too few validation images, and
    OutputError.
    """
    wanted = [parse_guarantee(one) for one in guarantees]
    predictor = load(run, device=device)
    assert predictor.bundle is not None
    assert predictor.card is not None
    origin = Origin.of(predictor)
    dataset = choose_data(data, split="all", origin=origin, progress=progress)
    known_splits = choose_data(data, split="val", origin=origin)
    ids = {record.id for record in known_splits.records}
    dataset = replace(
        dataset,
        records=tuple(
            replace(record, split="val") if record.id in ids else record
            for record in dataset.records
        ),
    )
    lessons = gather_lessons(predictor, dataset, progress=progress)
    if not lessons:
        raise DataError(f"{data.path}: no validation image has a pixel to score")
    if not predictor.postprocessing.is_empty and wanted:
        progress.say("guarantees are of the masks before the model's own post-processing")
    found = tuple(
        choose_guaranteed(
            score,
            value,
            [one.counts_T4 for one in lessons],
            groups=[one.group for one in lessons],
            own_threshold=predictor.threshold,
        )
        for score, value in wanted
    )
    names = {one.score for one in found}
    facts: dict[str, object] = {
        "guarantees": (*(x for x in predictor.card.guarantees if x.score not in names), *found)
    }
    if learn:
        facts["knowledge"] = learn_quality(predictor, dataset, lessons, progress=progress)
    revise_card(predictor.bundle, facts)
    return found
