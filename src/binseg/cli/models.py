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
    from binseg.pipelines.catalogue import list_models

    titles = {"name": "model", "num_parameters": "parameters", "decoder": "decoder"}
    _answer(list_models(), titles | {"encoder": "encoder", "summary": "what"}, json_)


def encoders(json_: Json = False) -> None:
    """List every encoder with its number of parameters (3 channels in); all go with any decoder."""
    from binseg.pipelines.catalogue import list_encoders

    titles = {"name": "encoder", "num_parameters": "parameters", "summary": "what"}
    _answer(list_encoders(), titles | {"source": "source"}, json_)


def _answer(rows: list[dict[str, object]], titles: dict[str, str], json_: bool) -> None:
    from binseg.cli.screen import rows_table

    if json_:
        write_json_answer(rows)
    else:
        show(rows_table(rows, titles))
