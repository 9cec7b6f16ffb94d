"""Comparison of two models on the same images: one is better, or the difference is noise.

The bootstrap (Efron & Tibshirani, 1993) tells how far the mean difference would move with other
images; Wilcoxon's signed-rank test (1945) tells how often ranks as one-sided would come by chance.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy import stats

from binseg.errors import DataError, UsageError, suggest
from binseg.metrics.registry import METRICS, OutlineMetric, PixelMetric, ProbabilityMetric
from binseg.metrics.scores import LEAST_UNITS, interval_of, resampled_sums, sum_groups
from binseg.types import Interval

Verdict = Literal["a", "b", "noise", "same"]

NUM_RESAMPLES = 10_000
RULE = (
    "A difference counts where the 95% interval of the mean paired difference leaves out 0 "
    "(paired bootstrap over the same images, or their groups, 10,000 resamples); p is of "
    "Wilcoxon's signed-rank test. Both ask whether other images would say the same, not whether "
    "another training with another seed would. Fewer than 6 images (or groups) decide nothing."
)
"""The sentences that go with every comparison."""
COMPARED = tuple(
    metric
    for metric in METRICS.values()
    if isinstance(metric, PixelMetric | OutlineMetric | ProbabilityMetric)
)
"""The scores that single images have."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score of two models on the same images; the difference is b - a."""

    name: str
    mean_a: float
    mean_b: float
    interval: Interval | None
    """95% interval of the mean difference; None where one image or group tells nothing."""
    p: float  # the p value of Wilcoxon's signed-rank test; 1 where no image differs
    num_better: int  # images where b is better; `num_worse` where a is; all others are equal
    num_worse: int
    num_units: int  # images, or groups of them, that are resampled

    @property
    def difference(self) -> float:
        """The mean of b less that of a."""
        return self.mean_b - self.mean_a

    @property
    def verdict(self) -> Verdict:
        """The better one; "noise" where that can't be told, "same" where all images are equal."""
        if self.num_better + self.num_worse == 0:
            return "same"
        if self.num_units < LEAST_UNITS:
            return "noise"
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return "noise"
        return "b" if (self.difference > 0) == METRICS[self.name].higher_is_better else "a"

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        found = self.interval
        names = "name mean_a mean_b difference interval p num_better num_worse verdict"
        facts = {name: getattr(self, name) for name in names.split()}
        return facts | {"interval": None if found is None else [found.low, found.high]}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two reports of the same images, set side by side."""

    title_a: str
    title_b: str
    split: str
    num_images: int
    differences: tuple[Difference, ...]  # the score that decides first
    notes: tuple[str, ...]

    @property
    def decisive(self) -> Difference:
        """The score that decides."""
        return self.differences[0]

    @property
    def sentence(self) -> str:
        """Say which model is better, or that it can't be told."""
        one = self.decisive
        label = METRICS[one.name].label
        if one.verdict == "same":
            return f"No difference: {label} is equal on all {self.num_images} images."
        size = f"{label} differs by {abs(one.difference):.4f}"
        if one.verdict == "noise":
            return f"Noise: {size}, and other images could well say the opposite or nothing."
        return f"{one.verdict.upper()} is better: {size}, more than other images would undo."

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "a": self.title_a,
            "b": self.title_b,
            "split": self.split,
            "num_images": self.num_images,
            "score": self.decisive.name,
            "verdict": self.decisive.verdict,
            "sentence": self.sentence,
            "differences": [one.as_dict() for one in self.differences],
            "notes": list(self.notes),
        }


def compare_scores(
    name: str,
    a_N: Float64[np.ndarray, " N"] | Sequence[float],
    b_N: Float64[np.ndarray, " N"] | Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare one score of two models, image by image; groups are resampled whole.

    >>> a, b = [0.7, 0.8, 0.9, 0.6, 0.8, 0.7], [0.8, 0.85, 0.95, 0.9, 0.81, 0.77]
    >>> compare_scores("dice", a, b).verdict, compare_scores("dice", a[:5], b[:5]).verdict
    ('b', 'noise')
    """
    a_N, b_N = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    assert a_N.shape == b_N.shape, "the same images"
    assert a_N.ndim == 1, "one score per image"
    difference_N = b_N - a_N
    table_N2 = np.stack([difference_N, np.ones(len(a_N))], axis=1)
    sums_R2 = resampled_sums(table_N2, groups=groups, num_resamples=num_resamples, seed=seed)
    gain_N = difference_N if METRICS[name].higher_is_better else -difference_N
    return Difference(
        name=name,
        mean_a=float(a_N.mean()),
        mean_b=float(b_N.mean()),
        interval=None if sums_R2 is None else interval_of(sums_R2[:, 0] / sums_R2[:, 1]),
        p=_wilcoxon(table_N2 if groups is None else sum_groups(table_N2, groups)),
        num_better=int((gain_N > 0).sum()),
        num_worse=int((gain_N < 0).sum()),
        num_units=len(a_N) if groups is None else len(set(groups)),
    )


def _wilcoxon(sums_G2: Float64[np.ndarray, "G 2"]) -> float:
    """Test the mean difference of each group; equal ones say nothing and are left out."""
    mean_G = sums_G2[:, 0] / sums_G2[:, 1]
    mean_G = mean_G[mean_G != 0]
    return float(stats.wilcoxon(mean_G).pvalue) if mean_G.size else 1.0


@dataclass(frozen=True, kw_only=True)
class _Written:
    """The contents of a report.json; the last three by the id of each image."""

    path: Path
    title: str
    split: str
    border: str
    outline: tuple[str, ...]  # tolerance, unit and spacing of the outline scores
    scores: Mapping[str, Mapping[str, float]]
    truth: Mapping[str, tuple[int, int]]  # foreground and valid pixels
    groups: Mapping[str, Hashable]

    @property
    def scored(self) -> list[str]:
        """The images with a valid pixel."""
        return [id_ for id_, (_, num_valid) in self.truth.items() if num_valid]


def compare(
    run_a: str | Path, run_b: str | Path, *, split: str = "test", score: str = "dice"
) -> Comparison:
    """Compare two models by the reports that `evaluate` or `train` wrote; `score` decides.

    Each is the folder of a run (of whose reports `split` chooses), of a report, or a report.json.
    Raises UsageError for an unknown score, DataError without a whole report of the same images
    each.
    """
    names = [metric.name for metric in COMPARED]
    if score not in names:
        raise UsageError(f"unknown score {score!r}: {suggest(score, names)}")
    a, b = (_read(_find(Path(run), split)) for run in (run_a, run_b))
    _check_same(a, b)
    ids = a.scored
    if not ids:
        raise DataError(f"{a.path}: none of its images has a pixel that isn't ignored")
    if not _have(score, a, b):
        raise DataError(
            f"{a.path} and {b.path} have no {score} of the same rule; evaluate both anew"
        )
    others = [one.name for one in COMPARED if one.is_main and one.name != score]
    names = [score, *(name for name in others if _have(name, a, b))]
    groups = [a.groups[id_] for id_ in ids]  # an image without one is its own
    lone = "Only the first score decides: of many scores, one differs by chance."
    return Comparison(
        title_a=a.title,
        title_b=b.title,
        split=a.split,
        num_images=len(ids),
        differences=tuple(
            compare_scores(
                name,
                [a.scores[id_][name] for id_ in ids],
                [b.scores[id_][name] for id_ in ids],
                groups=groups,
            )
            for name in names
        ),
        notes=(RULE, *([lone] if len(names) > 1 else [])),
    )


def _find(given: Path, split: str) -> Path:
    """Return the report.json that a path stands for."""
    for candidate in (given, given / "report.json", given / split / "report.json"):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{given}: there is no report of split {split!r}; write it with "
        f"`binseg evaluate {given} --split {split}`"
    )


def _read(path: Path) -> _Written:
    """Read what a report says of each image."""
    try:
        tree = json.loads(path.read_text("utf-8"))
        outline = tree.get("outline", {})
        return _Written(
            path=path,
            title=f"{tree['title']} ({path.parent})",
            split=str(tree["split"]),
            border=str(tree["border"]),
            outline=tuple(str(outline.get(key)) for key in ("tolerance", "unit", "spacing")),
            scores={
                str(one["id"]): one["scores"]["original"]
                | (one.get("outline") or {})
                | (one.get("probability") or {})
                for one in tree["images"]
            },
            truth={
                str(one["id"]): (num["tp"] + num["fn"], sum(num.values()))
                for one in tree["images"]
                for num in (one["counts"]["original"],)
            },
            groups={
                str(one["id"]): one["group"] if one.get("group") is not None else ("id", one["id"])
                for one in tree["images"]
            },
        )
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} is not a report of binseg; give a run, or a report.json of `evaluate`"
        ) from None


def _check_same(a: _Written, b: _Written) -> None:
    """Refuse reports of different images or truths, with DataError: they can't be compared."""
    if a.truth.keys() != b.truth.keys():
        only_a = [id_ for id_ in a.truth if id_ not in b.truth]
        only_b = [id_ for id_ in b.truth if id_ not in a.truth]
        example = (only_a or only_b)[0]
        raise DataError(
            f"{a.path} and {b.path} are not of the same images: {len(only_a)} are only in the "
            f"first and {len(only_b)} only in the second (for example {example}); evaluate both "
            "on the same --data and --split"
        )
    if a.border != b.border:
        raise DataError(
            f"{a.path} counts the border as {a.border}, {b.path} as {b.border}; evaluate both "
            "with the same --border"
        )
    for id_, truth in a.truth.items():
        if truth != b.truth[id_]:
            raise DataError(
                f"the mask of {id_} differs between {a.path} and {b.path} ({truth[0]} and "
                f"{b.truth[id_][0]} foreground pixels); evaluate both on the same --data"
            )


def _have(name: str, a: _Written, b: _Written) -> bool:
    """Tell whether both reports have a score, measured by the same rule."""
    if isinstance(METRICS[name], OutlineMetric) and a.outline != b.outline:
        return False
    return all(name in one.scores[id_] for one in (a, b) for id_ in one.scored)
