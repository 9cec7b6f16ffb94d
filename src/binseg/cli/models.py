"""`binseg models`: the networks that can be trained."""

import typer

from binseg.cli.console import show, write_json_answer
from binseg.cli.options import Json, register

__all__ = ["add_to", "models"]

EXAMPLES = ("binseg models", "binseg models --json")


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, models, name="models", examples=EXAMPLES)


def models(json_: Json = False) -> None:
    """List every model with its number of parameters (3 channels in) and its source."""
    from binseg.cli.screen import models_table
    from binseg.pipelines.catalogue import list_models

    lines = list_models()
    if json_:
        write_json_answer(lines)
    else:
        show(models_table(lines))
