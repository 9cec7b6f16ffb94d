"""`binseg bench train`: where the time of a training step goes on this machine."""

from typing import Annotated, Any

import typer

from binseg.cli import options as opt
from binseg.cli.console import answer, progress_of
from binseg.cli.options import argument, option
from binseg.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Register the verb, which has one kind so far."""
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
