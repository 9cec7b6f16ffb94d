"""`binseg predict`: masks for images."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from binseg.cli.console import message, progress_of, show, write_json_answer
from binseg.cli.options import Device, Json, TTAOption, With, register
from binseg.errors import UsageError

if TYPE_CHECKING:
    from binseg.inference import Predictor
    from binseg.inference.files import PredictResult
    from binseg.inference.outputs import OutputKinds
    from binseg.progress import Progress
    from binseg.types import TTA

__all__ = ["add_to", "predict"]

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


@dataclass(frozen=True, kw_only=True)
class _How:
    """What all inputs of a command share."""

    predictor: "Predictor"
    out: Path
    kinds: "OutputKinds"


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
        bool,
        typer.Option("--geojson", help="Also outlines; on the map where the image tells."),
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
        typer.Option("--no-postprocess", help="Leave out the corrections that the model brings."),
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
        bool,
        typer.Option("--watch", help="Go on with what comes into the folder, until Ctrl-C."),
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
    from binseg.evaluation.tuning import choose_for
    from binseg.inference import load
    from binseg.inference.files import predict_files
    from binseg.inference.outputs import OutputKinds

    run, inputs = _model_and_inputs(given)
    if overwrite and resume:
        raise UsageError("--overwrite replaces masks and --resume keeps them; give one of them")
    kinds = OutputKinds(
        mask="tif" if tiff else "png",
        overlay=overlay,
        cutout=cutout,
        probability=probability,
        geojson=geojson,
        coco=coco,
        table=table,
    )
    _check_inputs(inputs, kinds, watching=watch, as_json=json_)
    ends_at_once = {"--json": json_, "--resume": resume, "--overwrite": overwrite}
    if watch and (useless := [name for name, given in ends_at_once.items() if given]):
        raise UsageError(f"{useless[0]} has no meaning with --watch, which replaces what changed")
    of_files = {"--resume": resume, "--overwrite": overwrite, "--tiff": tiff, "--watch": watch}
    if inputs == [PIPE] and (useless := [name for name, given in of_files.items() if given]):
        raise UsageError(f"{useless[0]} is for files; - answers on stdout")
    predictor = load(
        [run, *(with_ or ())],
        backend=backend,
        device=device or "auto",
        precision=precision,
        batch_size=batch_size,
        tta=cast("TTA | None", tta),
    )
    if threshold is not None:
        predictor = predictor.with_threshold(threshold)
    if (scale, tile, overlap) != (1.0, None, None):
        predictor = predictor.with_tiles(scale=scale, size=tile, overlap=overlap)
    progress = progress_of(context)
    predictor = predictor.with_postprocessing(
        choose_for(
            predictor,
            min_area=min_area,
            fill_holes=fill_holes,
            largest_only=largest_only,
            own=not no_postprocess,
            progress=progress,
        )
    )
    how = _How(predictor=predictor, out=out, kinds=kinds)
    if inputs == [PIPE]:
        _pipe(how, as_json=json_, tolerance=tolerance)
    elif watch:
        _watch(how, inputs[0], progress, tolerance=tolerance)
    else:
        videos, others = _sorted(inputs)
        result = _videos(how, videos, overwrite=overwrite, resume=resume, progress=progress)
        if others:
            result += predict_files(
                predictor,
                others,
                out=out,
                kinds=kinds,
                tolerance=tolerance,
                overwrite=overwrite,
                resume=resume,
                progress=progress,
            )
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


def _check_inputs(
    inputs: list[str], kinds: "OutputKinds", *, watching: bool, as_json: bool
) -> None:
    """Refuse combinations that can't be."""
    if PIPE in inputs and len(inputs) > 1:
        raise UsageError("- stands for one image on stdin; give it alone")
    if inputs == [PIPE] and sum((kinds.overlay, kinds.cutout, as_json)) > 1:
        raise UsageError("stdout has room for one answer; give one of --overlay, --cutout, --json")
    if inputs == [PIPE] and (kinds.probability or kinds.geojson or kinds.coco or kinds.table):
        raise UsageError(
            "to stdout go a mask, --overlay, --cutout, or --json with outlines and objects; name a "
            "file for other answers"
        )
    if watching and len(inputs) > 1:
        raise UsageError("--watch takes one folder")


def _pipe(how: "_How", *, as_json: bool, tolerance: float) -> None:
    """One image from stdin, one answer to stdout."""
    from binseg.inference.pipe import predict_bytes

    if sys.stdin.isatty():
        raise UsageError("- reads an image from stdin, which is the keyboard: pipe a file into it")
    wanted = "overlay" if how.kinds.overlay else "cutout" if how.kinds.cutout else "mask"
    answer = predict_bytes(
        how.predictor,
        sys.stdin.buffer.read(),
        output="json" if as_json else wanted,
        tolerance=tolerance,
    )
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def _watch(how: "_How", folder: str, progress: "Progress", *, tolerance: float) -> None:
    """Predict what comes, and tell of each round; Ctrl-C ends it well."""
    from binseg.inference.watching import watch

    def tell(result: "PredictResult") -> None:
        for one in result.written:
            message(f"{one.source} -> {one.mask} ({one.foreground:.1%} foreground)")
        for failure in result.failures:
            message(f"binseg: {failure.reason}")

    message(f"watching {folder}; masks go to {how.out}; stop with Ctrl-C")
    try:
        watch(
            how.predictor,
            folder,
            out=how.out,
            kinds=how.kinds,
            tolerance=tolerance,
            told=tell,
            progress=progress,
        )
    except KeyboardInterrupt:
        message("stopped watching")


def _sorted(inputs: list[str]) -> tuple[list[Path], list[str]]:
    """Videos, and everything else."""
    from binseg.inference.video import is_video

    videos = [Path(one) for one in inputs if is_video(Path(one)) and Path(one).is_file()]
    names = {str(video) for video in videos}
    return videos, [one for one in inputs if str(Path(one)) not in names]


def _videos(
    how: "_How", videos: list[Path], *, overwrite: bool, resume: bool, progress: "Progress"
) -> "PredictResult":
    from binseg.inference.files import PredictResult
    from binseg.inference.video import predict_videos

    if not videos:
        return PredictResult(written=(), failures=())
    kinds = how.kinds
    others = (kinds.cutout, kinds.probability, kinds.geojson, kinds.coco, kinds.table)
    if any(others) or kinds.mask == "tif":
        raise UsageError("videos give masks and --overlay; take images of the frames for the rest")
    return predict_videos(
        how.predictor,
        videos,
        out=how.out,
        overlay=kinds.overlay,
        overwrite=overwrite,
        resume=resume,
        progress=progress,
    )


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
