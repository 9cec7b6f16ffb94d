"""`binseg pack`, `export` and `verify`: models as files to hand on, and the proof of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from binseg.cli.console import answer, message, progress_of, show, write_json_answer
from binseg.cli.options import Json, Run, argument, option
from binseg.errors import UsageError


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

    how: Any = {"int8": int8, "pixels": pixels, "max_dice_change": max_dice_change}
    result = export_model(run, target=to, out=out, progress=progress_of(context), **how)
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
