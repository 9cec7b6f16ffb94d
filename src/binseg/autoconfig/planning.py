"""A plan: every setting that the rules chose, with its reason, as a recipe that runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from binseg.autoconfig import input_rules, training_rules
from binseg.autoconfig.cost import Machine, Rule, Situation, Value
from binseg.autoconfig.fingerprint import Fingerprint
from binseg.autoconfig.training_rules import always, only_for_thin
from binseg.config import Recipe, load_recipe

RULES: Mapping[str, Rule] = MappingProxyType({
        "input.channels": input_rules.channels,
        "input.intensity": input_rules.intensity,
        "input.depth": input_rules.depth,
        "input.resize": input_rules.resize,
        "input.scale": input_rules.scale,
        "model.name": input_rules.model,
        "model.encoder_weights": input_rules.encoder_weights,
        "input.mean": input_rules.moments(
            "mean", "subtracted when the weights were trained", "average of the training images"),
        "input.std": input_rules.moments("std", "divided by when the weights were trained",
            "standard deviation of the training images"),
        "model.options": input_rules.model_options,
        "input.size": input_rules.size,
        "train.progressive": input_rules.progressive,
        "patches.foreground": input_rules.patch_foreground,
        "input.overlap": input_rules.overlap,
        "train.batch_size": training_rules.batch_size,
        "augment.orientation": training_rules.orientation,
        "augment.preset": training_rules.preset,
        "augment.elastic": only_for_thin(0.015, "deformed shapes stand in for more images"),
        "augment.gamma": only_for_thin(0.3, "so do other exposures"),
        "augment.invert": training_rules.invert,
        "augment.grey": training_rules.grey,
        "loss.name": training_rules.loss,
        "optimizer.name": always("adamw", "learns in few steps, and its rate holds for most data"),
        "optimizer.lr": training_rules.lr,
        "optimizer.encoder_lr_factor": training_rules.encoder_lr_factor,
        "optimizer.weight_decay": always(0.02, "goes with the high peak of the learning rate"),
        "schedule.name": always("onecycle", "rises, then falls to zero just as the run ends"),
        "schedule.rise": always(0.15, "a seventh of the run to warm up"),
        "patches.per_epoch": lambda at: training_rules.per_epoch(at) if at.is_tiled else None,
        "train.per_epoch": lambda at: None if at.is_tiled else training_rules.per_epoch(at),
        "train.epochs": training_rules.epochs,
        "train.budget_minutes": training_rules.budget_minutes,
        "train.freeze_batch_norm": training_rules.freeze_batch_norm,
        "train.ema_decay": training_rules.ema_decay,
        "train.postprocess": training_rules.postprocess,
        "train.tta": training_rules.tta,
        "train.threshold": training_rules.threshold,
})  # fmt: skip
"""The rule of each setting, in the order in which they are decided: each rule sees what those above
it chose, and everything that the user gave. A new rule is a function and its row here."""
GIVEN = "you said so"
FEW_IMAGES = 50
FEW_RATIOS = (0.7, 0.3, 0.0)
STACK_GAP = 5


@dataclass(frozen=True)
class Setting:
    """One line of a plan: a recipe's `section.field`, its value, and one clause that says why."""

    key: str
    value: Value
    reason: str
    is_given: bool = False  # True if the user gave the value, so that no rule decided it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a training, each with its reason."""

    settings: tuple[Setting, ...]
    warnings: tuple[str, ...]
    fingerprint: Fingerprint
    machine: Machine

    def recipe(self) -> Recipe:
        """Return the plan as a recipe."""
        tree: dict[str, Any] = {}
        for one in self.settings:
            if one.is_given and one.key == "model.name":  # a label of the encoder and decoder
                continue
            *outer, last = one.key.split(".")
            below = tree
            for name in outer:
                below = below.setdefault(name, {})
            below[last] = list(one.value) if isinstance(one.value, tuple) else one.value
        return load_recipe(sections=tree)

    def setting(self, key: str) -> Setting:
        """Return one line of the plan by its key."""
        return next(one for one in self.settings if one.key == key)


def make_plan(
    fingerprint: Fingerprint,
    machine: Machine,
    *,
    budget: float | None,
    given: Mapping[str, Value],
    before: Sequence[Setting] = (),
) -> Plan:
    """Apply all rules within `budget` seconds, beside `given` settings and those `before`."""
    facts, keys = fingerprint, frozenset(given)
    at = Situation(fingerprint=facts, machine=machine, budget=budget, decided=given, given=keys)
    settings = list(before)
    for key in [*RULES, *(key for key in given if key not in RULES)]:
        choice = (given[key], GIVEN) if key in given else RULES[key](at)
        if choice is not None:
            value, reason = choice
            settings.append(Setting(key, value, reason, is_given=key in given))
            at = at.having({key: value})
    told = tuple(_warnings(at))
    return Plan(settings=tuple(settings), warnings=told, fingerprint=facts, machine=machine)


def few_ratios(num: int) -> list[Setting]:
    """Split few images, pages or training images so that enough of them validate."""
    if num > FEW_IMAGES:
        return []
    reason = f"only {num} images: 30% are for validation, and none are kept for a test"
    return [Setting("data.split.ratios", FEW_RATIOS, reason)]


def stack_settings(num_pages: int) -> list[Setting]:
    """Split a stack of so many pages in blocks, where nobody says how."""
    gap = min(STACK_GAP, num_pages // 20)
    whole = "neighbouring slices look nearly the same, so whole blocks stay together"
    left_out = "slices left out between two splits"
    return [Setting("data.split.method", "block", whole), Setting("data.split.gap", gap, left_out)]


def _warnings(at: Situation) -> Iterator[str]:
    facts = at.fingerprint
    if facts.num_train < FEW_IMAGES:
        yield (
            f"{facts.num_train} training images are few: expect a lower score on new images than "
            f"on the {facts.num_val} validation images; --folds 5 scores every image, and more "
            "masks help most"
        )
    if facts.num_val < training_rules.MIN_VAL:
        told = "can hardly choose between epochs or thresholds: the score is a rough guess"
        yield f"{facts.num_val} validation images {told}"
    if facts.num_units < 2:
        told = "so nothing here tells how well the model does on another"
        yield f"all images come from one stack, {told}"
    if facts.empty_share > 0.5:
        yield f"{facts.empty_share:.0%} of the images have no foreground"
    is_stretched = at.decided.get("input.intensity") == "percentile"
    if is_stretched and facts.mean_foreground < input_rules.RARE_AS_CLIPPED:
        yield (
            f"{facts.mean_foreground:.2%} of the pixels are foreground, and stretching clips 0.5% "
            "at either end: if the objects are the brightest or darkest pixels, save the images in "
            "8 bits over the range that matters; those are not stretched"
        )
