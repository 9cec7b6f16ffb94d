"""`binseg label`: from images without masks to masks and a model, in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from binseg.cli.console import message, progress_of, show
from binseg.cli.options import register
from binseg.cli.serve import open_browser, read_token, refuse_missing
from binseg.errors import MissingExtraError, UsageError

EXAMPLES = (
    "binseg label my_images/",
    "binseg label my_images/ --model runs/first",
    "binseg label my_images/ --export coco --out labels/",
    "binseg train --data my_images/",
)
_PARTS = ("sklearn", "skimage")


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, label, name="label", examples=EXAMPLES)


def label(
    context: typer.Context,
    *,
    images: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The images; they are never written to.")
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="RUN", help="Correct the predictions of this model."),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            metavar="FOLDER",
            help="Place of masks/ and labels.sqlite; beside the images if left out.",
        ),
    ] = None,
    foreground: Annotated[
        list[int] | None,
        typer.Option(
            "--foreground",
            metavar="VALUE",
            help="Value of foreground in masks that are there already (repeatable).",
        ),
    ] = None,
    ignore: Annotated[
        list[int] | None,
        typer.Option(
            "--ignore",
            metavar="VALUE",
            help="Value of pixels not labelled yet in such masks (repeatable).",
        ),
    ] = None,
    cold: Annotated[
        bool,
        typer.Option("--cold", help="Train no network beside: for machines with little to spare."),
    ] = False,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; 0.0.0.0 lets a tablet in."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8001,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = True,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Requests must bear the token in this file (or in $BINSEG_TOKEN).",
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="FORMAT",
            help="Write the labels as labelme, coco, cvat or yolo to --out, and end.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder for --export.")
    ] = None,
) -> None:
    """Label a folder of images in the browser, with help that learns from every stroke.

    Strokes are on the disk before they are answered; accepted masks are in masks/ beside the
    images, so that `binseg train --data` takes them. Ctrl-C ends.
    """
    if (export is None) != (out is None):
        raise UsageError("--export FORMAT and --out FOLDER go together")
    progress = progress_of(context)
    from binseg.config import DataConfig

    masks = DataConfig(foreground=foreground, ignore=ignore)
    if export is not None and out is not None:
        from binseg.labeling.label_files import write_labels
        from binseg.labeling.project import Project

        project = Project(images, home=home, config=masks, progress=progress)
        try:
            show(write_labels(export, project.accepted(), out))
        finally:
            project.close()
        return
    try:
        from binseg.serve.app import Access
        from binseg.serve.label_routes import LabelService
        from binseg.serve.server import Server, bind, is_loopback, network_address
    except ModuleNotFoundError as error:
        raise refuse_missing(error, purpose="binseg label") from None
    _check_parts()
    from binseg.pipelines.label_images import open_session

    access = Access(token=read_token(token_file))

    def started(url: str) -> None:
        message(f"binseg label: {url} (Ctrl-C ends)")
        if network := network_address(host):
            message(f"binseg label: for others on your network: http://{network}:{port}/")
        if open_:
            open_browser(url)

    with bind(host, port) as listener:
        session = open_session(
            images, model=model, home=home, masks=masks, trains=not cold, progress=progress
        )
        if not is_loopback(host) and access.token is None:
            message("binseg label: no token is asked for: whoever reaches this address may draw")
        Server(LabelService(session), listener=listener, access=access, started=started).run()


def _check_parts() -> None:
    from importlib.util import find_spec

    for package in _PARTS:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="label", purpose="binseg label")
