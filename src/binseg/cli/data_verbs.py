"""`binseg check` and `binseg augment`: what is in a data set, and what training makes of it."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from binseg.cli import options as opt
from binseg.cli.console import is_verbose, progress_of, show, write_json_answer
from binseg.cli.options import option
from binseg.errors import DataError, UsageError
from binseg.shards import Shard


def check(
    context: typer.Context,
    *,
    place: opt.Place = None,
    data: opt.Data = None,
    download: opt.Download = False,
    recipe: opt.Recipe = None,
    border: opt.Border = None,
    set_: opt.Set = None,
    model: Annotated[
        Path | None,
        option(
            "Also rank the masks that this model contradicts; a cross-validation's folder judges "
            "each by the model that never saw it.",
            "RUN",
        ),
    ] = None,
    strict: Annotated[bool, option("Fail on warnings, too.")] = False,
    html: Annotated[
        Path | None, option("Write a page with the findings and their images.", "FILE")
    ] = None,
    shard: opt.ShardOption = None,
    out: Annotated[Path | None, option("Folder that all shards share.", "FOLDER")] = None,
    json_: opt.Json = False,
) -> None:
    """Check every image and mask of a data set; exit code 1 if something is wrong.

    Examples:
        binseg check my_folder/
        binseg check my_folder/ --html check.html
        binseg check my_folder/ --model runs/cv --html check.html
        binseg check my_folder/ --strict --json
        binseg check --data masks.csv --set 'data.foreground=[1, 2]'
        binseg check my_folder/ --shard 3/100 --out checked/
    """
    from binseg.cli.screen import check_tables
    from binseg.config import load_recipe
    from binseg.pipelines.check_data import check as run
    from binseg.pipelines.check_data import sheet_path

    data = opt.needed_data(place, data, verb="check")
    sections = opt.nested(data__path=data, data__border=border, data__download=download or None)
    whole = load_recipe(recipe, overrides=set_ or (), sections=sections)
    if (shard is None) != (out is None):
        raise UsageError("--shard and --out go together: the folder takes the shards' findings")
    if shard is not None and out is not None:
        from binseg.pipelines.check_data import look_at_shard
        from binseg.pipelines.gather import run_shard

        if model is not None or html is not None or strict:
            raise UsageError(
                "--shard looks at images alone; leave out --model, --html and --strict"
            )
        find = partial(look_at_shard, whole.data, progress=progress_of(context))
        show(run_shard("check", Shard.parse(shard), out, data=whole.data, find=find))
        return
    sheet = sheet_path(data)
    result = run(whole.data, model=model, page=html, sheet=sheet, progress=progress_of(context))
    if json_:
        write_json_answer(result.as_dict())
    elif not result.facts:
        raise DataError(result.findings[0].text)  # nothing could be opened: no table of one cell
    else:
        show(*check_tables(result, everything=is_verbose(context)))
    if result.failed(strict=strict):
        raise typer.Exit(1)


def augment(
    context: typer.Context,
    *,
    place: opt.Place = None,
    data: opt.Data = None,
    recipe: opt.Recipe = None,
    out: Annotated[Path, option("The image to write.", "FILE")] = Path("sheet.png"),
    samples: Annotated[int, option("Rows.", min=1, max=32)] = 4,
    variants: Annotated[int, option("Changed versions a row.", min=1, max=16)] = 5,
    size: opt.Size = None,
    border: opt.Border = None,
    seed: opt.Seed = None,
    set_: opt.Set = None,
) -> None:
    """Show samples before and after augmentation, with the outline of their masks.

    Examples:
        binseg augment my_folder/ --out sheet.png
        binseg augment my_folder/ --recipe pet-unet-cosine --samples 6
        binseg augment synthetic --set augment.preset=pet-cosine
    """
    from binseg.config import load_recipe
    from binseg.pipelines.show_augmentation import plot_augmentation

    data = opt.one_data(place, data)
    sections = opt.nested(data__path=data, data__border=border, input__size=size, train__seed=seed)
    whole = load_recipe(recipe, overrides=set_ or (), sections=sections)
    plot_augmentation(
        whole, out=out, num_samples=samples, num_variants=variants, progress=progress_of(context)
    )
    show(f"written to {out}")
