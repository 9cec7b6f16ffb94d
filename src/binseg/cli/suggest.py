"""`binseg suggest`: which images to label next."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Json, RequiredData, register

EXAMPLES = (
    "binseg suggest --data my_images/ --model runs/first",
    "binseg suggest --data my_images/ --model runs/first --by uncertainty --num 50 --json",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, suggest, name="suggest", examples=EXAMPLES)


def suggest(
    context: typer.Context,
    *,
    data: RequiredData,
    model: Annotated[
        Path, typer.Option("--model", metavar="RUN", help="A run or bundle that looks at them.")
    ],
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="RULE",
            help="random (seldom one that seems empty), or uncertainty (where the model doubts).",
        ),
    ] = "random",
    num: Annotated[int, typer.Option("--num", min=1, help="Images to name.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Decides every random choice.")] = 0,
    json_: Json = False,
) -> None:
    """Rank the images without a mask, the one to label next first."""
    from binseg.pipelines.label_images import suggest as run

    ranked = run(data, model=model, rule=by, seed=seed, progress=progress_of(context))
    if json_:
        rows = [
            {"image": name, "foreground": one.foreground, "doubt": one.doubt}
            for name, one in ranked[:num]
        ]
        write_json_answer({"by": by, "unlabelled": len(ranked), "next": rows})
        return
    for name, one in ranked[:num]:
        show(f"{name}   foreground {one.foreground:.1%}, doubt {one.doubt:.2f}")
    show(f"{len(ranked)} images have no mask; `binseg label {data} --model {model}` labels them")
