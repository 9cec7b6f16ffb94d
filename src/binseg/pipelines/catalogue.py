"""Models and recipes that can be chosen by name, with their sources, as plain rows."""

from binseg.config import load_recipe, recipe_names

__all__ = ["list_models", "list_recipes"]

Row = dict[str, object]


def list_models() -> list[Row]:
    """List every network of the zoo; parameters are counted with 3 channels in."""
    from binseg.models.zoo import MODELS

    return [
        {
            "name": entry.name,
            "num_parameters": entry.num_parameters,
            "summary": entry.summary,
            "source": entry.source,
            "options": dict(entry.defaults),
        }
        for entry in MODELS.values()
    ]


def list_recipes() -> list[Row]:
    """List every recipe of the package."""
    rows: list[Row] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        about = recipe.about.model_dump(include={"summary", "source", "expected", "cost"})
        rows.append({"name": name, "model": recipe.model.name, **about})
    return rows
