"""`binseg models` and `binseg encoders`: the networks that can be trained."""

import typer

from binseg.cli.console import show, write_json_answer
from binseg.cli.options import Json, register

__all__ = ["add_to", "encoders", "models"]


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    register(app, models, name="models", examples=("binseg models", "binseg models --json"))
    register(app, encoders, name="encoders", examples=("binseg encoders", "binseg encoders --json"))


def models(json_: Json = False) -> None:
    """List the networks that have a name, with their decoder and encoder."""
    from binseg.cli.tables import models_table
    from binseg.pipelines.catalogue import list_models

    lines = list_models()
    if json_:
        write_json_answer([line.as_dict() for line in lines])
    else:
        show(models_table(lines))


def encoders(json_: Json = False) -> None:
    """List every encoder with its parameters (3 channels in) and published weights.

    Each goes with any decoder. Weights that are not at hand are fetched when they are first used.
    """
    from binseg.cli.tables import encoders_table
    from binseg.pipelines.catalogue import list_encoders

    lines = list_encoders()
    if json_:
        write_json_answer([line.as_dict() for line in lines])
    else:
        show(encoders_table(lines))
