"""`binseg verify`: check that a model computes here as it did where it was made."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import message, show, write_json_answer
from binseg.cli.options import Json, register

EXAMPLES = (
    "binseg verify runs/first",
    "binseg verify model.zip",
    "binseg verify model.onnx",
    "binseg verify model.pt2 --trust-code",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, verify, name="verify", examples=EXAMPLES)


def verify(
    *,
    path: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A run, a bundle, or a file of `binseg export`."),
    ],
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code", help="Open a .pt2 file, which may run code: one that you made."
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Compute the model's own reference sample again and compare; exit code 1 if it differs."""
    from binseg.pipelines.handing_on import verify as run

    found, left_out = run(path, trust_code=trust_code)
    if json_:
        write_json_answer({"runtimes": [one.as_dict() for one in found], "left_out": left_out})
    else:
        for one in found:
            verdict = "PASS" if one.passed else "FAIL"
            show(
                f"{verdict}  {one.runtime} {one.precision}: off by {one.largest_difference:.2g}, "
                f"allowed {one.tolerance:g}; masks agree to {one.agreement:.4f}"
            )
        for line in left_out:
            message(f"left out: {line}")
    if not all(one.passed for one in found):
        raise typer.Exit(1)
