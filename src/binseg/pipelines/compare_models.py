"""Two models' reports on the same images: which is better, or is it noise?"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from binseg.errors import DataError, UsageError, suggest
from binseg.metrics import COMPARISON_RULE, SCORES, Difference, compare_scores

__all__ = ["CompareResult", "compare"]

OUTLINE_SCORES = {"boundary_iou": True, "boundary_f1": True, "hd95": False, "assd": False}
"""Whether more is better."""
SHOWN = ("dice", "iou", "precision", "recall", *OUTLINE_SCORES)


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """What two reports say of the same images."""

    title_a: str
    title_b: str
    split: str
    num_images: int
    differences: tuple[Difference, ...]
    """The score that decides first."""
    notes: tuple[str, ...]

    @property
    def decisive(self) -> Difference:
        """The score that decides."""
        return self.differences[0]

    @property
    def sentence(self) -> str:
        """Say which model is better, or that it can't be told."""
        one = self.decisive
        name = one.name.replace("_", " ")
        if one.verdict == "same":
            return f"No difference: {name} is equal on all {one.num_images} images."
        size = f"{name} differs by {abs(one.difference):.4f}"
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
            "differences": [
                {
                    "name": one.name,
                    "mean_a": one.mean_a,
                    "mean_b": one.mean_b,
                    "difference": one.difference,
                    "interval": None
                    if one.interval is None
                    else [one.interval.low, one.interval.high],
                    "p": one.p,
                    "num_better": one.num_better,
                    "num_worse": one.num_worse,
                    "verdict": one.verdict,
                }
                for one in self.differences
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What a report.json says, image by image."""

    path: Path
    title: str
    split: str
    border: str
    outline: tuple[str, ...]
    """Tolerance, unit and spacing of the outline scores."""
    images: Mapping[str, "_Line"]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One image of a report: its scores, and what its truth is known by."""

    scores: Mapping[str, float]
    num_true: int
    num_valid: int
    group: str | None


def compare(
    run_a: str | Path, run_b: str | Path, *, split: str = "test", score: str = "dice"
) -> CompareResult:
    """Compare two models by the reports that `evaluate` or `train` wrote.

    Args:
        run_a: the folder of a run, or of one of its reports, or a report.json.
        run_b: the other one's.
        split: which of a run's reports.
        score: the score that decides; all others are told too.

    Raises:
        UsageError: an unknown score.
        DataError: no report, a damaged one, or two of different images.
    """
    known = [*SCORES, *OUTLINE_SCORES]
    if score not in known:
        raise UsageError(f"unknown score {score!r}: {suggest(score, known)}")
    a, b = (_read(_find(Path(run), split)) for run in (run_a, run_b))
    _check_same(a, b)
    ids = [id_ for id_, line in a.images.items() if line.num_valid]
    if not ids:
        raise DataError(f"{a.path}: none of its images has a pixel that isn't ignored")
    groups = _groups(a, ids)
    names = [score, *(name for name in SHOWN if name != score and _have(name, a, b))]
    if not _have(score, a, b):
        raise DataError(
            f"{a.path} and {b.path} have no {score} of the same rule; evaluate both anew"
        )
    return CompareResult(
        title_a=a.title,
        title_b=b.title,
        split=a.split,
        num_images=len(ids),
        differences=tuple(
            compare_scores(
                name,
                [a.images[id_].scores[name] for id_ in ids],
                [b.images[id_].scores[name] for id_ in ids],
                groups=groups,
                higher_is_better=OUTLINE_SCORES.get(name, True),
            )
            for name in names
        ),
        notes=(
            COMPARISON_RULE,
            *(
                ["Only the first score decides: of many scores, one differs by chance."]
                if len(names) > 1
                else []
            ),
        ),
    )


def _find(given: Path, split: str) -> Path:
    """Return the report.json that a path stands for."""
    candidates = [given / "report.json", given / split / "report.json"]
    if given.is_file():
        return given
    for candidate in candidates:
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
        images = {
            str(one["id"]): _Line(
                scores={
                    **one["scores"]["original"],
                    **(one.get("outline") or {}),
                },
                num_true=one["counts"]["original"]["tp"] + one["counts"]["original"]["fn"],
                num_valid=sum(one["counts"]["original"].values()),
                group=one.get("group"),
            )
            for one in tree["images"]
        }
        return _Written(
            path=path,
            title=f"{tree['title']} ({path.parent})",
            split=str(tree["split"]),
            border=str(tree["border"]),
            outline=tuple(str(outline.get(key)) for key in ("tolerance", "unit", "spacing")),
            images=images,
        )
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} is not a report of binseg; give a run, or a report.json of `evaluate`"
        ) from None


def _check_same(a: _Written, b: _Written) -> None:
    """Refuse reports of different images or truths: they can't be compared.

    Raises:
        DataError: saying which images differ.
    """
    if a.images.keys() != b.images.keys():
        only_a = [id_ for id_ in a.images if id_ not in b.images]
        only_b = [id_ for id_ in b.images if id_ not in a.images]
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
    for id_, line in a.images.items():
        other = b.images[id_]
        if (line.num_true, line.num_valid) != (other.num_true, other.num_valid):
            raise DataError(
                f"the mask of {id_} differs between {a.path} and {b.path} ({line.num_true} and "
                f"{other.num_true} foreground pixels); evaluate both on the same --data"
            )


def _groups(report: _Written, ids: Sequence[str]) -> list[Hashable] | None:
    lines = [report.images[id_] for id_ in ids]
    if not any(line.group for line in lines):
        return None
    return [
        ("id", id_) if line.group is None else ("group", line.group)
        for id_, line in zip(ids, lines, strict=True)
    ]


def _have(name: str, a: _Written, b: _Written) -> bool:
    """Whether both reports have a score, measured by the same rule."""
    if name in OUTLINE_SCORES and a.outline != b.outline:
        return False
    lines = [line for one in (a, b) for line in one.images.values() if line.num_valid]
    return all(name in line.scores for line in lines)
