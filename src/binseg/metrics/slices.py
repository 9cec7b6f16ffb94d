"""Scores of parts of the data: small and large objects, one breed, one microscope."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from binseg.errors import UsageError, suggest
from binseg.metrics.bootstrap import NUM_RESAMPLES, bootstrap_interval, group_labels
from binseg.metrics.counts import scored_images
from binseg.types import Counts, Figure, ImageScores, Slice

BY_SIZE = "object size"
BY_SHARE = "foreground share"
FEW_VALUES = 20
"""Columns of at most as many values make slices unasked."""


def slice_images(
    images: Sequence[ImageScores], *, by: Iterable[str] = (), num_resamples: int = NUM_RESAMPLES
) -> tuple[Slice, ...]:
    """Split the images by object size, foreground share and columns; score each part by itself.

    Sizes and shares are those of the truth at original size, in three parts with as many images
    each; images without an object are a part of their own. Columns with 2 to 20 values are taken
    unasked; images without a value are the part "". Shares are left out unasked where they make
    the same parts as sizes.

    Args:
        images: of a report.
        by: further columns, whatever the number of their values.
        num_resamples: of the bootstrap; 0 leaves out the intervals.

    Raises:
        UsageError: no image has such a column.
    """
    scored = scored_images(images, "original")
    names = list(dict.fromkeys(name for one in scored for name in one.columns))
    asked = set(by)
    check_columns(asked, names)
    by_size, by_share = _thirds(scored, _area, "{:,.0f} px"), _thirds(scored, _share, "{:.1%}")
    parts = [(BY_SIZE, value, kept) for value, kept in by_size]
    # Where all images have one size, both say the same.
    if BY_SHARE in asked or [kept for _, kept in by_size] != [kept for _, kept in by_share]:
        parts += [(BY_SHARE, value, kept) for value, kept in by_share]
    for name in names:
        values = sorted({one.columns.get(name, "") for one in scored})
        if name in asked or 2 <= len(values) <= FEW_VALUES:
            parts += [
                (name, value, [one for one in scored if one.columns.get(name, "") == value])
                for value in values
            ]
    return tuple(_slice(by, value, kept, num_resamples) for by, value, kept in parts if kept)


def check_columns(asked: Iterable[str], names: Iterable[str]) -> None:
    """Refuse to slice by what no image has.

    Args:
        asked: columns, or "object size" and "foreground share", which are always there.
        names: of the columns that some image has.

    Raises:
        UsageError: naming those that can be asked for.
    """
    known = {*names, BY_SIZE, BY_SHARE}
    for name in asked:
        if name not in known:
            raise UsageError(f"no image has a column {name!r} to slice by: {suggest(name, known)}")


def _slice(by: str, value: str, kept: Sequence[ImageScores], num_resamples: int) -> Slice:
    dice_N = [one.scores["original"]["dice"] for one in kept]
    groups = group_labels(kept)
    return Slice(
        by=by,
        value=value,
        num_images=len(kept),
        num_groups=None if groups is None else len(set(groups)),
        dice=Figure(
            value=float(np.mean(dice_N)),
            interval=bootstrap_interval(dice_N, groups=groups, num_resamples=num_resamples),
        ),
    )


def _area(counts: Counts) -> float:
    return counts.tp + counts.fn


def _share(counts: Counts) -> float:
    return (counts.tp + counts.fn) / counts.num_valid


def _thirds(
    images: Sequence[ImageScores], measure: Callable[[Counts], float], form: str
) -> list[tuple[str, list[ImageScores]]]:
    """Cut at the terciles of a measure; equal values stay together, whatever the order."""
    value_N = np.array([measure(one.counts["original"]) for one in images])
    there_N = value_N > 0
    parts = [("no object", ~there_N)]
    if there_N.any():
        low, high = np.quantile(value_N[there_N], [1 / 3, 2 / 3], method="inverted_cdf")
        low_text, high_text = form.format(low), form.format(high)
        parts += [
            (f"small: up to {low_text}", there_N & (value_N <= low)),
            (f"medium: up to {high_text}", (value_N > low) & (value_N <= high)),
            (f"large: above {high_text}", value_N > high),
        ]
    return [
        (name, [one for one, kept in zip(images, kept_N, strict=True) if kept])
        for name, kept_N in parts
    ]
