"""What an epoch's validation says of a run that learns nothing: the sign, and what to change."""

from binseg.config.recipe import Recipe
from binseg.training.validation import ValidationScores

__all__ = ["SYMPTOMS", "symptom_of", "tell"]

ALL = 0.999
"""Share of the pixels from which on an answer is "everything"."""
NOTHING = 0.001
"""Dice up to which nothing is found."""
RARE = 0.05
"""Share of foreground below which a pixel-wise loss is content with none."""
LASTING = 3
"""After so many epochs it is no longer the first epochs' fumbling."""

SYMPTOMS = ("empty", "full", "elsewhere")


def symptom_of(scores: ValidationScores) -> str | None:
    """Name what is wrong with an epoch's answers, or None; nothing is wrong without foreground."""
    if scores.true_share == 0:
        return None
    if scores.answered_share == 0:
        return "empty"
    if scores.answered_share >= ALL > scores.true_share:
        return "full"
    return "elsewhere" if scores.dice <= NOTHING else None


def tell(symptom: str, scores: ValidationScores, recipe: Recipe, *, num_epochs: int) -> str | None:
    """Give the line for a symptom, where it is new or has lasted.

    Args:
        symptom: of `SYMPTOMS`.
        scores: of the latest epoch.
        recipe: names the settings to change.
        num_epochs: for which it is there.
    """
    if num_epochs not in {1, LASTING}:
        return None
    sign, advice = _WORDS[symptom](scores, recipe)
    when = "normal early on; if it stays, " if num_epochs < LASTING else f"{LASTING} epochs now: "
    return f"{sign}: {when}{advice}"


def _empty(scores: ValidationScores, recipe: Recipe) -> tuple[str, str]:
    advice = f"raise optimizer.lr (now {recipe.optimizer.lr:g})"
    if scores.true_share < RARE and recipe.loss.name == "bce":
        advice = f"set loss.name to bce-dice (now {recipe.loss.name}) or {advice}"
    share = f"foreground is {scores.true_share:.2%} of the validation pixels"
    return f"validation Dice {scores.dice:.3f}, since nothing is found ({share})", advice


def _full(scores: ValidationScores, recipe: Recipe) -> tuple[str, str]:
    return (
        f"validation Dice {scores.dice:.3f}, which an all-white mask scores: everything is called "
        "foreground",
        f"lower optimizer.lr (now {recipe.optimizer.lr:g}), and look with `binseg check` whether "
        "the masks are what you mean (data.foreground, data.border)",
    )


def _elsewhere(scores: ValidationScores, recipe: Recipe) -> tuple[str, str]:
    del recipe
    return (
        f"validation Dice {scores.dice:.3f}, though {scores.answered_share:.2%} of the pixels are "
        "called foreground: what is found is not what the masks show",
        "look with `binseg check` whether masks are inverted, shifted or of other images "
        "(data.foreground)",
    )


_WORDS = {"empty": _empty, "full": _full, "elsewhere": _elsewhere}
