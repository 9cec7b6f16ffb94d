"""`binseg evaluate`, `compare` and `demo`: how good a model is, and beside another one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import (
    Border,
    Data,
    Device,
    Json,
    Run,
    TTAOption,
    With,
    argument,
    nested,
    option,
)
from binseg.errors import UsageError

if TYPE_CHECKING:
    from binseg.config import DataConfig
    from binseg.types import TTA

_REPORT = "Folder of a run, or of one of its reports, or a report.json."


def evaluate(
    context: typer.Context,
    *,
    run: Run,
    data: Data = None,
    split: Annotated[str, option("train, val, test or all.", "NAME")] = "test",
    out: Annotated[
        Path | None,
        option("Folder for report, table and images; RUN/SPLIT if left out.", "FOLDER"),
    ] = None,
    by: Annotated[
        list[str] | None,
        option("Score each value of this column of the data by itself (repeatable).", "COLUMN"),
    ] = None,
    tolerance: Annotated[
        float | None,
        option(
            "How far an outline may be off for boundary F1: pixels, or mm with --spacing; 2 "
            "pixels if left out.",
            "DISTANCE",
        ),
    ] = None,
    spacing: Annotated[
        float | None, option("Millimetres per pixel; distances in mm.", "MM")
    ] = None,
    border: Border = None,
    set_: Annotated[
        list[str] | None,
        option("Change how the data is read (repeatable): --set data.threshold=127.", "KEY=VALUE"),
    ] = None,
    guarantee: Annotated[
        list[str] | None,
        option(
            "Instead of scoring, choose the threshold that keeps recall, fpr or dice on new images "
            "(95% sure), by the validation images, and note it on the card (repeatable).",
            "SCORE=VALUE",
        ),
    ] = None,
    learn_quality: Annotated[
        bool,
        option("Instead of scoring, learn anew by validation how good predictions are."),
    ] = False,
    with_: With = None,
    tta: TTAOption = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Score a model per image and pooled, at the images' own size and at the model's.

    Examples:
        binseg evaluate runs/first
        binseg evaluate runs/first --split val --json
        binseg evaluate runs/first --by breed --tolerance 3
        binseg evaluate runs/first --data other_folder/ --split all --out scores/
        binseg evaluate runs/first --guarantee recall=0.95
    """
    from binseg.cli.screen import report_items
    from binseg.evaluation.origin import Origin, check_split_name, data_config
    from binseg.evaluation.report_files import PAGE_NAME
    from binseg.inference import load
    from binseg.metrics import report_as_dict
    from binseg.pipelines.evaluate_model import evaluate as evaluate_model
    from binseg.pipelines.evaluate_model import report_folder

    by, set_, with_ = by or [], set_ or [], with_ or []
    check_split_name(split)
    predictor = load([run, *with_], device=device or "auto", tta=cast("TTA | None", tta))
    config = data_config(
        Origin.of(predictor), data, sections=nested(data__border=border), overrides=set_
    )
    if guarantee or learn_quality:
        useless = [with_, tta, out, by, tolerance, spacing]
        if any(useless) or split != "test":
            raise UsageError(
                "--guarantee and --learn-quality take one model and its validation images; leave "
                "out --split, --with, --tta, --out, --by, --tolerance and --spacing"
            )
        _calibrate(context, run, config, guarantee or [], learn=learn_quality, as_json=json_)
        return
    named = {"border": border, "tolerance": tolerance, "spacing": spacing}
    changes = [f"{name}-{value}" for name, value in named.items() if value is not None]
    folder = out or report_folder(
        run, split=split, data=data, others=with_, tta=tta, changes=[*changes, *set_]
    )
    report = evaluate_model(
        predictor,
        data=config,
        split=split,
        out=folder,
        by=by,
        tolerance=tolerance,
        spacing=spacing,
        progress=progress_of(context),
    )
    if json_:
        write_json_answer(report_as_dict(report))
    else:
        show(*report_items(report, by=by), f"report: {folder / PAGE_NAME}")


def _calibrate(
    context: typer.Context,
    run: Path,
    config: "DataConfig",
    guarantees: list[str],
    *,
    learn: bool,
    as_json: bool,
) -> None:
    """Write what validation guarantees, or teaches, into the card."""
    from binseg.pipelines.calibrate_model import calibrate

    found = calibrate(
        run, config, guarantees=guarantees, learn=learn, progress=progress_of(context)
    )
    if as_json:
        write_json_answer({"guarantees": [one.model_dump() for one in found], "learnt": learn})
        return
    for one in found:
        sign = "at most" if one.score == "fpr" else "at least"
        show(
            f"mean {one.score} of new images {sign} {one.wanted:g}, 95% sure by {one.num_images} "
            f"validation images or groups: --threshold {one.threshold:.4f}"
        )
    show(f"noted on the card of {run}")


def compare(
    *,
    run_a: Annotated[Path, argument(_REPORT, "RUN_A")],
    run_b: Annotated[Path, argument(_REPORT, "RUN_B")],
    split: Annotated[
        str,
        option(
            "Which report of each run: test, val, or any folder of `binseg evaluate` in it.",
            "NAME",
        ),
    ] = "test",
    score: Annotated[str, option("The score that decides.", "NAME")] = "dice",
    json_: Json = False,
) -> None:
    """Compare two models on the same images, and say when the difference is noise.

    Examples:
        binseg compare runs/first runs/second --split test
        binseg compare runs/first/val/report.json runs/second/val --json
    """
    from binseg.cli.screen import compare_items
    from binseg.evaluation.comparison import compare as compare_runs

    result = compare_runs(run_a, run_b, split=split, score=score)
    if json_:
        write_json_answer(result.as_dict())
    else:
        show(*compare_items(result))


def demo(
    context: typer.Context,
    *,
    out: Annotated[Path, option("Folder for everything it makes.", "FOLDER")] = Path("runs/demo"),
    json_: Json = False,
) -> None:
    """Train a small model on synthetic images, score it, and set Otsu's method beside it.

    Examples:
        binseg demo
        binseg demo --out runs/demo --json
    """
    from binseg.cli.screen import demo_table, report_items
    from binseg.pipelines.run_demo import demo as run

    result = run(out, progress=progress_of(context))
    if json_:
        write_json_answer(result.as_dict())
        return
    show(
        *report_items(result.report),
        demo_table(result),
        f"gallery: {result.gallery_path}",
        f"one predicted mask: {result.mask_path}",
        f"a real photo, by the built-in model of cats and dogs: {result.photo_path}",
    )
