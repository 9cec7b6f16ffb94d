"""`binseg recipes`: the training recipes that come with binseg."""

from typing import Annotated

import typer

from binseg.cli.console import show, write_json_answer
from binseg.cli.options import Json, register
from binseg.cli.shell import Verbs


def add_to(app: typer.Typer) -> None:
    """Register the verb and its three parts."""
    group = typer.Typer(
        cls=Verbs,
        help="List the recipes, print one, or print the schema of all.",
        epilog="[bold]Examples[/bold]\n\nbinseg recipes\n\nbinseg recipes show demo > mine.yaml",
    )
    group.callback(invoke_without_command=True)(_list_by_default)
    register(group, list_, name="list", examples=("binseg recipes list --json",))
    register(group, show_, name="show", examples=("binseg recipes show demo > mine.yaml",))
    register(group, schema, name="schema", examples=("binseg recipes schema > recipe.json",))
    app.add_typer(group, name="recipes")


def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


def list_(json_: Json = False) -> None:
    """List every recipe with its source and the figure that its source states."""
    from binseg.cli.screen import rows_table
    from binseg.pipelines.catalogue import list_recipes

    lines = list_recipes()
    if json_:
        write_json_answer(lines)
    else:
        titles = {"name": "recipe", "model": "model", "summary": "what", "source": "source"}
        show(rows_table(lines, titles | {"expected": "expected"}))


def show_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe's name.")],
    json_: Json = False,
) -> None:
    """Print one recipe, ready to be saved and changed."""
    from binseg.config import load_recipe, recipe_text

    if json_:
        write_json_answer(load_recipe(name).model_dump(mode="json"))
    else:
        typer.echo(recipe_text(name), nl=False)


def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML."""
    from binseg.config import recipe_schema

    typer.echo(recipe_schema())
