"""`binseg predict`: masks for images."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from binseg.cli.console import message, progress_of, show, write_json_answer
from binseg.cli.options import Device, Json, TTAOption, With, register
from binseg.errors import UsageError

if TYPE_CHECKING:
    from binseg.inference import PredictOptions
    from binseg.inference.predict_options import OutputName
    from binseg.inference.sinks import PredictResult
    from binseg.types import TTA

EXAMPLES = (
    "binseg predict cat.jpg --overlay",
    "binseg predict runs/first photo.jpg",
    "binseg predict runs/first photos/ 'more/*.png' --out predicted/ --overlay",
    "binseg predict runs/first photo.jpg --with runs/second --tta horizontal",
    "binseg predict runs/first product.jpg --cutout --threshold 0.7",
    "binseg predict runs/first slide.tif --table --geojson --min-area 50 --fill-holes 20",
    "binseg predict runs/tiles slide.tif --tile 1024 --overlap 0.5",
    "binseg predict runs/first - < photo.jpg > mask.png",
    "binseg predict runs/first incoming/ --watch --out masks/",
    "binseg predict runs/first video.mp4 --overlay",
)
PIPE = "-"


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, predict, name="predict", examples=EXAMPLES)


def predict(
    context: typer.Context,
    *,
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] INPUTS...",
            help="A run or bundle (left out: the built-in model of cats and dogs), then images, "
            "folders, globs or videos; - reads an image from stdin and writes its mask to stdout.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for the masks.")
    ] = Path("masks"),
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also the image with the mask drawn over it.")
    ] = False,
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Also the object alone, on transparent ground.")
    ] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Also the probabilities, as 32-bit TIFF.")
    ] = False,
    geojson: Annotated[
        bool, typer.Option("--geojson", help="Also outlines; on the map where the image tells.")
    ] = False,
    coco: Annotated[
        bool, typer.Option("--coco", help="Also COCO annotations (polygons, run lengths).")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Also a CSV with a line for each object.")
    ] = False,
    tiff: Annotated[
        bool, typer.Option("--tiff", help="Masks as TIFF, with the image's georeference.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Probability above which a pixel is foreground."),
    ] = None,
    min_area: Annotated[
        int | None, typer.Option("--min-area", metavar="PIXELS", help="Remove smaller objects.")
    ] = None,
    fill_holes: Annotated[
        int | None,
        typer.Option("--fill-holes", metavar="PIXELS", help="Fill holes up to this size."),
    ] = None,
    largest_only: Annotated[
        bool | None,
        typer.Option("--largest-only/--all-objects", help="Keep the largest object alone, or all."),
    ] = None,
    no_postprocess: Annotated[
        bool,
        typer.Option("--no-postprocess", help="Leave out the post-processing the model brings."),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", metavar="PIXELS", help="Simplify outlines by up to this."),
    ] = 0.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace masks of an earlier run.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out images that have their masks already.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what comes into the folder, until Ctrl-C.")
    ] = False,
    scale: Annotated[
        float,
        typer.Option(
            "--scale",
            metavar="FACTOR",
            help="Models of tiles: resize images by this first (0.5: pixels half as large as "
            "those it learnt from).",
        ),
    ] = 1.0,
    tile: Annotated[
        int | None, typer.Option("--tile", metavar="PIXELS", help="Models of tiles: their size.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option("--overlap", metavar="SHARE", help="Models of tiles: shared part of a tile."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Inputs computed at once.")
    ] = 8,
    with_: With = None,
    tta: TTAOption = None,
    device: Device = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="The runtime; auto takes the best.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", metavar="KIND", help="auto, fp32, bf16 or int8.")
    ] = "auto",
    json_: Json = False,
) -> None:
    """Write a 0/255 mask for every image, at the image's own size."""
    from binseg.inference import PredictOptions, load
    from binseg.inference.engine import run as predict_all
    from binseg.inference.sinks import FolderSink
    from binseg.inference.sources import FileSource, Source, WatchSource

    run, inputs = _model_and_inputs(given)
    asked = {
        "overlay": overlay,
        "cutout": cutout,
        "probability": probability,
        "geojson": geojson,
        "coco": coco,
        "table": table,
    }
    options = PredictOptions(
        threshold=threshold,
        min_area=min_area,
        fill_holes=fill_holes,
        largest_only=largest_only,
        own_postprocessing=not no_postprocess,
        tta=cast("TTA | None", tta),
        scale=scale,
        tile=tile,
        overlap=overlap,
        outputs=tuple(cast("OutputName", name) for name, is_on in asked.items() if is_on),
        mask_format="tif" if tiff else "png",
        tolerance=tolerance,
    )
    flags = {
        "--json": json_,
        "--resume": resume,
        "--overwrite": overwrite,
        "--tiff": tiff,
        "--watch": watch,
    }
    _check_inputs(inputs, options, [name for name, is_on in flags.items() if is_on])
    predictor = load(
        [run, *(with_ or ())],
        backend=backend,
        device=device or "auto",
        precision=precision,
        batch_size=batch_size,
    )
    progress = progress_of(context)
    unasked = options.unasked_from(predictor.postprocessing)
    if not unasked.is_empty:
        progress.say(
            f"the model's own post-processing: {unasked.describe()} (--no-postprocess leaves it "
            "out)"
        )
    if inputs == [PIPE]:
        from binseg.inference.engine import predict_bytes

        shown = options.outputs[0] if options.outputs else "mask"
        data = predict_bytes(
            predictor, _stdin(), output="json" if json_ else shown, options=options
        )
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    source: Source = FileSource(inputs)
    if watch:
        source = WatchSource(folder=Path(inputs[0]))
        message(f"watching {inputs[0]}; masks go to {out}; stop with Ctrl-C")
    sink = FolderSink(out, overwrite=overwrite or watch, resume=resume)
    try:
        result = predict_all(
            source, predictor, sink, options, progress=progress, told=_tell_round if watch else None
        )
    except KeyboardInterrupt:
        if not watch:
            raise
        message("stopped watching")
    else:
        _tell(result, out, as_json=json_)


def _model_and_inputs(given: list[str]) -> tuple[Path, list[str]]:
    """Tell the model from the images; where there is none, the built-in one is said and taken."""
    from binseg.imageio import IMAGE_SUFFIXES
    from binseg.inference.pretrained import default_bundle_path
    from binseg.inference.video import is_video

    first = Path(given[0])
    is_image = first.suffix.lower() in IMAGE_SUFFIXES or is_video(first)
    holds_model = any((first / name).exists() for name in ("bundle", "card.json", "recipe.yaml"))
    if given[0] != PIPE and not is_image and not (first.is_dir() and not holds_model):
        if len(given) == 1:
            raise UsageError(f"which images? Give them after the model: binseg predict {first} ...")
        return first, given[1:]
    if first.is_dir() and len(given) > 1 and not is_image:
        # A folder without a model, before other inputs, is more likely a mistyped run.
        return first, given[1:]
    message("no model named: taking the built-in one, which finds cats and dogs in photos")
    return default_bundle_path(), given


def _check_inputs(inputs: list[str], options: "PredictOptions", flags: list[str]) -> None:
    """Refuse combinations that can't be; `flags` are the switches that were given."""
    if {"--overwrite", "--resume"} <= set(flags):
        raise UsageError("--overwrite replaces masks and --resume keeps them; give one of them")
    if PIPE in inputs and len(inputs) > 1:
        raise UsageError("- stands for one image on stdin; give it alone")
    if inputs == [PIPE]:
        shown = [name for name in options.outputs if name in {"overlay", "cutout"}]
        if len(shown) + ("--json" in flags) > 1:
            raise UsageError(
                "stdout has room for one answer; give one of --overlay, --cutout, --json"
            )
        if set(options.outputs) - {"overlay", "cutout"}:
            raise UsageError(
                "to stdout go a mask, --overlay, --cutout, or --json with outlines and objects; "
                "name a file for other answers"
            )
        if useless := [name for name in flags if name != "--json"]:
            raise UsageError(f"{useless[0]} is for files; - answers on stdout")
    if "--watch" in flags:
        if len(inputs) > 1:
            raise UsageError("--watch takes one folder")
        if useless := [name for name in flags if name in {"--json", "--resume", "--overwrite"}]:
            raise UsageError(
                f"{useless[0]} has no meaning with --watch, which replaces what changed"
            )


def _stdin() -> bytes:
    if sys.stdin.isatty():
        raise UsageError("- reads an image from stdin, which is the keyboard: pipe a file into it")
    return sys.stdin.buffer.read()


def _tell_round(result: "PredictResult") -> None:
    """Say what a round of --watch wrote."""
    for one in result.written:
        message(f"{one.source} -> {one.mask} ({one.foreground:.1%} foreground)")
    for failure in result.failures:
        message(f"binseg: {failure.reason}")


def _tell(result: "PredictResult", out: Path, *, as_json: bool) -> None:
    """Say what was written; failures are named and end the command with 1."""
    if as_json:
        write_json_answer(result.as_dict())
    else:
        num = len(result.written)
        show(f"{num} {'mask' if num == 1 else 'masks'} written to {out}")
    if result.failures:
        for failure in result.failures:
            message(f"binseg: {failure.reason}")
        if result.num_inputs > 1:
            message(f"binseg: {len(result.failures)} of {result.num_inputs} inputs failed")
        raise typer.Exit(1)
