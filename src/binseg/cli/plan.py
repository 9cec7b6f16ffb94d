"""`binseg plan`: say how to train on these images, on this machine, in this time, and why."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import Border, Device, Download, Json, RequiredData, Set, nested, register

if TYPE_CHECKING:
    from binseg.pipelines.plan_recipe import PlanResult

EXAMPLES = (
    "binseg plan --data my_folder/",
    "binseg plan --data my_folder/ --budget 2h --out my.yaml",
    "binseg train my.yaml --out runs/mine",
    "binseg plan --data my_folder/ --set model.name=resnet34-unet --json",
)
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Time for the whole run: 2h, 90s, or none for as long as it takes. By default a plan "
        "takes 20m, unless a number of epochs is given.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, plan, name="plan", examples=EXAMPLES)


def plan(
    context: typer.Context,
    *,
    data: RequiredData,
    budget: Budget = None,
    download: Download = False,
    border: Border = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.yaml", help="Write the plan as a recipe to edit."),
    ] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Look at the data and the machine, and say how to train: setting, value and reason."""
    from binseg.pipelines.plan_recipe import check_plan_path, chosen_budget, write_plan
    from binseg.pipelines.plan_recipe import plan as run

    if out is not None:
        check_plan_path(out)
    sections = nested(
        data__path=data,
        data__border=border,
        data__download=download or None,
        train__device=device,
    )
    result = run(
        sections=sections,
        overrides=set_ or (),
        budget=chosen_budget(budget, sections=sections, overrides=set_ or ()),
        progress=progress_of(context),
    )
    if out is not None:
        write_plan(result, out)
    if json_:
        write_json_answer(result.as_dict())
        return
    show(*plan_items(result))
    options = {"--data": data, "--budget": budget, "--border": border, "--device": device}
    words = [word for name, value in options.items() if value for word in (name, str(value))]
    words += [word for one in set_ or () for word in ("--set", one)]
    following = ["binseg", "train", *([str(out)] if out else words)]
    show("next:", f"  {shlex.join(following)}")


def plan_items(result: "PlanResult") -> list[object]:
    """Lay out a plan for the screen."""
    from binseg.cli.screen import plain_table

    facts, machine = result.plan.fingerprint, result.plan.machine
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    title = (
        f"plan: {facts.num_train} training, {facts.num_val} validation, {facts.num_test} test "
        f"images; about {_minutes(result.expected_seconds)} min on {cores}"
        + (" and a GPU" if machine.device == "cuda" else "")
    )
    table = plain_table(title, "setting", "value", "reason")
    table.columns[2].ratio = 1
    for one in result.plan.settings:
        table.add_row(one.key, _shown(one.value), one.reason)
    return [*(f"note: {warning}" for warning in result.plan.warnings), table]


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each}" for key, each in value.items()) or "none"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}".removesuffix(".0") if seconds < 600 else f"{seconds / 60:.0f}"
