"""`binseg augment`: what a recipe's augmentation does to real samples."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import progress_of, show
from binseg.cli.options import Border, Data, Recipe, Set, nested, register

EXAMPLES = (
    "binseg augment --data my_folder/ --out sheet.png",
    "binseg augment --data my_folder/ --recipe report-b-unet --samples 6 --out sheet.png",
    "binseg augment --data synthetic --set augment.preset=report-d",
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, augment, name="augment", examples=EXAMPLES)


def augment(
    context: typer.Context,
    *,
    data: Data = None,
    recipe: Recipe = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The image to write.")] = Path(
        "sheet.png"
    ),
    samples: Annotated[int, typer.Option("--samples", min=1, max=32, help="Rows.")] = 4,
    variants: Annotated[
        int, typer.Option("--variants", min=1, max=16, help="Changed versions a row.")
    ] = 5,
    size: Annotated[
        int | None, typer.Option("--size", help="Height and width of the model's input.")
    ] = None,
    border: Border = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides every random choice.")] = None,
    set_: Set = None,
) -> None:
    """Show samples before and after augmentation, with the outline of their masks."""
    from binseg.config import load_recipe
    from binseg.pipelines.show_augmentation import plot_augmentation

    whole = load_recipe(
        recipe,
        overrides=set_ or (),
        sections=nested(data__path=data, data__border=border, input__size=size, train__seed=seed),
    )
    plot_augmentation(
        whole, out=out, num_samples=samples, num_variants=variants, progress=progress_of(context)
    )
    show(f"written to {out}")
