"""Images become a `Report`: averages, pooled scores, intervals, slices, and the rules used.

Everything that follows from single images is computed from them here, so that no order and no
batch can change it; sums over probabilities come ready from the loop that saw them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from binseg.errors import DataError
from binseg.metrics.bootstrap import (
    LEAST_UNITS,
    NUM_RESAMPLES,
    group_labels,
    interval_of,
    report_intervals,
    resampled_sums,
)
from binseg.metrics.calibration import (
    CALIBRATION_RULE,
    ProbabilityTally,
    Reliability,
    summarise_calibration,
)
from binseg.metrics.counts import pool, scored_images
from binseg.metrics.objects import OBJECT_RULE
from binseg.metrics.registry import EMPTY_RULE
from binseg.metrics.scores import object_table, score_all
from binseg.metrics.slices import slice_images
from binseg.metrics.surface import OUTLINE_RULE, OutlineRule
from binseg.types import Counts, Figure, ImageScores, Report, Size


def summarise(
    images: Sequence[ImageScores],
    *,
    title: str,
    bundle_id: str,
    split: str,
    threshold: float,
    border: str,
    rule: OutlineRule | None = None,
    reliabilities: Sequence[Reliability] = (),
    tally: ProbabilityTally | None = None,
    by: Iterable[str] = (),
    notes: Sequence[str] = (),
    num_resamples: int = NUM_RESAMPLES,
) -> Report:
    """Average the scores over images, pool the counts, and say the rules that were used.

    Args:
        images: every image of the split, all counted at the same sizes.
        title: what the report is called.
        bundle_id: the model that predicted.
        split: the part of the data that was scored.
        threshold: the probability above which a pixel was called foreground.
        border: what became of the border class, or "none".
        rule: by which outlines were measured.
        reliabilities: of the images with a valid pixel, in their order; none leaves calibration
            out.
        tally: of the same images; None leaves the sweep out.
        by: columns to slice by.
        notes: further sentences to be read with the numbers.
        num_resamples: of the bootstrap; 0 leaves all intervals out.

    Raises:
        DataError: there is no image with a valid pixel.
        UsageError: no image has such a column.
    """
    assert all(one.counts.keys() == images[0].counts.keys() for one in images), "one set of sizes"
    scored = {size: scored_images(images, size) for size in images[0].counts} if images else {}
    if not scored or not all(scored.values()):
        raise DataError(
            f"nothing to score in split {split!r}: {len(images)} images, none with a pixel that "
            "isn't ignored; check the masks and the option `ignore`"
        )
    total = {size: pool(one.counts[size] for one in kept) for size, kept in scored.items()}
    kept = scored["original"]
    groups = group_labels(kept)
    outline, objects = _outline_figures(kept, num_resamples), _object_figures(kept, num_resamples)
    calibration = None
    if reliabilities:
        calibration = summarise_calibration(
            reliabilities, groups=groups, num_resamples=num_resamples
        )
    rule = rule or OutlineRule()
    report = Report(
        title=title,
        bundle_id=bundle_id,
        split=split,
        threshold=threshold,
        border=border,
        images=tuple(images),
        mean={size: _means(each, size) for size, each in scored.items()},
        pooled={size: score_all(each) for size, each in total.items()},
        intervals=report_intervals(images, num_resamples=num_resamples) if num_resamples else {},
        resampled="image" if groups is None else "group",
        num_empty_truth=sum(_is_empty(one) for one in kept),
        num_missed=sum(_is_missed(one) for one in kept),
        num_false_alarms=sum(_is_false_alarm(one) for one in kept),
        outline=outline,
        tolerance=rule.tolerance,
        unit="px" if rule.spacing is None else "mm",
        spacing=None if rule.spacing is None else rule.steps,
        objects=objects,
        calibration=calibration,
        sweep=tally.sweep() if tally is not None else None,
        slices=slice_images(images, by=by, num_resamples=num_resamples),
    )
    few = _warn_of_few(kept, num_resamples)
    return replace(report, notes=(*_rules(report, total["original"], len(kept)), *few, *notes))


def _means(images: Sequence[ImageScores], size: Size) -> dict[str, float]:
    names = images[0].scores[size]
    return {name: float(np.mean([one.scores[size][name] for one in images])) for name in names}


def _is_empty(one: ImageScores) -> bool:
    return one.counts["original"].tp + one.counts["original"].fn == 0


def _is_missed(one: ImageScores) -> bool:
    return one.counts["original"].fn > 0 and one.counts["original"].tp == 0


def _is_false_alarm(one: ImageScores) -> bool:
    return one.counts["original"].fp > 0 and _is_empty(one)


def _rules(report: Report, total: Counts, num_scored: int) -> Iterator[str]:
    """Say the rules behind the figures, and how many images they decided."""
    empty = f"None of the {num_scored} images has an empty truth."
    if report.num_empty_truth:
        empty = (
            f"{report.num_empty_truth} of {num_scored} images have an empty truth and are in the "
            "means."
        )
    yield f"{EMPTY_RULE} {empty}"
    yield (
        "Accuracy misleads: a prediction without any foreground would score "
        f"{(total.fp + total.tn) / total.num_valid:.3f} here; read Dice or IoU."
    )
    if num_ignored := len(report.images) - num_scored:
        yield f"{num_ignored} of the images have only ignored pixels and are in no average."
    if report.outline:
        yield (
            f"{OUTLINE_RULE} Such images: {report.num_missed} with an object of which nothing was "
            f"found, {report.num_false_alarms} without an object in which something was found."
        )
    if report.objects:
        yield OBJECT_RULE
    if report.calibration:
        yield CALIBRATION_RULE


def _warn_of_few(images: Sequence[ImageScores], num_resamples: int) -> list[str]:
    """Warn of intervals of hardly anything."""
    groups = group_labels(images)
    num = len(images) if groups is None else len(set(groups))
    if not num_resamples or not 2 <= num < LEAST_UNITS:
        return []
    return [
        f"Intervals: only {num} {'images' if groups is None else 'groups'} are resampled, so they "
        "are too narrow; don't read them as 95%."
    ]


def _outline_figures(images: Sequence[ImageScores], num_resamples: int) -> dict[str, Figure]:
    """Average each outline score over the images; nothing where one wasn't measured."""
    outlines = [one.outline for one in images if one.outline is not None]
    if len(outlines) < len(images):
        return {}
    names = list(outlines[0])
    rows = [[*(one[name] for name in names), 1.0] for one in outlines]

    def means(sums_RK: Float64[np.ndarray, "R K"]) -> Mapping[str, Float64[np.ndarray, " R"]]:
        return {name: sums_RK[:, at] / sums_RK[:, -1] for at, name in enumerate(names)}

    return _figures(rows, means, images, num_resamples)


def _object_figures(images: Sequence[ImageScores], num_resamples: int) -> dict[str, Figure]:
    """Score the pooled objects of all images; nothing where one's weren't counted."""
    objects = [one.objects for one in images if one.objects is not None]
    if len(objects) < len(images):
        return {}
    rows = [[x.num_true, x.num_predicted, x.num_matched, x.sum_iou] for x in objects]
    return _figures(rows, object_table, images, num_resamples)


def _figures(
    rows: Sequence[Sequence[float]],
    score: Callable[[Float64[np.ndarray, "R K"]], Mapping[str, Float64[np.ndarray, " R"]]],
    images: Sequence[ImageScores],
    num_resamples: int,
) -> dict[str, Figure]:
    """Score the sums of what the images add, and of what resampled images would."""
    table_NK = np.array(rows, dtype=np.float64)
    groups = group_labels(images)
    sums_RK = resampled_sums(table_NK, groups=groups, num_resamples=num_resamples)
    resampled = None if sums_RK is None else score(sums_RK)
    return {
        name: Figure(
            value=float(value_1[0]),
            interval=None if resampled is None else interval_of(resampled[name]),
        )
        for name, value_1 in score(table_NK.sum(axis=0, keepdims=True)).items()
    }
