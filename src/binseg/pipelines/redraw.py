"""Splits that would leave nothing to learn from or to judge by, drawn again."""

from collections.abc import Callable, Sequence

from binseg.config import SplitConfig
from binseg.data.dataset import Dataset
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.data.splits import assign_splits
from binseg.errors import DataError
from binseg.types import Record

__all__ = ["REDRAWN", "Foreground", "draw_folds", "draw_with_foreground", "lacking"]

DRAWS, FOLD_DRAWS = 20, 100
"""Splits that are tried; folds need more luck."""
REDRAWN = ("method", "seed", "gap")
"""What `draw_with_foreground` changes of a split."""


class Foreground:
    """Tells which images hold foreground; each mask is read once, and only when asked for."""

    def __init__(self, rule: MaskRule) -> None:
        self._rule = rule
        self._found: dict[str, bool] = {}

    def __call__(self, record: Record) -> bool:
        """Whether any pixel of the image is foreground."""
        if record.id not in self._found:
            mask_HW = read_sample(record, self._rule).mask_HW
            self._found[record.id] = mask_HW is not None and bool(mask_HW.any())
        return self._found[record.id]


def lacking(dataset: Dataset, holds: Callable[[Record], bool]) -> list[str]:
    """Name the splits without a single image that holds foreground: train, then val, then test.

    Args:
        dataset: with its splits.
        holds: whether an image does.
    """
    splits = {record.split for record in dataset.records}
    return [
        split
        for split in ("train", "val", "test")
        if split in splits and not any(map(holds, dataset.of_split(split)))
    ]


def draw_with_foreground(
    whole: Dataset, config: SplitConfig, *, without: Sequence[str], holds: Callable[[Record], bool]
) -> tuple[Dataset, SplitConfig]:
    """Find the draw of which the least is missing: train counts most, test least.

    Args:
        whole: the data without splits.
        config: how it was split; blocks become a random draw.
        without: the splits that lack foreground so.
        holds: whether an image has some.

    Returns:
        The data with its new splits, and how they were made; `config` itself where no draw is
        better.
    """
    best, chosen = _badness(without), config
    divided = assign_splits(whole, config)
    first = 0 if config.method == "block" else config.seed + 1
    for seed in range(first, first + DRAWS):
        again = config.model_copy(update={"method": "ratio", "seed": seed, "gap": 0})
        tried = assign_splits(whole, again)
        badness = _badness(lacking(tried.with_truth(), holds))
        if badness < best:
            best, chosen, divided = badness, again, tried
        if not best:
            break
    return divided, chosen


def draw_folds(whole: Dataset, config: SplitConfig) -> int:
    """Find a seed with which every fold has foreground to be judged by.

    Args:
        whole: the data as it comes.
        config: its method is kfold.

    Raises:
        DataError: no seed that was tried does it.
    """
    holds = Foreground(whole.rule)
    for seed in range(config.seed, config.seed + FOLD_DRAWS):
        folds = (
            assign_splits(whole, config.model_copy(update={"fold": fold, "seed": seed}))
            for fold in range(config.folds)
        )
        if not any({"train", "val"} & {*lacking(each.with_truth(), holds)} for each in folds):
            return seed
    raise DataError(
        f"{whole.root}: none of {FOLD_DRAWS} draws gives each of {config.folds} folds an image "
        "that holds foreground; ask for fewer folds"
    )


def _badness(without: Sequence[str]) -> tuple[bool, ...]:
    """Empty where nothing is missing; else to be compared, the worse the greater."""
    return tuple(split in without for split in ("train", "val", "test")) if without else ()
