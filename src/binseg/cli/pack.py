"""`binseg pack`: a model as one file, to hand on."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import show, write_json_answer
from binseg.cli.options import Json, Run, register
from binseg.errors import UsageError

EXAMPLES = (
    "binseg pack runs/first --out model.zip",
    "binseg pack runs/first --out small.zip --half --name cracks --licence 'CC BY 4.0'",
    "binseg predict model.zip photo.jpg --out predicted/",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, pack, name="pack", examples=EXAMPLES)


def pack(
    *,
    run: Run,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.zip", help="The zip to write.")],
    half: Annotated[
        bool,
        typer.Option("--half", help="Weights in 16 bits: half the size, nearly equal predictions."),
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name on the card.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence of the weights, for the card.")
    ] = None,
    note: Annotated[
        str | None, typer.Option("--note", help="A note about the data, for the card.")
    ] = None,
    json_: Json = False,
) -> None:
    """Pack a model as one zip file; every verb takes it like the folder of its run."""
    from binseg.pipelines.handing_on import pack as run_pack

    if out.suffix.lower() != ".zip":
        raise UsageError(f"{out}: name it something.zip, by which it is known again")
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out, or remove it first")
    result = run_pack(run, out, half=half, name=name, licence=licence, note=note)
    if json_:
        write_json_answer(result.as_dict())
    else:
        changed = result.largest_difference
        told = "" if changed is None else f", probabilities off by up to {changed:.2g}"
        show(f"{out}: model {result.id} ({result.name}), {result.num_bytes / 1e6:.1f} MB{told}")
        if result.left_out:
            show(
                f"left out: {', '.join(result.left_out)}, of the weights before rounding; "
                f"binseg export {out} --to bundle --out FOLDER makes it anew"
            )
