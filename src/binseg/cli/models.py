"""`binseg models` and `binseg encoders`: the networks that can be trained."""

from typing import Any

import typer

from binseg.cli.console import show, write_json_answer
from binseg.cli.options import Json, register


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
    """List every encoder with its parameters (3 channels in) and published weights.

    Each goes with any decoder. Weights that are not at hand are fetched when they are first used.
    """
    from binseg.pipelines.catalogue import list_encoders

    rows = list_encoders()
    if not json_:
        rows = [row | {"weights": _describe_weights(row["weights"])} for row in rows]
    titles = {"name": "encoder", "num_parameters": "parameters", "weights": "weights"}
    _answer(rows, titles | {"summary": "what"}, json_)


def _describe_weights(weights: Any) -> str:
    return (
        "none"
        if not weights
        else ", ".join(
            f"{one['name']} ({one['licence']}, {one['num_bytes'] / 1e6:.0f} MB"
            f"{', at hand' if one['at_hand'] else ''})"
            for one in weights
        )
    )


def _answer(rows: list[dict[str, object]], titles: dict[str, str], json_: bool) -> None:
    from binseg.cli.screen import rows_table

    if json_:
        write_json_answer(rows)
    else:
        show(rows_table(rows, titles))
