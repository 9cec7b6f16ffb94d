"""`binseg evaluate`, `compare` and `demo`: how good a model is, and beside another one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from binseg.cli import options as opt
from binseg.cli.console import answer, is_verbose, progress_of, show, write_json_answer
from binseg.cli.options import argument, option
from binseg.errors import UsageError
from binseg.shards import Shard

if TYPE_CHECKING:
    from binseg.config import DataConfig
    from binseg.inference import Predictor
    from binseg.types import TTA

_REPORT = "Folder of a run, or of one of its reports, or a report.json."


def evaluate(
    context: typer.Context,
    *,
    run: Annotated[
        Path | None, argument("Folder of a run, or a bundle (folder or .zip).", "RUN")
    ] = None,
    place: opt.Place = None,
    data: opt.Data = None,
    predicted: Annotated[
        Path | None, option("Score the masks in this folder instead of a model.", "FOLDER")
    ] = None,
    split: Annotated[
        str | None,
        option("train, val, test or all; test if left out, all with --predicted.", "NAME"),
    ] = None,
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
        option("Largest error of an outline in boundary F1: 2 pixels if left out.", "DISTANCE"),
    ] = None,
    spacing: Annotated[float | None, option("Millimetres a pixel: distances in mm.", "MM")] = None,
    border: opt.Border = None,
    set_: Annotated[
        list[str] | None,
        option("Change how the data is read (repeatable): --set data.threshold=127.", "KEY=VALUE"),
    ] = None,
    guarantee: Annotated[
        list[str] | None,
        option(
            "Don't score: by validation, note on the card a threshold that keeps recall, fpr or "
            "dice on new images (95% sure; repeatable).",
            "SCORE=VALUE",
        ),
    ] = None,
    with_: opt.With = None,
    tta: opt.TTAOption = None,
    device: opt.Device = None,
    shard: opt.ShardOption = None,
    json_: opt.Json = False,
) -> None:
    """Score a model per image and pooled, at the images' own size and at the model's.

    Examples:
        binseg evaluate runs/first
        binseg evaluate runs/first --split val --json
        binseg evaluate runs/first --by breed --tolerance 3
        binseg evaluate runs/first other_folder/ --split all --out scores/
        binseg evaluate runs/first --guarantee recall=0.95
        binseg evaluate --predicted masks/ my_folder/
        binseg evaluate runs/first --out scores/ --shard 3/100
    """
    from binseg.cli.screen import report_items, scores_in_short
    from binseg.evaluation.origin import Origin, check_split_name, data_config
    from binseg.evaluation.report_files import PAGE_NAME
    from binseg.evaluation.scoring import SavedMask
    from binseg.inference import Predictor, load
    from binseg.metrics import report_as_dict
    from binseg.pipelines.evaluate_model import evaluate as evaluate_model
    from binseg.pipelines.evaluate_model import report_folder

    run, place = _in_either_order(run, place, predicted)
    data = opt.one_data(place, data)
    by, set_, with_ = by or [], set_ or [], with_ or []
    is_split, split = split is not None, split or ("test" if predicted is None else "all")
    check_split_name(split)
    if (run is None) == (predicted is None):
        raise UsageError("what is to be scored? Give a run or bundle, or --predicted FOLDER")
    if run is None or predicted is not None:
        if unused := [name for name, one in {"--with": with_, "--tta": tta}.items() if one]:
            raise UsageError(f"{unused[0]} is for models; --predicted scores masks as they are")
        predictor: Predictor = SavedMask(None, name=str(predicted))
    else:
        predictor = load([run, *with_], device=device or "auto", tta=cast("TTA | None", tta))
    config = data_config(
        Origin.of(predictor), data, sections=opt.nested(data__border=border), overrides=set_
    )
    if guarantee:
        if run is None or is_split or any([with_, tta, out, by, tolerance, spacing]):
            raise UsageError(
                "--guarantee takes one model and its validation images; leave out --split, --with, "
                "--tta, --out, --by, --tolerance and --spacing"
            )
        _guarantee(context, run, config, guarantee, as_json=json_)
        return
    named = {"border": border, "tolerance": tolerance, "spacing": spacing}
    changes = [f"{name}-{value}" for name, value in named.items() if value is not None]
    place_of: Any = {"split": split, "data": data, "others": with_, "tta": tta}
    folder = out or report_folder(run or predicted or "", **place_of, changes=[*changes, *set_])
    asked: dict[str, Any] = {"split": split, "by": by, "tolerance": tolerance, "spacing": spacing}
    if shard is not None:
        if out is None:
            raise UsageError("--shard writes its share into a folder that all share: give --out")
        models = [str(one) for one in (run, *with_) if one is not None]
        asked |= {"models": models, "tta": tta, "predicted": predicted and str(predicted)}
        _score_shard(context, Shard.parse(shard), out, predictor, config, asked=asked)
        return
    progress = progress_of(context)
    report = evaluate_model(predictor, data=config, out=folder, progress=progress, **asked)
    everything = is_verbose(context)
    items = report_items(report, by=by) if everything else scores_in_short(report, by=by)
    items.append(f"report: {folder / PAGE_NAME}")
    if not everything:
        items.append("tables and rules: in the report, or with --verbose")
    answer(json_, report_as_dict(report), *items)


def _in_either_order(
    run: Path | None, place: str | None, predicted: Path | None
) -> tuple[Path | None, str | None]:
    """Tell the model from the data, whichever was named first."""
    from binseg.inference.pretrained import model_of

    if run is not None and place is not None and model_of(place) and not model_of(run):
        return Path(place), str(run)
    if predicted is not None and run is not None and place is None and not model_of(run):
        return None, str(run)
    return run, place


def _score_shard(
    context: typer.Context,
    shard: Shard,
    out: Path,
    predictor: "Predictor",
    config: "DataConfig",
    *,
    asked: dict[str, Any],
) -> None:
    """Score a shard's images, for `binseg gather`."""
    from binseg.pipelines.cluster import run_shard
    from binseg.pipelines.evaluate_model import measure_shard

    measured = {name: asked[name] for name in ("split", "tolerance", "spacing")}
    measured |= {"data": config, "progress": progress_of(context)}

    def find(shard: Shard) -> dict[str, Any]:
        return measure_shard(predictor, shard, **measured)

    show(run_shard("evaluate", shard, out, asked=asked, data=config, find=find))


def _guarantee(
    context: typer.Context,
    run: Path,
    config: "DataConfig",
    guarantees: list[str],
    *,
    as_json: bool,
) -> None:
    """Write what validation guarantees into the card."""
    from binseg.pipelines.evaluate_model import guarantee

    found = guarantee(run, config, guarantees, progress=progress_of(context))
    if as_json:
        write_json_answer({"guarantees": [one.model_dump() for one in found]})
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
    json_: opt.Json = False,
) -> None:
    """Compare two models on the same images, and say when the difference is noise.

    Examples:
        binseg compare runs/first runs/second --split test
        binseg compare runs/first/val/report.json runs/second/val --json
    """
    from binseg.cli.screen import compare_items
    from binseg.evaluation.comparison import compare as compare_runs

    result = compare_runs(run_a, run_b, split=split, score=score)
    answer(json_, result.as_dict(), *compare_items(result))


def demo(
    context: typer.Context,
    *,
    out: Annotated[Path, option("Folder for the results.", "FOLDER")] = Path("runs/demo"),
    json_: opt.Json = False,
) -> None:
    """Train a small model on synthetic images, score it, and set Otsu's method beside it.

    Examples:
        binseg demo
        binseg demo --out runs/demo --json
    """
    from binseg.cli.screen import headline, report_items
    from binseg.pipelines.evaluate_model import demo as run

    result = run(out, progress=progress_of(context))
    everything = is_verbose(context)
    answer(
        json_,
        result.as_dict(),
        *(report_items(result.report) if everything else [headline(result.report)]),
        f"for comparison, Otsu's threshold on the same images: Dice {result.otsu_dice:.3f}",
        "look at:",
        f"  {result.gallery_path}  (image, truth, prediction, errors)",
        f"  {result.mask_path}  (one predicted mask)",
        f"  {result.photo_path}  (a photo, by the built-in model)",
        "next: your own images, in my_folder/images/ and my_folder/masks/",
        "  binseg train my_folder/ --out runs/first",
    )
