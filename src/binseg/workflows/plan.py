"""Look at the data and the machine, and say how to train: a recipe with its reasons."""

import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import yaml

from binseg.config import Recipe, load_recipe
from binseg.config.recipe import Option
from binseg.data.cache import PixelCache
from binseg.data.dataset import Dataset
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.errors import UsageError
from binseg.models.zoo import build_model
from binseg.planning import Machine, Plan, Setting, draw_up, split_settings, take_fingerprint
from binseg.planning.resolution import THICK_OPTIONS
from binseg.progress import SILENT, Progress
from binseg.storage import write_text
from binseg.training.measuring import profile_steps
from binseg.training.memory import available_memory, estimate_memory
from binseg.training.precision import resolve_device, resolve_precision

__all__ = ["DEFAULT_BUDGET", "PlanResult", "parse_budget", "plan", "write_plan"]

DEFAULT_BUDGET = 20 * 60.0
"""Seconds, where nobody says."""
LONG = 4 * 3600.0
"""Seconds from which the large network may be worth its time on a processor."""
CANDIDATES: Mapping[str, Mapping[str, Option]] = MappingProxyType(
    {"unet-compact": {}, "unet-small": {}, "unet": dict(THICK_OPTIONS)}
)
"""Networks that the rules choose from, with their options."""
LARGE = "resnet34-unet"
TRIAL_SIZE, QUICK_TRIAL_SIZE, TRIAL_BATCH, TRIAL_STEPS = 192, 96, 8, 3
TRIAL_RUNS = 6
"""Steps of a measurement, those that warm up included."""
TRIAL_SHARE = 0.015
"""Of the budget that one network's measurement may take; else its time follows from the first's."""
RELATIVE: Mapping[str, float] = MappingProxyType(
    {"unet-compact": 1.0, "unet-small": 1.85, "unet": 2.9, "resnet34-unet": 5.9}
)
"""Seconds a pixel of the candidates, as measured on one core that computes in bf16."""
QUICK = 180.0
"""Seconds of a budget below which the machine is measured in haste."""
FEW_PAGES = 30
UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A plan, the recipe that it is, and the seconds that it took."""

    plan: Plan
    recipe: Recipe
    seconds: float

    def as_yaml(self) -> str:
        """The recipe with its reasons as comments; `binseg train FILE` runs it."""
        return _commented(self.recipe, self.plan)

    def as_dict(self) -> dict[str, object]:
        """Settings, reasons and facts as plain data."""
        return {
            "settings": [
                {"key": one.key, "value": _plain(one.value), "because": one.because}
                for one in self.plan.settings
            ],
            "warnings": list(self.plan.warnings),
            "expected_seconds": round(self.plan.seconds, 1),
            "fingerprint": asdict(self.plan.fingerprint),
            "machine": {
                "device": self.plan.machine.device,
                "cores": self.plan.machine.cores,
                "seconds_per_megapixel": dict(self.plan.machine.seconds_per_megapixel),
            },
            "recipe": self.recipe.model_dump(mode="json"),
        }


def parse_budget(text: str) -> float | None:
    """Read a budget as people write it; None means that time doesn't matter.

    Returns:
        Seconds.

    Raises:
        UsageError: it can't be read.

    >>> parse_budget("20m"), parse_budget("1.5h"), parse_budget("90s"), parse_budget("none")
    (1200.0, 5400.0, 90.0, None)
    """
    plain = text.strip().lower()
    if plain == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", plain)
    if match is None or not float(match[1]) > 0:
        raise UsageError(f"--budget {text!r}: write it as 20m, 2h, 90s or none")
    return float(match[1]) * UNITS[match[2] or "m"]


def plan(
    *,
    sections: Mapping[str, Mapping[str, object]],
    overrides: Sequence[str] = (),
    budget: float | None = DEFAULT_BUDGET,
    folds: int = 1,
    progress: Progress = SILENT,
) -> PlanResult:
    """Derive a recipe from the data and the machine.

    Args:
        sections: what the user chose, section by section; data.path is needed.
        overrides: more of it, as `section.key=value`.
        budget: seconds for the whole run; None where time doesn't matter.
        folds: runs that share the budget.
        progress: told how far it is.

    Raises:
        UsageError: no data, or a setting that isn't one.
        DataError: data that can't be trained on.
    """
    start = time.perf_counter()
    asked = load_recipe(sections=sections, overrides=overrides)
    given = _given(asked)
    if asked.data.path is None:
        raise UsageError("which pictures? Give --data PATH (or `synthetic`), or data.path")
    dataset, split = _open(asked, given, progress)
    fingerprint = take_fingerprint(dataset, seed=asked.train.seed, progress=progress)
    machine = _measure(asked, given, budget, progress)
    share = None if budget is None else max(1.0, budget / folds)
    drawn = draw_up(fingerprint, machine, budget=share, given=given, before=split)
    recipe = drawn.recipe(asked.model_dump(mode="json", exclude_unset=True))
    return PlanResult(plan=drawn, recipe=recipe, seconds=time.perf_counter() - start)


def _given(asked: Recipe) -> dict[str, object]:
    """What the user chose, by dotted keys; `exclude_unset` is what pydantic was really given."""
    table: dict[str, object] = {}
    for section, fields in asked.model_dump(exclude_unset=True).items():
        for field, value in fields.items():
            if section == "data" and isinstance(value, dict):
                table |= {f"data.{field}.{inner}": each for inner, each in value.items()}
            else:
                table[f"{section}.{field}"] = tuple(value) if isinstance(value, list) else value
    return table


def _open(
    asked: Recipe, given: Mapping[str, object], progress: Progress
) -> tuple[Dataset, list[Setting]]:
    """Open and split the data as training will."""
    data = asked.data
    dataset = open_dataset(data, progress=progress)
    has_own = any(record.split is not None for record in dataset.records)
    pages = Counter(record.image_path for record in dataset.records if record.page is not None)
    settings: list[Setting] = []
    if pages and not has_own and "data.split.method" not in given:
        settings = split_settings(is_stack=True, num_pages=max(pages.values()))
        num = len(dataset.records)
        if num < FEW_PAGES * 2 and "data.page_group" not in given:
            group = max(1, num // 12)
            because = f"{num} pages are few: smaller groups of them can still be split"
            settings.append(Setting(key="data.page_group", value=group, because=because))
        settings = [one for one in settings if one.key not in given]
        changed = {one.key: one.value for one in settings}
        split = data.split.model_copy(
            update={k.rpartition(".")[2]: v for k, v in changed.items() if ".split." in k}
        )
        update = {"split": split}
        if "data.page_group" in changed:
            update["page_group"] = changed["data.page_group"]  # type: ignore[assignment]
        data = data.model_copy(update=update)
        dataset = open_dataset(data)
    dataset = assign_splits(dataset, data.split)
    kept = tuple(r for r in dataset.records if r.mask_path is not None or r.shapes is not None)
    return replace(dataset, records=kept), settings


def _measure(
    asked: Recipe, given: Mapping[str, object], budget: float | None, progress: Progress
) -> Machine:
    """Time a few steps of the networks in question; pictures needn't be real for that."""
    device = resolve_device(asked.train.device)
    bf16 = resolve_precision(asked.train.precision, device, SILENT) == "bf16"
    candidates = dict(CANDIDATES)
    if device.type == "cuda" or budget is None or budget >= LONG:
        candidates[LARGE] = {}
    if "model.name" in given:
        candidates = {asked.model.name: asked.model.options}
    size = TRIAL_SIZE if budget is None or budget > QUICK else QUICK_TRIAL_SIZE
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    with progress.task("measuring the machine", total=len(candidates)) as task:
        for name, options in candidates.items():
            known = seconds.get("unet-compact")
            if known is not None and budget is not None:
                pixels = TRIAL_RUNS * TRIAL_BATCH * size**2 / 1e6
                if known * RELATIVE[name] * pixels > TRIAL_SHARE * budget:
                    seconds[name] = known * RELATIVE[name]
                    task.advance()
                    continue
            recipe = _trial_recipe(asked, name, options, size)
            model = _build(recipe)
            estimate = estimate_memory(model, recipe, bf16=bf16)
            memory[name] = estimate.per_input / (size**2 / 1e6)
            profile = profile_steps(
                model, recipe, _trial_cache(recipe), device=device, bf16=bf16, num_steps=TRIAL_STEPS
            )
            seconds[name] = profile.step_seconds / profile.num_inputs / (size**2 / 1e6)
            task.advance()
    return Machine(
        device=device.type,
        cores=torch.get_num_threads() if device.type == "cpu" else os.cpu_count() or 1,
        seconds_per_megapixel=seconds,
        free_bytes=available_memory(device),
        bytes_per_megapixel=memory,
    )


def _trial_recipe(asked: Recipe, name: str, options: Mapping[str, Option], size: int) -> Recipe:
    """Steps as the plan's will be: its usual augmentation and batch."""
    return load_recipe(
        sections={
            "input": {"size": size, "channels": 3},
            "model": {"name": name, "options": dict(options)},
            "augment": {"preset": "medium", "orientation": "any"},
            "loss": {"name": asked.loss.name, "options": dict(asked.loss.options)},
            "train": {"batch_size": TRIAL_BATCH},
        }
    )


def _build(recipe: Recipe) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(recipe.model.name, in_channels=3, options=recipe.model.options)


def _trial_cache(recipe: Recipe) -> PixelCache:
    size = recipe.input.size
    random = np.random.default_rng(0)
    shape = (2 * TRIAL_BATCH, size, size)
    return PixelCache(
        inputs_NHWC=random.integers(0, 256, (*shape, 3), dtype=np.uint8),
        targets_NHW=random.integers(0, 2, shape, dtype=np.uint8),
        record_of_N=np.arange(shape[0]),
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _commented(recipe: Recipe, drawn: Plan) -> str:
    """YAML of what differs from the defaults, and why."""
    why = {one.key: one.because for one in drawn.settings}
    lines = [
        "# A plan by `binseg plan`: change anything, then run `binseg train` with this file.",
        *(f"# Note: {warning}" for warning in drawn.warnings),
    ]
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    for section, fields in tree.items():
        lines.append(f"{section}:")
        for field, value in fields.items():
            if isinstance(value, dict) and f"{section}.{field}" not in why:
                lines.append(f"  {field}:")
                lines += [
                    _line(f"    {inner}", each, why.get(f"{section}.{field}.{inner}"))
                    for inner, each in value.items()
                ]
            else:
                lines.append(_line(f"  {field}", value, why.get(f"{section}.{field}")))
    return "\n".join(lines) + "\n"


def _line(head: str, value: object, because: str | None) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    text = text.strip().removesuffix("...").strip()
    return f"{head}: {text}" + (f"  # {because}" if because else "")


def write_plan(result: PlanResult, path: str | Path) -> None:
    """Write a plan as a recipe with its reasons.

    Raises:
        UsageError: the name doesn't end in .yaml or .yml, or the file is there already.
        OutputError: it can't be written.
    """
    file = Path(path)
    if file.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"--out {file}: a recipe's name ends in .yaml")
    if file.exists():
        raise UsageError(f"--out {file}: there is such a file; choose another name or remove it")
    write_text(file, result.as_yaml())
