"""`binseg predict`: masks for images."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binseg.cli import options as opt
from binseg.cli.console import answer, message, progress_of
from binseg.cli.options import argument, option
from binseg.errors import UsageError
from binseg.shards import Shard

if TYPE_CHECKING:
    from binseg.inference import PredictOptions, Predictor
    from binseg.inference.predict_options import OutputName
    from binseg.inference.sinks import PredictResult
    from binseg.progress import Progress

PIPE = "-"
_SWITCHES = (
    "json_", "resume", "overwrite", "tiff", "watch", "report", "strict", "shard", "workers",
    "scheduler",
)  # fmt: skip
_SHARED = ("--shard", "--workers", "--scheduler")  # Ways to share the work, of which one goes


def predict(
    context: typer.Context,
    *,
    given: Annotated[
        list[str],
        argument(
            "A run or bundle, and images, folders, globs or videos; - reads an image from stdin "
            "and writes its mask to stdout.",
            "RUN INPUTS",
        ),
    ],
    model: Annotated[
        str | None,
        option("The run or bundle; pets: the built-in model of cats and dogs.", "RUN"),
    ] = None,
    out: Annotated[Path, option("Folder for the masks.", "FOLDER")] = Path("masks"),
    overlay: Annotated[bool, option("Also the image with the mask drawn over it.")] = False,
    cutout: Annotated[bool, option("Also the object alone, on a transparent background.")] = False,
    probability: Annotated[bool, option("Also the probabilities, as 32-bit TIFF.")] = False,
    geojson: Annotated[bool, option("Also outlines, in map coordinates where known.")] = False,
    coco: Annotated[bool, option("Also COCO annotations (polygons, run lengths).")] = False,
    table: Annotated[bool, option("Also a CSV with a line for each object.")] = False,
    labels: Annotated[bool, option("Also numbered objects, as TIFF.")] = False,
    rois: Annotated[bool, option("Also the objects' outlines for ImageJ's ROI Manager.")] = False,
    kaggle: Annotated[bool, option("Also run lengths, as Kaggle's CSV.")] = False,
    tiff: Annotated[bool, option("Masks as TIFF that keep pixel size and georeference.")] = False,
    threshold: Annotated[float | None, option("Foreground is above this probability.")] = None,
    min_area: Annotated[int | None, option("Remove smaller objects.", "PIXELS")] = None,
    fill_holes: Annotated[int | None, option("Fill holes up to this size.", "PIXELS")] = None,
    largest_only: Annotated[
        bool | None,
        typer.Option("--largest-only/--all-objects", help="Keep the largest object alone, or all."),
    ] = None,
    separate: Annotated[
        bool | None, typer.Option("--separate", help="Cut objects apart that touch.")
    ] = None,
    no_postprocess: Annotated[bool, option("Skip the model's own post-processing.")] = False,
    tolerance: Annotated[float, option("Simplify outlines by up to this.", "PIXELS")] = 0.0,
    crop: Annotated[int | None, option("Margin around the object in cut-outs.", "PIXELS")] = None,
    background: Annotated[
        str | None, option("Colour that cut-outs lie on: white, #f0f0f0, ...", "COLOUR")
    ] = None,
    overwrite: Annotated[bool, option("Replace masks of an earlier run.")] = False,
    resume: Annotated[bool, option("Leave out images that have their masks already.")] = False,
    report: Annotated[bool, option("Also report.html and summary.csv of all images.")] = False,
    strict: Annotated[bool, option("Exit with 1 for images unlike the training data.")] = False,
    shard: opt.ShardOption = None,
    workers: Annotated[int, option("Processes of a local Dask cluster.", "NUMBER", min=0)] = 0,
    scheduler: Annotated[str, option("A Dask cluster: tcp://host:8786.", "ADDRESS")] = "",
    watch: Annotated[bool, option("Go on with what comes into the folder, until Ctrl-C.")] = False,
    scale: Annotated[
        float, option("Tiled models: resize images by this (0.5: pixels half as large).", "FACTOR")
    ] = 1.0,
    pixel_size: Annotated[
        float | None, option("Tiled models: a pixel's width, if files lack it.", "MICROMETRES")
    ] = None,
    tile: Annotated[int | None, option("Tiled models: size of a tile.", "PIXELS")] = None,
    overlap: Annotated[float | None, option("Tiled models: overlap of tiles.", "SHARE")] = None,
    batch_size: opt.InputsAtOnce = 8,
    with_: opt.With = None,
    tta: opt.TTAOption = None,
    device: opt.Device = None,
    backend: opt.Backend = "auto",
    precision: opt.Precision = "auto",
    json_: opt.Json = False,
) -> None:
    """Write a 0/255 mask for every image, at the image's own size.

    Examples:
        binseg predict --model pets cat.jpg --overlay
        binseg predict runs/first photo.jpg
        binseg predict runs/first photos/ 'more/*.png' --out predicted/ --overlay
        binseg predict runs/first photo.jpg --with runs/second --tta horizontal
        binseg predict runs/first product.jpg --cutout --crop 20 --background white
        binseg predict runs/first slide.tif --table --geojson --min-area 50
        binseg predict runs/tiles slide.tif --tile 1024 --overlap 0.5
        binseg predict runs/first - < photo.jpg > mask.png
        binseg predict runs/first incoming/ --watch --out masks/
        binseg predict runs/first video.mp4 --overlay
        binseg predict runs/first photos/ --out masks/ --shard 3/100
        binseg predict runs/first photos/ --out masks/ --workers 8
        binseg predict runs/first s3://bucket/photos/ --out masks/
    """
    from binseg.inference import PredictOptions, load
    from binseg.inference.engine import run as predict_all
    from binseg.inference.predict_options import EXTRA_OUTPUTS
    from binseg.inference.sinks import FolderSink
    from binseg.inference.sources import FileSource, RemoteSource, Source, WatchSource, is_remote

    run, inputs = _model_and_inputs(model, given)
    asked = context.params  # options are called as fields of PredictOptions, switches as outputs
    outputs = tuple(name for name in EXTRA_OUTPUTS if asked[name])
    options = PredictOptions(
        **{name: asked[name] for name in asked.keys() & PredictOptions.__dataclass_fields__.keys()},
        own_postprocessing=not no_postprocess,
        outputs=outputs,
        mask_format="tif" if tiff else "png",
    )
    _check_inputs(inputs, options, [f"--{name.rstrip('_')}" for name in _SWITCHES if asked[name]])
    settings: dict[str, Any]
    settings = {"backend": backend, "device": device or "auto", "precision": precision}
    models = [Path(one) for one in (run, *(with_ or ()))]
    predictor = load(models, batch_size=batch_size, **settings)
    progress = progress_of(context)
    _tell_unasked(predictor, options, progress)
    if inputs == [PIPE]:
        _answer_pipe(predictor, options, as_json=json_, progress=progress)
        return
    if workers or scheduler:  # whose folder may be another one
        out = out.absolute()
        inputs = [one if is_remote(one) else str(Path(one).absolute()) for one in inputs]
        models = [one.absolute() for one in models]
    source: Source = RemoteSource(inputs) if is_remote(inputs[0]) else FileSource(inputs)
    if watch:
        source = WatchSource(folder=Path(inputs[0]))
        message(f"watching {inputs[0]}; masks go to {out}; stop with Ctrl-C")
    sink = FolderSink(
        out,
        overwrite=overwrite or watch,
        resume=resume or watch,
        report=report,
        shard=None if shard is None else Shard.parse(shard),
    )
    if workers or scheduler:
        every = {**settings, "batch_size": batch_size}
        where = {"workers": workers, "scheduler": scheduler}
        work = partial(_on_cluster, models, every, where, source, sink, options)
    else:
        told = _tell_round if watch else None
        work = partial(predict_all, source, predictor, sink, options, told=told)
    try:
        result = work(progress=progress)
    except KeyboardInterrupt:
        if not watch:
            raise
        message("stopped watching")
        return
    if report and shard is None:
        progress.say(f"report: {sink.write_report(result, model=predictor.name)}")
    _tell(result, out, beside=options.outputs, as_json=json_)
    if strict and result.unlike:
        raise typer.Exit(1)


def _tell_unasked(predictor: "Predictor", options: "PredictOptions", progress: "Progress") -> None:
    """Say which post-processing the model brings."""
    unasked = options.unasked_from(predictor.postprocessing)
    if not unasked.is_empty:
        told = f"the model's own post-processing: {unasked.describe()}"
        progress.say(f"{told} (--no-postprocess leaves it out)")


def _on_cluster(
    models: list[Path], settings: Any, where: Any, *work: Any, progress: "Progress"
) -> "PredictResult":
    """Predict on a Dask cluster; `work` is source, sink and options."""
    from binseg.pipelines import cluster

    source, *rest = work
    files = cluster.ModelFiles(paths=tuple(map(str, models)), settings=tuple(settings.items()))
    with cluster.cluster(**where, progress=progress) as client:
        return cluster.predict_on(client, source, files, *rest, progress=progress)


def _model_and_inputs(model: str | None, given: list[str]) -> tuple[Path, list[str]]:
    """Tell the model from the images, wherever it stands; none is ever taken unasked."""
    from binseg.inference.pretrained import NAME, default_bundle_path, model_of

    if model is not None:
        return model_of(model) or (default_bundle_path() if model == NAME else Path(model)), given
    found = [one for one in given if model_of(one) is not None]
    if len(found) > 1:
        raise UsageError(
            f"two models, {found[0]} and {found[1]}: name one, and others that are to answer with "
            "it by --with"
        )
    if not found and len(given) > 1 and _is_no_image(given[0]):
        found = given[:1]  # a mistyped run, which loading it will say
    if not found:
        raise UsageError(
            f"no model among {', '.join(given[:3])}: name a run or bundle too, or the built-in "
            f"model of cats and dogs with --model {NAME}"
        )
    inputs = [one for one in given if one != found[0]]
    if not inputs:
        raise UsageError(f"which images? Give them after the model: binseg predict {found[0]} ...")
    return model_of(found[0]) or Path(found[0]), inputs


def _is_no_image(given: str) -> bool:
    """Tell what is neither there nor named like images from an input."""
    from binseg.imageio import IMAGE_SUFFIXES
    from binseg.inference.video import is_video

    path = Path(given)
    is_named = path.suffix.lower() in IMAGE_SUFFIXES or is_video(path)
    return given != PIPE and not path.exists() and not is_named and not set("*?[") & set(given)


def _check_inputs(inputs: list[str], options: "PredictOptions", flags: list[str]) -> None:
    """Refuse combinations that can't be; `flags` are the switches that were given."""
    if {"--overwrite", "--resume"} <= set(flags):
        raise UsageError("--overwrite replaces masks and --resume keeps them; give one of them")
    if PIPE in inputs and len(inputs) > 1:
        raise UsageError("- stands for one image on stdin; give it alone")
    if inputs == [PIPE]:
        shown = [name for name in options.outputs if name in {"overlay", "cutout"}]
        if len(shown) + ("--json" in flags) > 1:
            told = "stdout takes one output; give one of --overlay, --cutout, --json"
            raise UsageError(told)
        if set(options.outputs) - {"overlay", "cutout"}:
            raise UsageError(
                "to stdout go a mask, --overlay, --cutout, or --json with outlines and objects; "
                "name a file for other answers"
            )
        if useless := [name for name in flags if name != "--json"]:
            raise UsageError(f"{useless[0]} is for files; - writes to stdout")
    _check_shared(inputs, flags)
    if "--watch" in flags:
        if len(inputs) > 1:
            raise UsageError("--watch takes one folder")
        alone = {"--json", "--resume", "--overwrite", "--report", "--strict", *_SHARED}
        if useless := [name for name in flags if name in alone]:
            told = f"{useless[0]} has no meaning with --watch, which replaces what changed"
            raise UsageError(told)


def _check_shared(inputs: list[str], flags: list[str]) -> None:
    """Refuse two ways to share the work, and addresses where nobody would see the files."""
    if len(ways := [name for name in flags if name in _SHARED]) > 1:
        raise UsageError(f"{ways[0]} and {ways[1]} are two ways to share the work; give one")
    if remote := [one for one in inputs if "://" in one]:
        if len(remote) < len(inputs):
            raise UsageError(f"{remote[0]} is an address, and other inputs are files: two commands")
        if away := [name for name in flags if name in {"--scheduler", "--watch"}]:
            raise UsageError(f"{away[0]} needs files that it can see; fetch {remote[0]} first")


def _answer_pipe(
    predictor: "Predictor", options: "PredictOptions", *, as_json: bool, progress: "Progress"
) -> None:
    """Read an image from stdin, and write the answer to stdout."""
    from binseg.inference.engine import predict_bytes

    if sys.stdin.isatty():
        raise UsageError("- reads an image from stdin, which is the keyboard: pipe a file into it")
    output = "json" if as_json else next(iter(options.outputs), "mask")
    data = predict_bytes(
        predictor, sys.stdin.buffer.read(), output=output, options=options, progress=progress
    )
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _tell_round(result: "PredictResult") -> None:
    """Say what a round of --watch wrote."""
    for one in result.written:
        message(f"{one.source} -> {one.mask} ({one.foreground:.1%} foreground)")
    _tell_troubles(result)
    for failure in result.failures:
        message(f"binseg: {failure.reason}")


def _tell_troubles(result: "PredictResult") -> None:
    """Name images unlike the training data, doubtful masks, and files that are text."""
    _tell_quality(result)
    if num := len(result.left_out):
        named = ", ".join(one.name for one in result.left_out[:3])
        more = f" and {num - 3} more" if num > 3 else ""
        message(f"{num} {'file is' if num == 1 else 'files are'} text, no image: {named}{more}")


def _tell_quality(result: "PredictResult") -> None:
    """Name the images that are unlike the training data, and those whose masks are doubtful."""
    from binseg.data.dataset import counted, name_some

    total = counted(len(result.written), "image", "images")
    for flagged, what, advice in (
        (result.unlike, "unlike the training data", "don't trust these masks unseen"),
        (result.doubtful, "probably masked poorly", "look at these masks before you use them"),
    ):
        if not flagged:
            continue
        first = flagged[0].quality
        assert first is not None
        why = f"expected Dice {first.expected_dice:.2f}" if first.flag == "look" else first.reason
        names = name_some([one.source.name for one in flagged])
        verb = "is" if len(flagged) == 1 else "are"
        message(f"{len(flagged)} of {total} {verb} {what} ({why}); {advice}: {names}")


def _tell(
    result: "PredictResult", out: Path, *, beside: "Sequence[OutputName]", as_json: bool
) -> None:
    """Say what was written; failures are named and end the command with 1."""
    num = len(result.written)
    more = f"; beside {'it' if num == 1 else 'them'}: {', '.join(beside)}" if beside and num else ""
    written = f"{num} {'mask' if num == 1 else 'masks'} written to {out}{more}"
    _tell_troubles(result)
    answer(as_json, result.as_dict(), written)
    for failure in result.failures:
        message(f"binseg: {failure.reason}")
    if result.failures:
        if result.num_inputs > 1:
            message(f"binseg: {len(result.failures)} of {result.num_inputs} inputs failed")
        raise typer.Exit(1)


def gather(
    context: typer.Context,
    *,
    out: Annotated[Path, argument("The folder that the shards were given as --out.", "OUT")],
    json_: opt.Json = False,
) -> None:
    """Join what the shards of predict, evaluate or check wrote, and name what is missing.

    Tables, COCO files and pages of predictions are joined; scores and findings are those of all
    images together. Exit code 1 if anything failed or is missing.

    Examples:
        binseg gather masks/
        binseg gather scores/ --json
    """
    from binseg.pipelines.cluster import gather as run

    found = run(out, progress=progress_of(context))
    written = (f"written: {one}" for one in found.written)
    answer(json_, found.as_dict(), f"{found.verb}: {found.num_images} images", *written)
    for line in found.failures:
        message(f"binseg: {line}")
    for what, names in (("shard", found.missing_shards), ("output of", found.missing)):
        for name in names[:20]:
            message(f"binseg: missing: {what} {name}")
        if len(names) > 20:
            message(f"binseg: missing: {len(names) - 20} more; --json lists all")
    if not found.is_whole:
        raise typer.Exit(1)
