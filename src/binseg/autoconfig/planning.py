"""A plan: the rules for how the network learns, the table of all rules, and the recipe they make.

The rules for what the network sees are in `input_rules`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from binseg.autoconfig import cost, input_rules
from binseg.autoconfig.cost import Machine, Rule, Situation, Value
from binseg.autoconfig.fingerprint import Fingerprint
from binseg.autoconfig.input_rules import SMALL_OPTIONS, is_coarse
from binseg.config import Recipe, load_recipe
from binseg.data.dataset import counted

MIN_VAL = 4  # validation images that can choose between epochs or thresholds
TTA_SHARE = 0.12  # share of the budget that scoring mirror images may take
FEW_IMAGES = 60
MANY_PASSES, SOME_PASSES = 200, 12
"""Passes over the images above which augmentation is strengthened, and below which it is mild."""
INVERT = 0.5
"""Share of images that are inverted: 14 nuclei gave Dice 0.836 on 80 unseen ones, before 0.740."""
MIXED_INVERT, MIXED_GREY, FEW_MIXED = 0.25, 0.3, 200
"""The same, and the share whose colours go, where coloured images are few among grey ones, and all
are fewer than the last number: 70 nuclei, 6 of them stained, gave Dice 0.867, before 0.853."""
MIN_UNITS = 12  # independent images that can tell whether there is an up
LOCAL = 0.15
"""Share of what images have in common, and not with their mirror images, below which only the
light or the sky differs, and not what patches look like (Oxford-IIIT Pet: 0.06)."""
NUM_EPOCHS = 30
"""Validations in a run with a budget: enough to choose from, at a few per cent of the time."""
LEAST_STEPS, MEMORY_SHARE = 8, 0.5
SMALL_PEAK = 5e-3  # rate of the small network at full size, which has few weights and little time
SCRATCH_PEAK, PRETRAINED_PEAK, CONTINUED_PEAK, ENCODER_FACTOR = 1.5e-3, 2e-3, 1e-3, 0.3
"""Peaks of the rate, and a pretrained encoder's as a share of the decoder's. With 2e-3 and batch
norm's statistics kept 70 nuclei gave Dice 0.893, before 0.867; Oxford-IIIT Pet 0.929 and 0.926."""


def batch_size(at: cost.Situation) -> cost.Choice:
    """Choose the inputs of one step."""
    num, size = at.fingerprint.num_train, at.number("input.size")
    whole = at.is_pretrained and not at.is_tiled
    value = 16 if size <= 192 or whole else 8
    reason = f"larger batches of {size:.0f}x{size:.0f} inputs would mean too few steps"
    if whole:
        reason = "a pretrained network needs fewer steps, and steadier ones"
    if not at.is_tiled and num < 8 * value:
        value = max(4, min(8, num // 2))
        reason = f"with {num} training images, small batches leave enough steps an epoch"
    each = at.machine.bytes_per_megapixel.get(at.text("model.name"))
    if each is not None and at.machine.free_bytes is not None:
        fits = int(MEMORY_SHARE * at.machine.free_bytes / (each * size**2 / 1e6))
        if fits < value:
            return max(2, fits), f"only {at.machine.free_bytes / 1e9:.1f} GB of memory are free"
    return value, reason


def orientation(at: cost.Situation) -> cost.Choice:
    """Choose what augmentation may turn or mirror, judged from the images."""
    facts = at.fingerprint
    up, side = facts.up_down, facts.left_right
    if at.is_tiled and max(up.share, side.share) < LOCAL:
        if not up.is_broken:
            return "any", f"patches look alike upside down (p = {up.p:.2f})"
        return "any", "patches show small objects, which hardly tell where up is"
    if up.is_broken and side.is_broken and side.share > 0.02:
        return "fixed", f"left and right differ, too (p = {side.p:.3f}), so nothing is mirrored"
    if up.is_broken:
        return "upright", f"top and bottom differ in {up.num} images alike (p = {up.p:.3f})"
    if facts.is_stack:
        return "any", "slices of a volume have no up"
    if up.num < MIN_UNITS:
        return "any", f"{up.num} independent images can't tell, and nothing suggests an up"
    return "any", f"{up.num} images look alike upside down (p = {up.p:.2f})"


def _is_repetitive(at: cost.Situation) -> bool:
    """Tell whether images come back so often that augmentation must vary them more."""
    often = cost.num_passes(at)
    few = at.fingerprint.num_train < FEW_IMAGES
    return often > MANY_PASSES or (few and often >= SOME_PASSES)


def preset(at: cost.Situation) -> cost.Choice:
    """Choose how strongly the images are augmented."""
    images = counted(at.fingerprint.num_train, "training image", "training images")
    seen = f"{images}, each seen {cost.times(cost.num_passes(at))}"
    if _is_repetitive(at):
        if is_coarse(at):
            return "strong", f"{seen}: repeats must vary"
        return "medium", f"{seen}; blur and noise would erase thin or small objects"
    if cost.num_passes(at) < SOME_PASSES and at.fingerprint.num_train >= FEW_IMAGES:
        return "mild", f"{seen}: hardly any repeats"
    return "medium", seen


def invert(at: cost.Situation) -> cost.Choice:
    """Let light and dark change places where few images show one of the two ways, or one rarely."""
    facts = at.fingerprint
    if _is_mixed(at):
        reason = f"{facts.grey_share:.0%} of the images are grey: inverting helps them all"
        return MIXED_INVERT, reason
    # Slices of one volume are stained and lit alike, and so will be those to come.
    if not facts.is_grey or facts.is_stack or facts.num_train >= FEW_IMAGES:
        return None
    if 0 < facts.brighter_share < 1:
        return None
    side = "brighter" if facts.brighter_share else "darker"
    return INVERT, f"the foreground is {side} in all {facts.num_train}; new images may differ"


def grey(at: cost.Situation) -> cost.Choice:
    """Take colours away where coloured images are few among grey ones."""
    reason = "coloured images are few among grey ones, and stains and lamps differ"
    return (MIXED_GREY, reason) if _is_mixed(at) else None


def _is_mixed(at: cost.Situation) -> bool:
    return 0.5 <= at.fingerprint.grey_share < 1 and at.fingerprint.num_train < FEW_MIXED


def only_for_thin(value: float, reason: str) -> cost.Rule:
    """Make a rule for what replaces blur and noise where these would erase thin objects."""

    def rule(at: cost.Situation) -> cost.Choice:
        return (value, reason) if not is_coarse(at) and _is_repetitive(at) else None

    return rule


def always(value: cost.Value, reason: str) -> cost.Rule:
    """Make a rule that always gives the same value."""
    return lambda _: (value, reason)


def loss(at: cost.Situation) -> cost.Choice:
    """Choose the loss."""
    share = at.fingerprint.mean_foreground
    return "bce-dice", f"{share:.1%} foreground; the Dice term looks after the rarer class"


def lr(at: cost.Situation) -> cost.Choice:
    """Choose the peak of the learning rate."""
    batch, peak = at.number("train.batch_size"), SCRATCH_PEAK
    if at.decided.get("model.start_from") is not None:
        peak = CONTINUED_PEAK
    elif at.is_pretrained:
        return PRETRAINED_PEAK, "a fresh decoder learns in few steps at this rate"
    if at.decided.get("model.options") == SMALL_OPTIONS:
        peak = SMALL_PEAK
    lr = round(peak * math.sqrt(min(1.0, batch / 16)), 5)
    fewer = f", less for batches of {batch:.0f}" if batch < 16 else ""
    return lr, f"{peak:g} is for batches of 16{fewer}"


def encoder_lr_factor(at: cost.Situation) -> cost.Choice:
    """Choose the share of the rate at which a pretrained encoder learns."""
    if not at.is_pretrained:
        return None
    return ENCODER_FACTOR, "its weights are good already, and large steps would lose them"


def freeze_batch_norm(at: cost.Situation) -> cost.Choice:
    """Keep ImageNet's statistics; an earlier model of one's own follows the new data."""
    if not at.is_pretrained or at.decided.get("model.start_from") is not None:
        return None
    return True, "ImageNet's statistics are steadier than those of a few batches"


def per_epoch(at: cost.Situation) -> cost.Choice:
    """Choose the patches or images of an epoch."""
    if "train.epochs" in at.given and at.budget is None:
        return "auto" if at.is_tiled else "all", "each epoch is one pass over the images"
    num, batch = at.fingerprint.num_train, int(at.number("train.batch_size"))
    each = max(LEAST_STEPS, round(cost.num_inputs(at) / NUM_EPOCHS / batch)) * batch
    if not at.is_tiled and num / 1.5 <= each <= num * 1.5:
        return "all", f"all {num} images"
    validations = counted(max(1, round(cost.num_inputs(at) / each)), "validation", "validations")
    return each, f"about {validations}, which take a few per cent of the time"


def epochs(at: cost.Situation) -> cost.Choice:
    """Choose the number of epochs."""
    views = cost.num_inputs(at)
    each = at.decided["patches.per_epoch" if at.is_tiled else "train.per_epoch"]
    inputs = each if isinstance(each, int) else at.fingerprint.num_train
    reason = f"{views:,.0f} inputs in all" if at.budget is None else "expected within the budget"
    return max(1, round(views / inputs)), reason


def budget_minutes(at: cost.Situation) -> cost.Choice:
    """Pass the budget on to the run."""
    if at.budget is None:
        return None
    return round(at.budget / 60, 3), "the schedule follows the clock, so that the run ends in time"


def ema_decay(at: cost.Situation) -> cost.Choice:
    """Choose the decay of the moving average of the weights."""
    steps = cost.num_inputs(at) / at.number("train.batch_size")
    decay = round(min(0.998, max(0.9, 1 - 12 / max(steps, 1))), 4)
    span = 1 / (1 - decay)
    if span >= steps:
        return decay, "the run is so short that the average covers all of it"
    return decay, f"averages about {span:.0f} of {steps:,.0f} steps: steadier than the last one"


def postprocess(at: cost.Situation) -> cost.Choice:
    """Choose whether post-processing is tried in validation."""
    num = at.fingerprint.num_val
    if num < MIN_VAL:
        judges = counted(num, "validation image", "validation images")
        return "none", f"{judges} can't tell what helps"
    if at.decided.get("train.threshold", "tune") != "tune":
        return "none", "a fixed threshold is meant for the network's own prediction"
    return "tune", "specks, holes or smaller objects are removed where that helps on validation"


def tta(at: cost.Situation) -> cost.Choice:
    """Choose whether test-time augmentation is tried in validation."""
    num, views = at.fingerprint.num_val, cost.num_mirrored(at)
    if views == 1:
        return "none", "mirrored images would be another kind of image"
    if views * cost.scoring_seconds(at) > TTA_SHARE * cost.run_seconds(at):
        return "none", f"predicting {num} validation images {views} times would take too long"
    return "tune", f"averages {views} mirrored views where that helps on validation"


def threshold(at: cost.Situation) -> cost.Choice:
    """Fix the threshold where too few images could tune it."""
    num = at.fingerprint.num_val
    if num >= MIN_VAL:
        return None
    return 0.5, f"a threshold tuned on {counted(num, 'image', 'images')} would be worse on others"


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
        "train.batch_size": batch_size,
        "augment.orientation": orientation,
        "augment.preset": preset,
        "augment.elastic": only_for_thin(0.015, "deformed shapes stand in for more images"),
        "augment.gamma": only_for_thin(0.3, "so do other exposures"),
        "augment.invert": invert,
        "augment.grey": grey,
        "loss.name": loss,
        "optimizer.name": always("adamw", "learns in few steps, and its rate holds for most data"),
        "optimizer.lr": lr,
        "optimizer.encoder_lr_factor": encoder_lr_factor,
        "optimizer.weight_decay": always(0.02, "goes with the high peak of the learning rate"),
        "schedule.name": always("onecycle", "rises, then falls to zero just as the run ends"),
        "schedule.rise": always(0.15, "a seventh of the run to warm up"),
        "patches.per_epoch": lambda at: per_epoch(at) if at.is_tiled else None,
        "train.per_epoch": lambda at: None if at.is_tiled else per_epoch(at),
        "train.epochs": epochs,
        "train.budget_minutes": budget_minutes,
        "train.freeze_batch_norm": freeze_batch_norm,
        "train.ema_decay": ema_decay,
        "train.postprocess": postprocess,
        "train.tta": tta,
        "train.threshold": threshold,
})  # fmt: skip
"""The rule of each setting, in the order in which they are decided: each rule sees what those above
it chose, and everything that the user gave. A new rule is a function and its row here."""
GIVEN = "you said so"
NO_TEST_UP_TO = 50
FEW_RATIOS = (0.7, 0.3, 0.0)
STACK_GAP = 5


@dataclass(frozen=True, kw_only=True)
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
            settings.append(Setting(key=key, value=value, reason=reason, is_given=key in given))
            at = at.having({key: value})
    told = tuple(_warnings(at))
    return Plan(settings=tuple(settings), warnings=told, fingerprint=facts, machine=machine)


def few_ratios(num: int) -> list[Setting]:
    """Split few images, pages or training images so that enough of them validate."""
    if num > NO_TEST_UP_TO:
        return []
    reason = f"only {num} images: 30% are for validation, and none are kept for a test"
    return [Setting(key="data.split.ratios", value=FEW_RATIOS, reason=reason)]


def stack_settings(num_pages: int) -> list[Setting]:
    """Split a stack of so many pages in blocks, where nobody says how."""
    gap = min(STACK_GAP, num_pages // 20)
    whole = "neighbouring slices look nearly the same, so whole blocks stay together"
    left_out = "slices left out between two splits"
    return [
        Setting(key="data.split.method", value="block", reason=whole),
        Setting(key="data.split.gap", value=gap, reason=left_out),
    ]


def _warnings(at: Situation) -> Iterator[str]:
    facts = at.fingerprint
    if facts.num_train < NO_TEST_UP_TO:
        yield (
            f"{facts.num_train} training images are few: expect a lower score on new images than "
            f"on the {facts.num_val} validation images; --folds 5 scores every image, and more "
            "masks help most"
        )
    if facts.num_val < MIN_VAL:
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
