"""The options that several verbs share, so that one name means one thing everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.shell import Verb

_DATA = typer.Option(
    "--data",
    metavar="PATH",
    help="Folder, manifest or annotation file; 'synthetic' for the built-in generator.",
)
Data = Annotated[str | None, _DATA]
RequiredData = Annotated[str, _DATA]
Border = Annotated[
    str | None,
    typer.Option(
        "--border",
        metavar="RULE",
        help="What the border of a trimap counts as: foreground, background or ignore.",
    ),
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu or cuda.")]
Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Download Oxford-IIIT Pet (800 MB) into --data if it is absent."
    ),
]
TTAOption = Annotated[
    str | None,
    typer.Option(
        "--tta",
        metavar="KIND",
        help="Average over flips of the image: none, horizontal (2x the time) or all (4x); by "
        "default as stored in the model.",
    ),
]
With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        metavar="RUN",
        help="A further model (repeatable); the mean of all probabilities is the prediction.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME", help="A recipe of `binseg recipes`, or a YAML file."),
]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, or a bundle (folder or .zip).")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change any setting of the recipe (repeatable): --set schedule.name=none.",
    ),
]


def nested(**flags: object) -> dict[str, dict[str, object]]:
    """Turn flags `section__key=value` into a recipe's sections; those not given are left out.

    >>> nested(train__epochs=3, train__seed=None)
    {'train': {'epochs': 3}}
    """
    sections: dict[str, dict[str, object]] = {}
    for name, value in flags.items():
        section, _, key = name.partition("__")
        if value is not None:
            sections.setdefault(section, {})[key] = value
    return sections


def register(
    app: typer.Typer, function: Callable[..., None], *, name: str, examples: tuple[str, ...]
) -> None:
    """Add a verb, with its examples below its help."""
    epilog = "\n\n".join(("[bold]Examples[/bold]", *examples))
    app.command(name, cls=Verb, epilog=epilog, no_args_is_help=False)(function)
