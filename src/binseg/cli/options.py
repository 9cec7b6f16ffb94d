"""The options of the verbs; those that several share mean one thing everywhere."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import OptionInfo

from binseg.cli.console import Verb
from binseg.errors import UsageError


def option(text: str, metavar: str | None = None, **more: Any) -> Any:
    """Describe an option by its help; it is called as its parameter is."""
    return typer.Option(help=text, metavar=metavar, **more)


def argument(text: str, metavar: str) -> Any:
    """Describe an argument by its help."""
    return typer.Argument(help=text, metavar=metavar)


_DATA = option(
    "Folder, manifest or annotation file; 'synthetic' for the built-in generator.", "PATH"
)
Data = Annotated[str | None, _DATA]
Place = Annotated[str | None, argument("The images, as --data names them.", "DATA")]
Border = Annotated[
    str | None,
    option("What the border of a trimap counts as: foreground, background or ignore.", "RULE"),
]
Budget = Annotated[
    str | None,
    option(
        "Time for the whole run: 20m, 2h, 2m30s, or none; 20m for a plan unless epochs are given.",
        "TIME",
    ),
]
Device = Annotated[str | None, option("auto, cpu, cuda, or mps (Apple; untested).", "NAME")]
Backend = Annotated[str, option("The runtime; auto takes the best.", "NAME")]
Precision = Annotated[str, option("auto, fp32, bf16 or int8.", "KIND")]
From = Annotated[
    str | None,
    option("An earlier model to continue on this data: a run, a bundle, or pets.", "RUN"),
]
BatchSize = Annotated[int | None, option("Images a step.")]
Model = Annotated[str | None, option("A name of `binseg models`.", "NAME")]
InputsAtOnce = Annotated[int, option("Inputs computed at once.", min=1)]
Host = Annotated[str, option("Address to listen on; 0.0.0.0 lets other devices in.")]
Download = Annotated[bool, option("Download Oxford-IIIT Pet (800 MB) into --data if it is absent.")]
TTAOption = Annotated[
    str | None,
    option(
        "Average over flips: none, horizontal (2x time), all (4x); default: the model's.", "KIND"
    ),
]
With = Annotated[
    list[Path] | None,
    option("A further model (repeatable); the mean of all probabilities is the prediction.", "RUN"),
]
Json = Annotated[bool, option("Print the result as JSON on stdout.")]
Recipe = Annotated[str | None, option("A recipe of `binseg recipes`, or a YAML file.", "NAME")]
Run = Annotated[Path, argument("Folder of a run, or a bundle (folder or .zip).", "RUN")]
Seed = Annotated[int | None, option("Decides every random choice.")]
Set = Annotated[
    list[str] | None,
    option("Change any setting of the recipe (repeatable): --set schedule.name=none.", "KEY=VALUE"),
]
ShardOption = Annotated[
    str | None,
    option(
        "Take this share of the images alone, such as 3/100; auto, or auto/100: by SLURM's or "
        "Kubernetes' number of the job. `binseg gather` joins the shares.",
        "NUMBER/OF",
    ),
]
Size = Annotated[int | None, option("Height and width of the model's input.")]
TokenFile = Annotated[
    Path | None,
    option("Requests must carry the token in this file (or in $BINSEG_TOKEN).", "FILE"),
]


def one_data(place: str | None, data: str | None) -> str | None:
    """Give the data that was named, in either of the two ways."""
    if place is not None and data is not None:
        raise UsageError(f"two data sets are named, {place} and --data {data}; give one of them")
    return data if place is None else place


def needed_data(place: str | None, data: str | None, *, verb: str) -> str:
    """Give the data that was named; a verb that can't do without says how it is called."""
    found = one_data(place, data)
    if found is None:
        raise UsageError(f"which images? For example: binseg {verb} my_folder/")
    return found


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


def as_printed(title: str, *commands: str) -> str:
    """Lay out commands below a title, so that help breaks none of them."""
    return "\n".join(("\b", title, *(f"  {command}" for command in commands)))


def register(app: typer.Typer, function: Callable[..., None]) -> None:
    """Add a verb: a function whose docstring is its help, with `Examples:` at the end."""
    text, _, below = (inspect.getdoc(function) or "").partition("\n\nExamples:\n")
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)  # a window breaks paragraphs anew
    for key, parameter in inspect.signature(function).parameters.items():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(info, OptionInfo) and info.default is ...:
                info.default = f"--{_plain(key)}"  # Typer's own name of a switch has a --no- beside
    app.command(
        _plain(function.__name__),
        cls=Verb,
        help=text,
        short_help=text.partition("\n\n")[0],  # else it is cut
        epilog=as_printed("Examples:", *(line.strip() for line in below.splitlines())),
        no_args_is_help=False,
    )(function)


def _plain(name: str) -> str:
    """Give a name of Python as it is at the shell."""
    return name.rstrip("_").replace("_", "-")
