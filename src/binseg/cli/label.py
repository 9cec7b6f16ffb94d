"""`binseg label` and `suggest`: from images without masks to masks and a model."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from binseg.cli import options as opt
from binseg.cli.console import progress_of, show, write_json_answer
from binseg.cli.options import argument, option
from binseg.cli.serve import read_token, run_server, say_address, serving
from binseg.errors import MissingExtraError, UsageError

_PARTS = ("sklearn", "skimage")


def label(
    context: typer.Context,
    *,
    images: Annotated[Path, argument("The images; they are never written to.", "FOLDER")],
    model: Annotated[Path | None, option("Correct the predictions of this model.", "RUN")] = None,
    home: Annotated[
        Path | None,
        option("Place of masks/ and labels.sqlite; beside the images if left out.", "FOLDER"),
    ] = None,
    foreground: Annotated[
        list[int] | None,
        option("Value of foreground in masks that are there already (repeatable).", "VALUE"),
    ] = None,
    ignore: Annotated[
        list[int] | None,
        option("Value of pixels not labelled yet in such masks (repeatable).", "VALUE"),
    ] = None,
    cold: Annotated[
        bool, option("Train no network beside: for machines with little to spare.")
    ] = False,
    host: Annotated[str, option("Address to listen on; 0.0.0.0 lets a tablet in.")] = "127.0.0.1",
    port: Annotated[int, option("Port; 0 takes a free one.")] = 8001,
    no_open: Annotated[bool, option("Open no page in a browser.")] = False,
    token_file: opt.TokenFile = None,
    export: Annotated[
        str | None,
        option("Write the labels as labelme, coco, cvat or yolo to --out, and end.", "FORMAT"),
    ] = None,
    out: Annotated[Path | None, option("Folder for --export.", "FOLDER")] = None,
) -> None:
    """Label a folder of images in the browser, with help that learns from every stroke.

    Strokes are on the disk before they are answered; accepted masks are in masks/ beside the
    images, so that `binseg train --data` takes them. Ctrl-C ends.

    Examples:
        binseg label my_images/
        binseg label my_images/ --model runs/first
        binseg label my_images/ --export coco --out labels/
        binseg train --data my_images/
    """
    from binseg.config import DataConfig

    if (export is None) != (out is None):
        raise UsageError("--export FORMAT and --out FOLDER go together")
    progress = progress_of(context)
    masks = DataConfig(foreground=foreground, ignore=ignore)
    if export is not None and out is not None:
        from binseg.labeling.label_files import write_labels
        from binseg.labeling.project import Project

        with closing(Project(images, home=home, config=masks, progress=progress)) as project:
            show(write_labels(export, project.accepted(), out))
        return
    with serving("binseg label"):
        from binseg.serve import label_routes
        from binseg.serve.app import Access
        from binseg.serve.server import bind
    _check_parts()
    from binseg.pipelines.label_images import open_session

    access = Access(token=read_token(token_file))
    with bind(host, port) as listener:
        session = open_session(
            images, model=model, home=home, masks=masks, trains=not cold, progress=progress
        )
        service, tell = label_routes.LabelService(session), partial(say_address, "label")
        where = {"listener": listener, "access": access, "routers": [label_routes.router]}
        run_server(service, host, verb="label", may="draw", tell=tell, opens=not no_open, **where)


def suggest(
    context: typer.Context,
    *,
    place: opt.Place = None,
    data: opt.Data = None,
    model: Annotated[Path | None, option("A run or bundle that looks at them.", "RUN")] = None,
    num: Annotated[int, option("Images to name.", min=1)] = 20,
    seed: Annotated[int, option("Decides every random choice.")] = 0,
    json_: opt.Json = False,
) -> None:
    """Rank the images without a mask: at random, but those that seem empty mostly late.

    Examples:
        binseg suggest my_images/ --model runs/first
        binseg suggest my_images/ --model runs/first --num 50 --json
    """
    _check_parts()
    from binseg.pipelines.label_images import suggest as run

    data = opt.needed_data(place, data, verb="suggest")
    if model is None:
        raise UsageError("which model looks at them? Give --model RUN")

    ranked = run(data, model=model, seed=seed, progress=progress_of(context))
    if json_:
        rows = [{"image": name, "foreground": share} for name, share in ranked[:num]]
        write_json_answer({"unlabelled": len(ranked), "next": rows})
        return
    for name, share in ranked[:num]:
        show(f"{name}   foreground {share:.1%}")
    show(f"{len(ranked)} images have no mask; `binseg label {data} --model {model}` labels them")


def _check_parts() -> None:
    from importlib.util import find_spec

    for package in _PARTS:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="label", purpose="binseg label")
