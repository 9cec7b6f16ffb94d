"""A model against the truth of many images: the one loop behind validation and `evaluate`."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Num

from binseg.data.dataset import Dataset
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import OutputError
from binseg.evaluation.evaluation_data import Known
from binseg.evaluation.report_page import NUM_IMAGES, write_report_page
from binseg.inference import Predictor
from binseg.metrics import (
    OutlineRule,
    ProbabilityTally,
    Reliability,
    assemble,
    check_columns,
    count,
    count_objects,
    image_rows,
    measure_outline,
    measure_reliability,
    report_to_json_dict,
    score_image,
    summarise,
)
from binseg.parallel import map_ordered
from binseg.postprocess import clean
from binseg.progress import SILENT, Progress, track
from binseg.report import GalleryItem, draw_gallery, draw_histogram
from binseg.storage import write_json, write_text
from binseg.transforms.geometry import blend
from binseg.transforms.preprocess import prepare, prepare_truth
from binseg.types import (
    IGNORE,
    Averages,
    Counts,
    ImageScores,
    Placement,
    Record,
    Report,
    Sample,
    Size,
)

__all__ = [
    "Evaluation",
    "conclude",
    "measure_dataset",
    "predict_at_both_sizes",
    "read_ahead",
    "score_dataset",
    "write_report",
]

T = TypeVar("T")

SHOWN_SIDE = 2048
"""Longest side of an image that is kept to be shown."""
NUM_GALLERY = 9
"""Images in a gallery: the worst third, the middle third, the best third."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A report, as Python and the shell hand it on."""

    report: Report

    def intervals(self) -> Averages:
        """The 95% intervals of all averages; whole groups are drawn where there are any."""
        return self.report.intervals

    def as_dict(self) -> dict[str, object]:
        """The report as plain data, with its intervals."""
        return report_to_json_dict(self.report)


def read_ahead(records: Sequence[Record], rule: MaskRule) -> Iterator[Sample]:
    """Read samples in order, the next ones while the model is busy with this one."""
    return map_ordered(lambda one: read_sample(one, rule), records, num_threads=1, ahead=2)


def score_dataset(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str,
    title: str,
    by: Sequence[str] = (),
    outline: OutlineRule | None = None,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Predict every image of a data set and compare it with its truth.

    Args:
        predictor: the model with its preprocessing and threshold.
        dataset: images that all have a truth.
        split: what to call them in the report.
        title: what to call the report.
        by: columns to slice the scores by, beside those of few values.
        outline: tolerance of the outline scores, 2 pixels if left out.
        folder: where the report will be written; made at once, rather than refused after hours.
        progress: told of every image.

    Raises:
        OutputError: the folder can't be made.
        ImageError: an image or mask that can't be read, by name.
        UsageError: no image has such a column.
    """
    check_columns(by, {name for record in dataset.records for name in record.columns})
    if folder is not None:
        _make_folder(folder)
    tally = ProbabilityTally()
    outline = outline or OutlineRule()
    measured = measure_dataset(
        predictor,
        dataset,
        outline=outline,
        tally=tally,
        label=f"scoring {split}",
        progress=progress,
    )
    return conclude(
        measured,
        dataset=dataset,
        predictors=[predictor],
        split=split,
        title=title,
        bundle_id=predictor.bundle_id,
        threshold=predictor.threshold,
        by=by,
        outline=outline,
        tally=tally,
    )


def measure_dataset(
    predictor: Predictor,
    dataset: Dataset,
    *,
    outline: OutlineRule,
    tally: ProbabilityTally,
    label: str,
    progress: Progress = SILENT,
) -> list[tuple[ImageScores, Reliability | None]]:
    """Predict every image and measure it; what has no valid pixel has no reliability.

    Args:
        predictor: the model.
        dataset: images that all have a truth.
        outline: how outlines are measured.
        tally: takes in every image.
        label: what progress calls the work.
        progress: told of every image.
    """
    samples = track(
        read_ahead(dataset.records, dataset.rule),
        progress=progress,
        label=label,
        total=len(dataset.records),
    )
    measured = []
    for record, sample in zip(dataset.records, samples, strict=True):
        image, reliability = _score_sample(predictor, record, sample, outline=outline, tally=tally)
        measured.append((image, reliability if sample.valid_HW.any() else None))
    return measured


def conclude(
    measured: Sequence[tuple[ImageScores, Reliability | None]],
    *,
    dataset: Dataset,
    predictors: Sequence[Predictor],
    split: str,
    title: str,
    bundle_id: str,
    threshold: float,
    by: Sequence[str],
    outline: OutlineRule,
    tally: ProbabilityTally,
) -> Evaluation:
    """Draw the report of what was measured, in the order of `measured`, by one model or several."""
    counted = summarise(
        [image for image, _ in measured],
        title=title,
        bundle_id=bundle_id,
        split=split,
        threshold=threshold,
        border=dataset.rule.border or "none",
    )
    reliabilities = [one for _, one in measured if one is not None]
    report = assemble(counted, rule=outline, reliabilities=reliabilities, tally=tally, by=by)
    notes = (*report.notes, *_notes(dataset, predictors), *dataset.notes)
    return Evaluation(report=replace(report, notes=notes))


def _score_sample(
    predictor: Predictor,
    record: Record,
    sample: Sample,
    *,
    outline: OutlineRule,
    tally: ProbabilityTally,
) -> tuple[ImageScores, Reliability]:
    """Measure one image at its own size; count it at the model's too, where that is another.

    Corrections are in pixels of the image: what is counted at another size is uncorrected, and
    so are the figures of probabilities.
    """
    assert sample.mask_HW is not None
    truth_HW, valid_HW = sample.mask_HW, sample.valid_HW
    if not predictor.has_one_input:
        # Tiles are cut at the image's own scale, and an ensemble may have no size of its own.
        probability_HW = predictor.predict(sample.image_HWC).probability
        mask_HW = clean(probability_HW > predictor.threshold, predictor.postprocessing)
        at_model_size = count(mask_HW, truth_HW, valid_HW)
    else:
        probability_HW, probability_hw, placement = predict_at_both_sizes(
            predictor, sample.image_HWC
        )
        mask_HW = clean(probability_HW > predictor.threshold, predictor.postprocessing)
        target_hw = prepare_truth(truth_HW, valid_HW, (placement,))[0]
        at_model_size = count(
            probability_hw > predictor.threshold, target_hw == 1, target_hw != IGNORE
        )
    tally.add(probability_HW, truth_HW, valid_HW)
    reliability = measure_reliability(probability_HW, truth_HW, valid_HW)
    counts: dict[Size, Counts] = {
        "original": count(mask_HW, truth_HW, valid_HW),
        "model": at_model_size,
    }
    counted = score_image(record.id, counts, record.columns, group=record.group)
    image = replace(
        counted,
        outline=measure_outline(mask_HW, truth_HW, valid_HW, rule=outline),
        objects=count_objects(mask_HW, truth_HW, valid_HW),
        brier=reliability.brier,
    )
    return image, reliability


def predict_at_both_sizes(
    predictor: Predictor, image_HWC: Num[np.ndarray, "H W C"]
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "height width"], Placement]:
    """Predict an image that is one model input, and keep the answer at the input's size too.

    The first answer equals `predictor.predict(image).probability` to the bit (a test holds it);
    asking twice would take twice as long.
    """
    inputs_NHWC, placements = prepare(image_HWC, predictor.preprocessing)
    assert len(placements) == 1, "stretch and pad make one input of an image"
    probability_NHW = predictor.probability_of_inputs(inputs_NHWC)
    height, width = image_HWC.shape[:2]
    probability_HW = blend(iter(probability_NHW), placements, height, width).clip(0.0, 1.0)
    return probability_HW, probability_NHW[0], placements[0]


def _notes(dataset: Dataset, predictors: Sequence[Predictor]) -> list[str]:
    """Say what must be read with the numbers of this data set."""
    first = predictors[0]
    remarks = dict.fromkeys(remark for one in predictors for remark in one.remarks)
    notes = [*remarks, f"Masks: {dataset.rule.describe()}."]
    num_corrected = sum(not one.postprocessing.is_empty for one in predictors)
    if num_corrected:
        whose = "the model's" if len(predictors) == 1 else f"{num_corrected} of the models' own"
        notes.append(
            f"Scores at original size are of corrected masks ({whose} post-processing); "
            + ("those at the model's size, " if first.has_one_input else "")
            + "the curve over thresholds and the calibration are of the network alone."
        )
    if dataset.rule.border is not None:
        notes.append(
            "The border rule moves the score of trimaps more than most models do: a perfect mask "
            "under border = background, scored under border = foreground, gets Dice 0.817 on "
            "Oxford-IIIT Pet's validation split. Compare only figures of one rule."
        )
    trained_border = first.card.border if first.card is not None else None
    if dataset.rule.border is not None and trained_border not in (None, dataset.rule.border):
        notes.append(
            f"The model was trained with border = {trained_border}, and is scored here with "
            f"border = {dataset.rule.border}."
        )
    return notes


def write_report(
    folder: Path,
    evaluation: Evaluation,
    *,
    dataset: Dataset,
    predictor: Predictor,
    known: Known | None = None,
    predictor_of: Mapping[str, Predictor] | None = None,
) -> None:
    """Write report.html, report.json, per_image.csv, gallery.png and histogram.png.

    Args:
        folder: where to; made if absent.
        evaluation: the figures.
        dataset: what was scored.
        predictor: what answered; asked again for the images that are shown.
        known: the model's origin; by default what the predictor knows of it.
        predictor_of: who answered for which image, by id, where it wasn't one for all.
    """
    _make_folder(folder)
    report = evaluation.report
    write_json(folder / "report.json", evaluation.as_dict())
    write_text(folder / "per_image.csv", _csv_text(image_rows(report)))
    known = known or Known.of(predictor)
    items = _gallery_items(report, dataset, predictor, predictor_of or {})
    write_report_page(folder, report, items=items, dataset=dataset, known=known)
    draw_histogram([_dice(one) for one in _scored(report)], folder / "histogram.png")
    shown = _worst_middle_best(items, NUM_GALLERY // 3)
    draw_gallery(shown, folder / "gallery.png", title=f"{report.title}: worst, middle, best")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {folder}: {error.strerror}") from None


def _scored(report: Report) -> list[ImageScores]:
    """The images that have a pixel to score."""
    return [one for one in report.images if one.counts["original"].num_valid]


def _dice(image: ImageScores) -> float:
    return image.scores["original"]["dice"]


def _gallery_items(
    report: Report,
    dataset: Dataset,
    predictor: Predictor,
    predictor_of: Mapping[str, Predictor],
) -> list[GalleryItem]:
    """Predict the worst, middle and best images again, so as not to keep all in memory."""
    ranked = sorted(_scored(report), key=lambda one: (_dice(one), one.id))
    record_of = {record.id: record for record in dataset.records}
    items = []
    for one in _worst_middle_best(ranked, NUM_IMAGES // 3):
        sample = read_sample(record_of[one.id], dataset.rule)
        answering = predictor_of.get(one.id, predictor)
        mask_HW = answering.predict(sample.image_HWC).mask
        # They are shown small: eighteen huge images would fill the memory.
        every = -(-max(mask_HW.shape) // SHOWN_SIDE)
        shown = (slice(None, None, every),) * 2
        items.append(
            GalleryItem(
                id=one.id,
                image_HWC=sample.image_HWC[shown].copy(),
                prediction_HW=mask_HW[shown].copy(),
                truth_HW=None if sample.mask_HW is None else sample.mask_HW[shown].copy(),
                valid_HW=sample.valid_HW[shown].copy(),
                dice=_dice(one),
            )
        )
    return items


def _worst_middle_best(ranked: Sequence[T], num: int) -> list[T]:
    """Take `num` from each of the start, the middle and the end, each at most once.

    >>> _worst_middle_best("abcdefghi", 1)
    ['a', 'e', 'i']
    """
    if len(ranked) <= 3 * num:
        return list(ranked)
    middle = (len(ranked) - num) // 2
    return [*ranked[:num], *ranked[middle : middle + num], *ranked[-num:]]


def _csv_text(rows: Sequence[dict[str, str | float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
