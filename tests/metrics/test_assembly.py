"""The whole report: means of outlines, pooled objects, calibration, sweep, and their JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from binseg.metrics import (
    OutlineRule,
    ProbabilityTally,
    Reliability,
    count,
    count_objects,
    image_rows,
    measure_outline,
    measure_reliability,
    report_as_dict,
    score_image,
    summarise,
)
from binseg.metrics.scores import object_table
from binseg.metrics.surface import OUTLINE_RULE
from binseg.types import Counts, ImageScores, ObjectCounts, Report

THRESHOLD = 0.5


def score_objects(counts: ObjectCounts) -> dict[str, float]:
    """The scores of one row of counts."""
    row = (counts.num_true, counts.num_predicted, counts.num_matched, counts.sum_iou)
    return {name: float(values[0]) for name, values in object_table(np.array([row])).items()}


def measured(seed: int, group: str | None = None) -> tuple[ImageScores, Reliability, np.ndarray]:
    """Measure one made-up image; every fourth has nothing in it, every seventh finds nothing."""
    random = np.random.default_rng(seed)
    truth = np.zeros((14, 16), dtype=bool)
    if seed % 4:
        top, left = random.integers(1, 8, size=2)
        truth[top : top + 5, left : left + 6] = True
    probability = (0.45 * truth + 0.52 * random.random(truth.shape)).astype(np.float32)
    if seed % 7 == 0:
        probability *= np.float32(0.4)
    valid = random.random(truth.shape) < 0.95
    mask = probability > THRESHOLD
    counts = count(mask, truth, valid)
    reliability = measure_reliability(probability, truth, valid)
    one = replace(
        score_image(f"{seed}", {"original": counts, "model": counts}, group=group),
        outline=measure_outline(mask, truth, valid),
        objects=count_objects(mask, truth, valid),
        probability=reliability.scores,
    )
    return one, reliability, np.stack([probability, truth, valid])


def report_of(seeds: list[int], *, by_group: bool = False, num_resamples: int = 200) -> Report:
    """Make the whole report of such images."""
    found = [measured(seed, f"g{seed // 3}" if by_group else None) for seed in seeds]
    tally = ProbabilityTally()
    for _, _, (probability, truth, valid) in found:
        tally.add(probability, truth.astype(bool), valid.astype(bool))
    return summarise(
        [one for one, _, _ in found],
        title="t",
        bundle_id="b",
        split="test",
        threshold=THRESHOLD,
        border="none",
        reliabilities=[one for _, one, _ in found],
        tally=tally,
        num_resamples=num_resamples,
    )


def test_outlines_are_means_and_objects_are_pooled() -> None:
    """Each outline score is the mean over images; objects are added up before they are scored."""
    report = report_of(list(range(20)))
    outlines = [one.outline for one in report.images if one.outline is not None]
    assert report.outline["hd95"].value == pytest.approx(np.mean([one["hd95"] for one in outlines]))
    total = ObjectCounts(num_true=0, num_predicted=0, num_matched=0, sum_iou=0.0)
    for one in report.images:
        assert one.objects is not None
        total += one.objects
    found = {name: figure.value for name, figure in report.objects.items()}
    assert found == pytest.approx(score_objects(total))


def test_every_headline_has_its_interval() -> None:
    """All figures lie within an interval of their own, and none is nan."""
    report = report_of(list(range(20)))
    assert report.calibration is not None
    figures = [
        *report.outline.values(),
        *report.objects.values(),
        *report.calibration.scores.values(),
    ]
    for figure in figures:
        assert figure.interval is not None
        assert figure.interval.low <= figure.interval.high
    outline = report.outline["boundary_f1"]
    assert outline.interval is not None
    assert outline.interval.low < outline.value < outline.interval.high


def test_sweep_meets_the_report_at_its_threshold() -> None:
    """At the threshold in use, the sweep says what the report says."""
    report = report_of(list(range(20)))
    assert report.sweep is not None
    at = report.sweep.thresholds.index(THRESHOLD)
    assert report.sweep.curves["mean_dice"][at] == pytest.approx(report.mean["original"]["dice"])
    assert report.sweep.curves["iou"][at] == pytest.approx(report.pooled["original"]["iou"])


def test_missed_objects_are_told() -> None:
    """The rule for empty masks comes with the number of images that it decided."""
    report = report_of(list(range(28)))
    told = next(note for note in report.notes if note.startswith(OUTLINE_RULE))
    assert report.num_missed > 0
    assert f"{report.num_missed} with an object of which nothing was found" in told


def test_order_changes_nothing() -> None:
    """The same images in another order give the same figures, to rounding."""
    one, other = report_of(list(range(20))), report_of(list(range(20))[::-1])
    assert one.calibration is not None
    assert other.calibration is not None
    assert other.calibration.scores["ece"].value == pytest.approx(
        one.calibration.scores["ece"].value
    )
    for name, figure in one.outline.items():
        assert other.outline[name].value == pytest.approx(figure.value)
    for name, figure in one.objects.items():
        assert other.objects[name].value == pytest.approx(figure.value)


def test_groups_are_drawn_everywhere() -> None:
    """With groups, every interval is of whole groups, and the report says so."""
    report = report_of(list(range(20)), by_group=True)
    assert report.resampled == "group"
    single = report_of([3, 4, 5], by_group=True)
    assert single.outline["hd95"].interval is None
    assert single.objects["pq"].interval is None
    assert single.calibration is not None
    assert single.calibration.scores["brier"].interval is None


def test_json_and_csv_hold_it_all() -> None:
    """The whole report survives JSON; each image has its outline, objects and Brier score."""
    report = report_of(list(range(12)))
    found = report_as_dict(report)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert again["outline"]["scores"]["hd95"]["value"] == report.outline["hd95"].value
    assert len(again["sweep"]["thresholds"]) == len(again["sweep"]["recall"]) == 128
    assert len(again["calibration"]["bins"]) == 15
    assert again["slices"][0]["by"] == "object size"
    assert again["images"][1]["objects"]["num_true"] == 1
    rows = image_rows(report)
    assert {"hd95", "boundary_f1", "objects_num_matched", "brier"} <= rows[0].keys()
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_counts_alone_make_a_report_too() -> None:
    """Images that were only counted give averages and intervals, and nothing invented."""
    bare = [
        replace(one, outline=None, objects=None, probability=None)
        for one, _, _ in map(measured, range(6))
    ]
    rule = OutlineRule(tolerance=3, spacing=0.5)
    report = summarise(
        bare,
        title="t",
        bundle_id="b",
        split="s",
        threshold=0.5,
        border="none",
        rule=rule,
        num_resamples=50,
    )
    assert report.intervals["mean"]["original"]["dice"] is not None
    assert (report.outline, report.objects, report.calibration, report.sweep) == (
        {},
        {},
        None,
        None,
    )
    assert (report.tolerance, report.unit) == (3, "mm")


def test_intervals_of_hardly_anything_are_warned_of() -> None:
    """Two groups of three images: their interval is just the range of two means."""
    warned = [one for one in report_of(list(range(6)), by_group=True).notes if "too narrow" in one]
    assert warned == [
        "Intervals: only 2 groups are resampled, so they are too narrow; don't read them as 95%."
    ]
    assert not any("too narrow" in one for one in report_of(list(range(6))).notes)
    assert not any("too narrow" in one for one in report_of(list(range(4)), num_resamples=0).notes)


def test_ignored_images_have_no_score_in_files() -> None:
    """Whoever averages the CSV's column gets the report's mean."""
    report = report_of([1, 2, 3])
    nothing = Counts(tp=0, fp=0, fn=0, tn=0)
    ignored = replace(
        report.images[0], id="ignored", counts={"original": nothing, "model": nothing}
    )
    rows = image_rows(replace(report, images=(ignored, *report.images)))
    blank = {"dice", "iou", "boundary_f1", "objects_num_true", "brier", "model_dice"}
    assert {rows[0][name] for name in blank} == {""}
    assert rows[0]["tp"] == 0
    mean = np.mean([float(row["dice"]) for row in rows if row["dice"] != ""])
    assert mean == pytest.approx(report.mean["original"]["dice"])
    told = report_as_dict(replace(report, images=(ignored,)))["images"]
    assert isinstance(told, list)
    assert told[0]["scores"]["original"]["dice"] is None
    assert told[0]["outline"] is None
