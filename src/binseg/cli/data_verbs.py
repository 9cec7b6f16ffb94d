"""`binseg check`, `augment` and `bench train`: a data set, and what training makes of it."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from binseg.cli import options as opt
from binseg.cli.console import answer, is_verbose, progress_of, show, write_json_answer
from binseg.cli.options import argument, option
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
        from binseg.pipelines.cluster import run_shard

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
    size: opt.Size = None,
    border: opt.Border = None,
    seed: opt.Seed = None,
    set_: opt.Set = None,
) -> None:
    """Show samples before and after augmentation, with the outline of their masks.

    Examples:
        binseg augment my_folder/ --out sheet.png
        binseg augment my_folder/ --recipe pet-unet-cosine
        binseg augment synthetic --set augment.preset=pet-cosine
    """
    from binseg.config import load_recipe
    from binseg.pipelines.check_data import plot_augmentation

    data = opt.one_data(place, data)
    sections = opt.nested(data__path=data, data__border=border, input__size=size, train__seed=seed)
    whole = load_recipe(recipe, overrides=set_ or (), sections=sections)
    plot_augmentation(whole, out=out, progress=progress_of(context))
    show(f"written to {out}")


def add_bench_to(app: typer.Typer) -> None:
    """Register `binseg bench`, which has one kind so far."""
    bench = typer.Typer(help="Measure this machine on your data.", no_args_is_help=True)
    opt.register(bench, train)

    @bench.callback()
    def _keep_the_name() -> None:
        """Measure this machine on your data."""

    app.add_typer(bench, name="bench")


def train(
    context: typer.Context,
    *,
    file: Annotated[str | None, argument("A recipe of your own.", "RECIPE.yaml")] = None,
    recipe: opt.Recipe = None,
    data: opt.Data = None,
    model: opt.Model = None,
    size: opt.Size = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    steps: Annotated[int, option("Steps to measure.", min=1)] = 10,
    profile: Annotated[bool, option("Name torch's slowest operations too.")] = False,
    set_: opt.Set = None,
    json_: opt.Json = False,
) -> None:
    """Measure training steps on your images: time by phase, memory, the time of an epoch.

    Examples:
        binseg bench train --data my_folder/
        binseg bench train --recipe pet --data oxford-iiit-pet/ --profile
    """
    from binseg.config import load_recipe
    from binseg.pipelines.bench_training import bench_training

    if file and recipe:
        raise UsageError("give either a recipe file or --recipe, not both")
    sections = opt.nested(
        data__path=data,
        model__name=model,
        input__size=size,
        train__batch_size=batch_size,
        train__device=device,
    )
    whole = load_recipe(file or recipe, overrides=set_ or (), sections=sections)
    progress = progress_of(context)
    result = bench_training(whole, num_steps=steps, operations=profile, progress=progress)
    answer(json_, result, *_items(result))


def _items(result: dict[str, Any]) -> list[object]:
    """Say what was measured: tables of phases and operations, throughput and memory."""
    from binseg.cli.screen import plain_table

    whole, available = sum(result["seconds"].values()), result["available_bytes"]
    title = (
        "{model}, {million:.1f} M parameters, {device} {precision}, {threads} threads, batch "
        "{num_inputs}"
    ).format(million=result["num_parameters"] / 1e6, **result)
    phases = plain_table(title, "phase", "ms a step", "share")
    for name, seconds in result["seconds"].items():
        phases.add_row(name, f"{seconds * 1000:.1f}", f"{seconds / whole:.1%}")
    phases.add_row("whole step", f"{whole * 1000:.1f}", "")
    items: list[object] = [phases]
    if result["operations"]:
        columns = ("operation", "share", "calls a step")
        items.append(table := plain_table("slowest operations", *columns))
        for one in result["operations"]:
            table.add_row(one["name"], f"{one['share']:.1%}", str(one["calls"]))
    items.append(
        "{inputs_per_second:.2f} inputs a second; an epoch of {num_train} images takes about "
        "{minutes:.1f} min; {data_share:.1%} waits for data".format(
            minutes=result["epoch_seconds"] / 60, **result
        )
    )
    free = "" if available is None else f" of {available / 1e9:.1f} GB free"
    items.append(f"memory: about {result['memory_bytes'] / 1e9:.2f} GB{free}")
    return items
