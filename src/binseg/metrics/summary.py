"""Scores of single images become a `Report`: means over images, pooled scores, the rules used."""

from collections.abc import Mapping, Sequence

import numpy as np

from binseg.errors import DataError
from binseg.metrics.counts import pool, scored_images
from binseg.metrics.scores import EMPTY_RULE, SCORES, score_all
from binseg.types import Counts, ImageScores, Report, Size

__all__ = ["score_image", "summarise"]


def score_image(
    id: str,
    counts: Mapping[Size, Counts],
    columns: Mapping[str, str] | None = None,
    *,
    group: str | None = None,
) -> ImageScores:
    """Score what was counted in one image, at each size.

    Args:
        id: the image's name.
        counts: its pixels, at each size.
        columns: what else is known of it.
        group: images of one group are drawn together for intervals.

    >>> one = score_image("cat", {"original": Counts(tp=3, fp=1, fn=1, tn=5)})
    >>> one.scores["original"]["dice"]
    0.75
    """
    scores: dict[Size, dict[str, float]] = {size: score_all(each) for size, each in counts.items()}
    return ImageScores(
        id=id, counts=dict(counts), scores=scores, columns=dict(columns or {}), group=group
    )


def summarise(
    images: Sequence[ImageScores],
    *,
    title: str,
    bundle_id: str,
    split: str,
    threshold: float,
    border: str,
    notes: Sequence[str] = (),
) -> Report:
    """Average the scores over images, pool the counts, and say the rules that were used.

    Args:
        images: every image of the split, all counted at the same sizes.
        title: what the report is called.
        bundle_id: the model that answered.
        split: the part of the data that was scored.
        threshold: the probability above which a pixel was called foreground.
        border: what became of the border class, or "none".
        notes: further sentences to be read with the numbers.

    Raises:
        DataError: there is no image with a valid pixel.
    """
    assert all(one.counts.keys() == images[0].counts.keys() for one in images), "one set of sizes"
    scored = {size: scored_images(images, size) for size in images[0].counts} if images else {}
    if not scored or not all(scored.values()):
        raise DataError(
            f"nothing to score in split {split!r}: {len(images)} images, none with a pixel that "
            "isn't ignored; check the masks and the option `ignore`"
        )
    mean: dict[Size, dict[str, float]] = {
        size: {name: float(np.mean([one.scores[size][name] for one in kept])) for name in SCORES}
        for size, kept in scored.items()
    }
    total = {size: pool(one.counts[size] for one in kept) for size, kept in scored.items()}
    first = next(iter(scored))
    num_empty = sum(_is_empty(one.counts[first]) for one in scored[first])
    return Report(
        title=title,
        bundle_id=bundle_id,
        split=split,
        threshold=threshold,
        border=border,
        images=tuple(images),
        mean=mean,
        pooled={size: score_all(each) for size, each in total.items()},
        num_empty_truth=num_empty,
        num_missed=sum(_is_missed(one.counts[first]) for one in scored[first]),
        num_false_alarms=sum(_is_false_alarm(one.counts[first]) for one in scored[first]),
        notes=(
            f"{EMPTY_RULE} {_tell_empty(num_empty, len(scored[first]))}",
            _warn_of_accuracy(total[first]),
            *_tell_left_out(len(images) - len(scored[first])),
            *notes,
        ),
    )


def _is_empty(counts: Counts) -> bool:
    return counts.tp + counts.fn == 0


def _is_missed(counts: Counts) -> bool:
    return counts.fn > 0 and counts.tp == 0


def _is_false_alarm(counts: Counts) -> bool:
    return counts.fp > 0 and _is_empty(counts)


def _tell_empty(num_empty: int, num_images: int) -> str:
    if num_empty == 0:
        return f"None of the {num_images} images has an empty truth."
    return f"{num_empty} of {num_images} images have an empty truth and are in the means."


def _warn_of_accuracy(total: Counts) -> str:
    share = (total.fp + total.tn) / total.num_valid
    return (
        f"Accuracy misleads: an answer without any foreground would score {share:.3f} here; "
        "read Dice or IoU."
    )


def _tell_left_out(num: int) -> list[str]:
    return [f"{num} of the images have only ignored pixels and are in no average."] if num else []
