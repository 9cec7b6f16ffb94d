"""Look at the data and the machine, and say how to train: a recipe with its reasons."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from binseg import autoconfig
from binseg.config import Recipe, SplitConfig, load_recipe
from binseg.data.dataset import Dataset
from binseg.data.sources import open_dataset
from binseg.data.splits import RESPLIT, assign_splits, foreground_in, lacking, split_with_foreground
from binseg.datacheck import keep_together
from binseg.errors import UsageError
from binseg.pipelines.budget import expected_seconds, measure_machine
from binseg.pipelines.continuing import REASON, continued, divide
from binseg.progress import SILENT, Progress
from binseg.storage import write_text

DEFAULT_BUDGET = 20 * 60.0  # seconds of a plan's budget where the user gives none
FEW_PAGES = 60  # pages below which smaller groups of them are formed, so that they can be split


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A plan, the recipe that it is, and how long both take."""

    plan: autoconfig.Plan
    recipe: Recipe
    seconds: float  # duration of planning itself
    expected_seconds: float  # duration of the training to come, all folds together

    def as_yaml(self) -> str:
        """Return the recipe with its reasons as comments; `binseg train FILE` runs it."""
        reasons = {one.key: one.reason for one in self.plan.settings}
        reasons["model.encoder"] = reasons["model.name"]
        lines = [
            "# A plan by `binseg plan`: change anything, then run `binseg train` with this file.",
            *(f"# Note: {warning}" for warning in self.plan.warnings),
        ]
        for section, fields in self.recipe.model_dump(mode="json", exclude_unset=True).items():
            lines.append(f"{section}:")
            for field, value in fields.items():
                key = f"{section}.{field}"
                if isinstance(value, dict) and key not in reasons:
                    lines.append(f"  {field}:")
                    rows = [
                        (f"    {inner}", each, f"{key}.{inner}") for inner, each in value.items()
                    ]
                else:
                    rows = [(f"  {field}", value, key)]
                lines += [_line(head, each, reasons.get(name)) for head, each, name in rows]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, object]:
        """Return settings, reasons and facts as plain data."""
        machine = self.plan.machine
        return {
            "settings": [vars(one) for one in self.plan.settings],
            "warnings": list(self.plan.warnings),
            "expected_seconds": round(self.expected_seconds, 1),
            "fingerprint": asdict(self.plan.fingerprint),
            "machine": {
                "device": machine.device,
                "cores": machine.cores,
                "seconds_per_megapixel": dict(machine.seconds_per_megapixel),
                "seconds_per_step": dict(machine.seconds_per_step),
            },
            "recipe": self.recipe.model_dump(mode="json"),
        }


def _line(head: str, value: object, reason: str | None) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    text = text.strip().removesuffix("...").strip()
    return f"{head}: {text}" + (f"  # {reason}" if reason else "")


def parse_budget(text: str) -> float | None:
    """Read seconds from a budget as people write it; None for "none". UsageError if unreadable.

    >>> parse_budget("20m"), parse_budget("20"), parse_budget("1.5h"), parse_budget("none")
    (1200.0, 1200.0, 5400.0, None)
    >>> parse_budget("2m30s"), parse_budget("1h 30 min"), parse_budget("90s")
    (150.0, 5400.0, 90.0)
    """
    plain = text.strip().lower()
    if plain == "none":
        return None
    number = r"(\d+(?:\.\d+)?)\s*"
    whole = rf"(?:{number}h)?\s*(?:{number}m(?:in)?)?\s*(?:{number}s)?"
    match = re.fullmatch(number, plain)
    if match is not None:
        seconds = 60 * float(match[1])
    elif match := re.fullmatch(whole, plain):
        each = zip(match.groups(), (3600, 60, 1), strict=True)
        seconds = sum(float(value) * unit for value, unit in each if value)
    if match is None or seconds <= 0:
        raise UsageError(f"--budget {text!r}: write it as 20m, 2h, 2m30s, 90s or none")
    return float(seconds)


def chosen_budget(
    text: str | None, *, sections: Mapping[str, Mapping[str, object]], overrides: Sequence[str]
) -> float | None:
    """Return a plan's budget in seconds, None if epochs or nothing limit it; raises UsageError."""
    train = load_recipe(sections=sections, overrides=overrides).train
    has_epochs = "epochs" in train.model_fields_set
    if text is not None and train.budget_minutes is not None:
        raise UsageError("--budget and train.budget_minutes: give one of the two")
    if text is None and train.budget_minutes is None:
        return None if has_epochs else DEFAULT_BUDGET
    seconds = parse_budget(text or f"{train.budget_minutes}m")
    if has_epochs and seconds is not None:
        raise UsageError(
            "a budget and a number of epochs: the budget would override the epochs; give one of "
            "the two, or --budget none"
        )
    return seconds


def plan(
    *,
    sections: Mapping[str, Mapping[str, object]],
    overrides: Sequence[str] = (),
    budget: float | None = DEFAULT_BUDGET,
    folds: int = 1,
    progress: Progress = SILENT,
) -> PlanResult:
    """Derive a recipe from data and machine; raises UsageError (its settings) and DataError.

    `sections` and `overrides` are what the user chose; the budget, in seconds for the whole run, is
    shared by `folds` runs (None if time doesn't matter).
    """
    start = time.perf_counter()
    plain = load_recipe(sections=sections, overrides=overrides)
    asked = continued(plain)
    given = _given(asked)
    dataset, split = _open(asked, given, progress)
    fingerprint = autoconfig.take_fingerprint(dataset, seed=asked.train.seed, progress=progress)
    machine = measure_machine(
        asked, given, budget, progress, from_scratch=autoconfig.prefers_scratch(fingerprint)
    )
    share = None if budget is None else max(1.0, budget / folds)
    made = autoconfig.make_plan(fingerprint, machine, budget=share, given=given, before=split)
    kept = given.keys() - _given(plain).keys()
    lines = (replace(one, reason=REASON) if one.key in kept else one for one in made.settings)
    made = replace(made, settings=tuple(lines))
    recipe = made.recipe()
    return PlanResult(
        plan=made,
        recipe=recipe,
        seconds=time.perf_counter() - start,
        expected_seconds=folds * expected_seconds(recipe, fingerprint, machine),
    )


def time_of(recipe: Recipe, *, progress: Progress = SILENT) -> float:
    """Say how many seconds a recipe will take here, from a few steps; raises as `plan` does."""
    dataset = assign_splits(open_dataset(recipe.data), recipe.data.split).with_truth()
    facts = autoconfig.take_fingerprint(dataset, seed=recipe.train.seed, progress=progress)
    given = {"model.name": recipe.model.name}
    machine = measure_machine(recipe, given, None, progress, settled=True)
    return expected_seconds(recipe, facts, machine)


def _given(asked: Recipe) -> dict[str, object]:
    """Return what the user really gave, by dotted keys (`data.split.seed`)."""
    table: dict[str, object] = {}
    for section, fields in asked.model_dump(exclude_unset=True).items():
        for field, value in fields.items():
            if section == "data" and isinstance(value, dict):
                table |= {f"data.{field}.{inner}": each for inner, each in value.items()}
            else:
                table[f"{section}.{field}"] = tuple(value) if isinstance(value, list) else value
    if {"decoder", "encoder"} & asked.model.model_fields_set:
        table |= {"model.name": asked.model.name, "model.encoder": asked.model.encoder}
    return table


def _open(
    asked: Recipe, given: Mapping[str, object], progress: Progress
) -> tuple[Dataset, list[autoconfig.Setting]]:
    dataset = open_dataset(asked.data, progress=progress)
    has_own = any(record.split is not None for record in dataset.records)
    settings = [one for one in _split_settings(dataset, asked, given) if one.key not in given]
    changed = {one.key.rpartition(".")[2]: one.value for one in settings}
    data = asked.data.model_copy(update={"split": asked.data.split.model_copy(update=changed)})
    num = len(dataset.records)
    if not has_own and num < FEW_PAGES and "data.page_group" not in given:
        group = max(1, num // 12)
        finer = data.model_copy(update={"page_group": group})
        reopened = open_dataset(finer)
        if _num_groups(dataset) < _num_groups(reopened):
            dataset, data = reopened, finer
            reason = f"{num} pages are few: smaller groups of them can still be split"
            settings.append(autoconfig.Setting(key="data.page_group", value=group, reason=reason))
    whole, dealt = keep_together(dataset, data, progress=progress), data.split
    dataset = assign_splits(whole, dealt)
    fixed = {f"data.split.{name}" for name in ("method", "seed", "file", "gap")} & given.keys()
    holds = foreground_in(whole.rule)
    if not has_own and not fixed and (without := lacking(dataset.with_truth(), holds)):
        dataset, drawn = split_with_foreground(whole, data.split, without=without, holds=holds)
        data = data.model_copy(update={"split": drawn})
        if drawn is not dealt:
            reason = f"otherwise no image in {' and '.join(without)} would show foreground"
            settings = [one for one in settings if one.key.rpartition(".")[2] not in RESPLIT]
            settings += [
                autoconfig.Setting(
                    key=f"data.split.{name}", value=getattr(drawn, name), reason=reason
                )
                for name in RESPLIT
                if getattr(drawn, name) != getattr(SplitConfig(), name)
            ]
    if asked.model.start_from is not None:
        dataset = divide(whole, asked.model_copy(update={"data": data}), SILENT)
    return dataset.with_truth(), settings


def _split_settings(
    dataset: Dataset, asked: Recipe, given: Mapping[str, object]
) -> list[autoconfig.Setting]:
    """Decide how images are split where neither the data nor the user says so."""
    records = dataset.records
    splits = Counter(record.split for record in records)
    pages = Counter(record.image_path for record in records if record.page is not None)
    is_open = not any(key.startswith("data.split.") for key in given)
    if set(splits) == {None}:
        few = autoconfig.few_ratios(len(records))
        if pages and "data.split.method" not in given:
            return [*autoconfig.stack_settings(max(pages.values())), *few]
        if is_open and few:
            reason = "the images come without a split"
            return [autoconfig.Setting(key="data.split.method", value="ratio", reason=reason), *few]
        return []
    if is_open and splits["train"] and not splits["val"] and not splits[None]:
        return autoconfig.few_ratios(splits["train"])
    return []


def _num_groups(dataset: Dataset) -> int:
    return len({record.group or record.id for record in dataset.records})


def check_plan_path(path: str | Path) -> Path:
    """Refuse a file that exists, or isn't YAML, before minutes are spent on a plan: UsageError."""
    file = Path(path)
    if file.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"--out {file}: a recipe's name ends in .yaml")
    if file.exists():
        raise UsageError(f"--out {file}: this file exists; choose another name or remove it")
    return file


def write_plan(result: PlanResult, path: str | Path) -> None:
    """Write a plan as a recipe with its reasons; errors as those of `check_plan_path`."""
    write_text(check_plan_path(path), result.as_yaml())
