"""`binseg pack`: a model as one file, to hand on."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import show, write_json_answer
from binseg.cli.options import Json, Run, register
from binseg.errors import UsageError

__all__ = ["add_to", "pack"]

EXAMPLES = (
    "binseg pack runs/first --out model.zip",
    "binseg predict model.zip photo.jpg --out predicted/",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, pack, name="pack", examples=EXAMPLES)


def pack(
    *,
    run: Run,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.zip", help="The zip to write.")],
    json_: Json = False,
) -> None:
    """Pack a model as one zip file; every verb takes it like the folder of its run."""
    from binseg.bundle import pack_zip, read_bundle

    if out.suffix.lower() != ".zip":
        raise UsageError(f"{out}: name it something.zip, by which it is known again")
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out, or remove it first")
    bundle = read_bundle(run)
    pack_zip(bundle, out)
    size = out.stat().st_size
    if json_:
        write_json_answer({"path": str(out), "id": bundle.card.id, "bytes": size})
    else:
        show(f"{out}: model {bundle.card.id} ({bundle.card.name}), {size / 1e6:.1f} MB")
