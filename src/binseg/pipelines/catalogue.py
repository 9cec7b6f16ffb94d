"""What can be chosen by name: models and recipes, with their sources."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from binseg.config import load_recipe, recipe_names
from binseg.config.recipe import Option

__all__ = ["ModelLine", "RecipeLine", "list_models", "list_recipes"]


@dataclass(frozen=True, kw_only=True)
class ModelLine:
    """One network."""

    name: str
    num_parameters: int
    """With 3 channels in and the default options."""
    summary: str
    source: str
    options: Mapping[str, Option]
    """All that it takes, with their defaults."""

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RecipeLine:
    """One recipe that comes with binseg."""

    name: str
    model: str
    summary: str
    source: str
    expected: str
    cost: str

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return asdict(self)


def list_models() -> list[ModelLine]:
    """List every network of the zoo."""
    from binseg.models.zoo import MODELS

    return [
        ModelLine(
            name=entry.name,
            num_parameters=entry.num_parameters,
            summary=entry.summary,
            source=entry.source,
            options=dict(entry.defaults),
        )
        for entry in MODELS.values()
    ]


def list_recipes() -> list[RecipeLine]:
    """List every recipe of the package."""
    lines = []
    for name in recipe_names():
        recipe = load_recipe(name)
        lines.append(
            RecipeLine(
                name=name,
                model=recipe.model.name,
                summary=recipe.about.summary,
                source=recipe.about.source,
                expected=recipe.about.expected,
                cost=recipe.about.cost,
            )
        )
    return lines
