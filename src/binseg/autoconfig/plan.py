"""A plan: every setting that the rules chose, with its reason, as a recipe that runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from binseg.autoconfig import learning, resolution
from binseg.autoconfig.fingerprint import Fingerprint
from binseg.autoconfig.situation import Machine, Setting, Situation, Value
from binseg.config import Recipe, load_recipe

__all__ = ["RULES", "Plan", "draw_up", "few_ratios", "few_split_settings", "split_settings"]

Rule = Callable[[Situation], list[Setting]]

RULES: tuple[Rule, ...] = (
    learning.choose_channels,
    learning.choose_intensity,
    resolution.choose_fit,
    resolution.choose_model,
    resolution.choose_size,
    resolution.choose_progressive,
    resolution.choose_patches,
    learning.choose_batch,
    learning.choose_orientation,
    learning.choose_augmentation,
    learning.choose_loss,
    learning.choose_optimizer,
    learning.choose_schedule,
    learning.choose_epochs,
    learning.choose_average,
    resolution.choose_finish,
)
"""In their order: each sees what those before it decided."""
GIVEN = "you said so"
FEW = 50
FEW_RATIOS = (0.7, 0.3, 0.0)
STACK_GAP = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train, and why."""

    settings: tuple[Setting, ...]
    warnings: tuple[str, ...]
    fingerprint: Fingerprint
    machine: Machine

    def recipe(self, base: Mapping[str, Mapping[str, object]]) -> Recipe:
        """The plan as a recipe.

        Args:
            base: what the user gave, section by section; it wins.
        """
        return load_recipe(sections=_sections(self.settings, base))

    def setting(self, key: str) -> Setting:
        """One line of the plan, by its key."""
        return next(one for one in self.settings if one.key == key)


def draw_up(
    fingerprint: Fingerprint,
    machine: Machine,
    *,
    budget: float | None,
    given: Mapping[str, Value],
    before: Sequence[Setting] = (),
) -> Plan:
    """Apply all rules.

    Args:
        fingerprint: of the training images.
        machine: that will train.
        budget: seconds for the whole run; None where time doesn't matter.
        given: settings that the user chose, by their keys; the rules after them follow them.
        before: settings that were decided before the images were looked at (the split).
    """
    # What was given is known from the start: some rules follow settings that come after them.
    at = Situation(fingerprint=fingerprint, machine=machine, budget=budget, decided=dict(given))
    settings = list(before)
    for rule in RULES:
        decided = [
            Setting(key=one.key, value=given[one.key], reason=GIVEN, is_given=True)
            if one.key in given
            else one
            for one in rule(at)
            # Options belong to the network that the rule chose.
            if one.key != "model.options" or one.key in given or "model.name" not in given
        ]
        at = at.after(decided)
        settings += decided
    known = {one.key for one in settings}
    settings += [
        Setting(key=key, value=value, reason=GIVEN, is_given=True)
        for key, value in given.items()
        if key not in known
    ]
    return Plan(
        settings=tuple(settings),
        warnings=tuple(_warnings(at)),
        fingerprint=fingerprint,
        machine=machine,
    )


def few_split_settings(num: int) -> list[Setting]:
    """How few images are split, where neither the data nor the user says.

    Args:
        num: images in all.
    """
    ratios = few_ratios(num)
    return [
        Setting(key="data.split.method", value="ratio", reason=one.reason) for one in ratios
    ] + ratios


def few_ratios(num: int) -> list[Setting]:
    """The shares of few images, pages or training images that come without validation.

    Args:
        num: how many are dealt.
    """
    if num > FEW:
        return []
    reason = (
        f"{num} images: three tenths validate, so that threshold and score rest on some, and "
        "none of them is kept for a test"
    )
    return [Setting(key="data.split.ratios", value=FEW_RATIOS, reason=reason)]


def split_settings(*, is_stack: bool, num_pages: int) -> list[Setting]:
    """How images are split, where the data doesn't say; decided before any is looked at.

    Args:
        is_stack: pages of stacks.
        num_pages: in all.
    """
    if not is_stack:
        return []
    gap = min(STACK_GAP, num_pages // 20)
    reason = "neighbouring slices are nearly the same image: whole blocks, with a gap between"
    return [
        Setting(key="data.split.method", value="block", reason=reason),
        Setting(key="data.split.gap", value=gap, reason=reason),
    ]


def _warnings(at: Situation) -> list[str]:
    facts = at.fingerprint
    found = []
    if facts.num_train < FEW:
        found.append(
            f"{facts.num_train} training images are few: expect new images to fare worse than "
            f"validation, which rests on {facts.num_val}; --folds 5 judges by every image, and "
            "more masks help most"
        )
    if facts.num_val < resolution.LEAST_JUDGES:
        found.append(
            f"{facts.num_val} validation images can hardly choose between epochs or thresholds: "
            "read the score as a rough guess"
        )
    if facts.num_units < 2:
        found.append(
            "all images come from one stack: how well it does on another one can't be known here"
        )
    if facts.empty_share > 0.5:
        found.append(f"{facts.empty_share:.0%} of the images have no foreground at all")
    is_stretched = at.decided.get("input.intensity") == "percentile"
    if is_stretched and facts.mean_foreground < learning.RARE_AS_CLIPPED:
        found.append(
            f"{facts.mean_foreground:.2%} of the pixels are foreground, and stretching clips 0.5% "
            "at either end: if the things are the brightest or darkest pixels, save the images "
            "in 8 bits over the range that matters, which are not stretched"
        )
    return found


def _sections(
    settings: Sequence[Setting], base: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """Lay the user's own sections over the plan's settings."""
    tree: dict[str, dict[str, object]] = {}
    for one in settings:
        if one.is_given and one.key == "model.name":  # a label; `base` has what it stands for
            continue
        section, _, field = one.key.partition(".")
        value = list(one.value) if isinstance(one.value, tuple) else one.value
        below: dict[str, object] = tree.setdefault(section, {})
        *outer, last = field.split(".")
        for name in outer:
            inner = below.setdefault(name, {})
            assert isinstance(inner, dict)
            below = inner
        below[last] = value
    for section, fields in base.items():
        _lay(tree.setdefault(section, {}), fields)
    return tree


def _lay(tree: dict[str, object], changes: Mapping[str, object]) -> None:
    for key, value in changes.items():
        below = tree.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict):
            _lay(below, value)
        else:
            tree[key] = value
