"""Reports: means, pooled scores, notes, and their JSON and CSV forms."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binseg.errors import DataError
from binseg.metrics import image_rows, report_as_dict, score_image, summarise
from binseg.metrics.registry import EMPTY_RULE
from binseg.metrics.scores import report_intervals
from binseg.metrics.summary import report_rows
from binseg.types import Counts, ImageScores, Report

HIT = Counts(tp=1, fp=0, fn=0, tn=9)  # Dice 1, small
MISS = Counts(tp=0, fp=10, fn=90, tn=0)  # Dice 0, large
EMPTY = Counts(tp=0, fp=0, fn=0, tn=10)
IGNORED = Counts(tp=0, fp=0, fn=0, tn=0)


def image(name: str, counts: Counts, **columns: str) -> ImageScores:
    return score_image(name, {"original": counts, "model": counts}, columns)


def report_of(images: list[ImageScores], *notes: str, num_resamples: int = 100) -> Report:
    return summarise(
        images,
        title="A model on val",
        bundle_id="abc",
        split="val",
        threshold=0.5,
        border="foreground",
        notes=notes,
        num_resamples=num_resamples,
    )


def test_means_and_pooled_scores_differ_as_they_should() -> None:
    """In the mean every image weighs the same; in the pooled score every pixel does."""
    report = report_of([image("a", HIT), image("b", MISS)])
    assert report.mean["original"]["dice"] == 0.5
    assert report.pooled["original"]["dice"] == pytest.approx(2 / 102)


def test_empty_truths_are_counted_and_told() -> None:
    """Images without an object are in the mean by the rule, and the report says how many."""
    report = report_of([image("a", HIT), image("b", EMPTY), image("c", EMPTY)], "More to say.")
    assert report.num_empty_truth == 2
    assert report.mean["original"]["dice"] == 1
    assert EMPTY_RULE in report.notes[0]
    assert "2 of 3 images have an empty truth" in report.notes[0]
    assert report.notes[-1] == "More to say."


def test_accuracy_comes_with_a_warning() -> None:
    """The report says what an empty answer would score in accuracy: the background's share."""
    report = report_of([image("a", Counts(tp=1, fp=1, fn=1, tn=97))])
    assert "without any foreground would score 0.980" in " ".join(report.notes)


def test_wholly_ignored_images_are_in_no_average() -> None:
    """An image without a valid pixel lifts no mean, but stays in the list and is told."""
    report = report_of([image("a", MISS), image("b", IGNORED)])
    assert report.mean["original"]["dice"] == 0
    assert len(report.images) == 2
    assert report.num_empty_truth == 0
    assert "1 of the images have only ignored pixels" in " ".join(report.notes)
    assert report_intervals(report.images)["mean"]["original"]["dice"] is None


@pytest.mark.parametrize("images", [[], [image("a", IGNORED)]])
def test_nothing_to_score_is_refused(images: list[ImageScores]) -> None:
    """No image, or none with a valid pixel, is a clear error that names the split."""
    with pytest.raises(DataError, match="nothing to score in split 'val'"):
        report_of(images)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_order_changes_nothing(seed: int) -> None:
    """The same images in another order give the same averages."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(6):
        tp, fp, fn, tn = random.integers(0, 4, size=4).tolist()
        images.append(image(f"{number}", Counts(tp=tp, fp=fp, fn=fn, tn=tn + 1)))
    report = report_of(images)
    other = report_of([images[i] for i in random.permutation(6)])
    assert other.pooled == report.pooled
    for name in report.mean["model"]:
        assert other.mean["model"][name] == pytest.approx(report.mean["model"][name], abs=1e-12)


def test_json_holds_everything() -> None:
    """The JSON form survives a round trip and holds averages, intervals, rule and every image."""
    report = report_of([image("a", HIT, breed="cat"), image("b", MISS)])
    found = report_as_dict(report)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert again["mean"]["original"]["dice"] == 0.5
    assert again["intervals"]["level"] == 0.95
    assert again["intervals"]["mean"]["original"]["dice"] == [0.0, 1.0]
    line = again["images"][0]
    assert (line["id"], line["columns"]) == ("a", {"breed": "cat"})
    assert line["counts"] == {"original": vars(HIT), "model": vars(HIT)}
    assert line["scores"]["model"] == report.images[0].scores["model"]
    assert EMPTY_RULE in again["notes"][0]


def test_json_says_what_was_drawn() -> None:
    """Intervals by group say so; one group has none; without draws there are none at all."""
    images = [
        replace(image(name, counts), group="p") for name, counts in {"a": HIT, "b": MISS}.items()
    ]
    grouped = report_as_dict(report_of(images))["intervals"]
    assert isinstance(grouped, dict)
    assert grouped["method"] == "percentile bootstrap by group"
    assert grouped["mean"]["original"]["dice"] is None
    assert report_as_dict(report_of(images, num_resamples=0))["intervals"] is None


def test_what_was_missed_is_counted() -> None:
    """An object of which nothing is found, and something found where nothing is, are told."""
    missed, alarm = Counts(tp=0, fp=0, fn=3, tn=7), Counts(tp=0, fp=2, fn=0, tn=8)
    report = report_of([image("a", missed), image("b", alarm), image("c", MISS), image("d", HIT)])
    # MISS answers something, but nowhere where the object is.
    assert (report.num_missed, report.num_false_alarms) == (2, 1)


def test_table_rows() -> None:
    """One row for each average and size, with interval columns where intervals are given."""
    report = report_of([image("a", HIT), image("b", MISS)])
    rows = report_rows(report)
    assert [(row["average"], row["size"]) for row in rows] == [
        ("mean over images", "original"),
        ("mean over images", "model"),
        ("pooled pixels", "original"),
        ("pooled pixels", "model"),
    ]
    assert list(rows[0])[2:] == list(report.mean["original"])
    wide = report_rows(report, intervals=report_intervals(report.images))[0]
    assert (wide["dice_low"], wide["dice"], wide["dice_high"]) == (0.0, 0.5, 1.0)


def test_csv_rows_have_one_set_of_columns() -> None:
    """Every image has the same columns; a manifest's own can't hide a score."""
    rows = image_rows(report_of([image("a", HIT, dice="my own"), image("b", MISS, source="x")]))
    assert rows[0].keys() == rows[1].keys()
    assert rows[0]["dice"] == 1
    assert rows[0]["column_dice"] == "my own"
    assert rows[1]["column_dice"] == ""
    assert (rows[1]["model_fn"], rows[1]["fn"]) == (90, 90)
