"""`binseg serve`: models behind HTTP, with a page for people; `label` and `suggest`."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from binseg.cli import options as opt
from binseg.cli.console import message, progress_of, show, write_json_answer
from binseg.cli.options import argument, option
from binseg.errors import BinsegError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from binseg.serve.service import Service

_PARTS = ("fastapi", "h11", "prometheus_client", "python_multipart", "starlette", "uvicorn")
_MEGA = 1_000_000


def serve(
    *,
    runs: Annotated[
        list[Path] | None,
        argument("Runs or bundles, the default first; the model of cats and dogs if none.", "RUN"),
    ] = None,
    demo: Annotated[bool, option("Serve the model that `make demo` makes.")] = False,
    host: opt.Host = "127.0.0.1",
    port: Annotated[int, option("Port; 0 takes a free one.")] = 8000,
    open_: Annotated[bool, option("Open the page in a browser.")] = False,
    token_file: opt.TokenFile = None,
    allow_host: Annotated[
        list[str] | None,
        option("Another name that the server answers to, as behind a proxy (repeatable).", "NAME"),
    ] = None,
    cors: Annotated[
        list[str] | None,
        option("Another web page that may use it, as https://example.org (repeatable).", "ORIGIN"),
    ] = None,
    max_bytes: Annotated[float, option("Largest file, in MB.", "MB")] = 50,
    max_pixels: Annotated[float, option("Largest image, in megapixels.", "MP")] = 50,
    max_job_bytes: Annotated[float, option("Largest file of a job, in MB.", "MB")] = 4000,
    max_jobs_bytes: Annotated[float, option("All jobs on disk together, in MB.", "MB")] = 20_000,
    max_seconds: Annotated[float, option("Longest time for an answer.", "S")] = 60,
    queue: Annotated[int, option("Predictions running or waiting.", "N")] = 32,
    workers: Annotated[int, option("Images decoded or encoded at once.", "N")] = 8,
    batch_size: opt.InputsAtOnce = 8,
    state: Annotated[Path | None, option("Keeps jobs across restarts.", "FOLDER")] = None,
    device: opt.Device = None,
    backend: opt.Backend = "auto",
    precision: opt.Precision = "auto",
) -> None:
    """Answer images over HTTP, with a page to drop them on, until Ctrl-C.

    The address is printed at the start; /openapi.json describes the requests. Only this machine is
    let in unless --host says otherwise. Nothing that is sent is kept, except jobs for a day.

    Examples:
        binseg serve runs/first --open
        binseg serve --demo
        binseg serve runs/first runs/second --port 9000 --state jobs/
        BINSEG_TOKEN=... binseg serve runs/first --host 0.0.0.0
    """
    with serving("binseg serve"):
        from binseg.serve.app import Access
        from binseg.serve.limits import Limits
        from binseg.serve.model_registry import choose_bundles, open_models, run_name
        from binseg.serve.server import bind
        from binseg.serve.service import Service
    from binseg.storage import cache_dir

    limits = Limits(
        max_bytes=int(max_bytes * _MEGA),
        max_pixels=int(max_pixels * _MEGA),
        max_job_bytes=int(max_job_bytes * _MEGA),
        max_jobs_bytes=int(max_jobs_bytes * _MEGA),
        max_seconds=max_seconds,
        queue=queue,
        workers=workers,
    )
    access = Access(
        token=read_token(token_file),
        hosts=[_host(one) for one in allow_host or ()],
        origins=[_origin(one) for one in cors or ()],
    )
    bundles = choose_bundles(runs or [], demo=demo)
    if not runs and not demo:
        message(
            "no model named: taking the built-in one, which finds cats and dogs in photos. Your "
            "own: binseg train --data my_folder/ --out runs/first, then binseg serve runs/first; "
            "or the demo's: binseg demo, then binseg serve --demo"
        )

    with bind(host, port) as listener:  # before the models: that it is taken is known at once
        how: Any = {"backend": backend, "device": device or "auto", "precision": precision}
        models = open_models(bundles, batch_size=batch_size, **how)
        os.umask(0o077)  # jobs hold other people's images
        service = Service(
            models,
            state=state or cache_dir() / "serve" / str(port),
            limits=limits,
            names=[run_name(path) for path in bundles],
        )
        tell, where = partial(_say_started, service), {"listener": listener, "access": access}
        run_server(service, host, verb="serve", may="use it", tell=tell, opens=open_, **where)


@contextmanager
def serving(purpose: str) -> Iterator[None]:
    """Name the extra that brings a package of the server, where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _PARTS:
            raise
        raise MissingExtraError(package, extra="serve", purpose=purpose) from None


def run_server(
    service: Any,
    host: str,
    *,
    verb: str,
    may: str,
    tell: Callable[[str, str | None], None],
    opens: bool,
    **where: Any,
) -> None:
    """Serve until Ctrl-C; `tell` hears the addresses, `opens` shows the page in a browser."""
    import threading
    import webbrowser

    from binseg.serve.server import Server, is_loopback, network_address

    def started(url: str) -> None:
        tell(url, network_address(host))
        if opens:  # some browsers don't return before they are closed
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    if not is_loopback(host) and where["access"].token is None:
        message(f"binseg {verb}: no token is required: anyone who reaches this address may {may}")
    Server(service, started=started, **where).run()


def _say_started(service: "Service", url: str, network: str | None) -> None:
    for model in service.registry:
        message(f"binseg serve: {model.name}" + (f" finds {model.finds}" if model.finds else ""))
    say_address("serve", url, network)


def say_address(verb: str, url: str, network: str | None) -> None:
    """Print the address, and that for other machines with a code for their cameras, if any."""
    message(f"binseg {verb}: {url} (Ctrl-C ends)")
    if network is None:
        return
    host = f"[{network}]" if ":" in network else network
    elsewhere = f"http://{host}:{urlsplit(url).port}/"
    message(f"binseg {verb}: for others on your network: {elsewhere}")
    if sys.stderr.isatty():
        import segno

        segno.make_qr(elsewhere).terminal(out=sys.stderr, compact=True)


def _host(text: str) -> str:
    """A host's name as requests name it, without its port."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", text):
        raise UsageError(
            f"--allow-host {text}: give the name alone, as masks.example.org, without http:// and "
            "port"
        )
    return text.lower()


def _origin(text: str) -> str:
    """A page's origin as browsers write it."""
    plain = text.lower().rstrip("/")
    if plain != "*" and not re.fullmatch(r"https?://[^/\s]+", plain):
        raise UsageError(f"--cors {text}: give an origin, as https://example.org, or *")
    return plain


def read_token(path: Path | None) -> str | None:
    """Read the token from a file or the environment; on the command line all could read it."""
    if path is None:
        token = os.environ.get("BINSEG_TOKEN")
        return None if token is None else token.strip()
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise BinsegError(f"{path}: can't be read: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: a token is one line of plain letters (ASCII)") from None


_LABEL_PARTS = ("sklearn", "skimage")


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
    cold: Annotated[bool, option("Train no network in the background: for slow machines.")] = False,
    host: opt.Host = "127.0.0.1",
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
    model: Annotated[Path | None, option("The run or bundle that ranks them.", "RUN")] = None,
    num: Annotated[int, option("Images to name.", min=1)] = 20,
    seed: Annotated[int, option("Decides every random choice.")] = 0,
    json_: opt.Json = False,
) -> None:
    """Rank the images without a mask in random order, those that seem empty mostly last.

    Examples:
        binseg suggest my_images/ --model runs/first
        binseg suggest my_images/ --model runs/first --num 50 --json
    """
    _check_parts()
    from binseg.pipelines.label_images import suggest as run

    data = opt.needed_data(place, data, verb="suggest")
    if model is None:
        raise UsageError("which model ranks them? Give --model RUN")
    ranked = run(data, model=model, seed=seed, progress=progress_of(context))
    if json_:
        rows = [{"image": name, "foreground": share} for name, share in ranked[:num]]
        write_json_answer({"unlabelled": len(ranked), "next": rows})
        return
    for name, share in ranked[:num]:
        show(f"{name}   foreground {share:.1%}")
    show(f"without a mask: {len(ranked)}; `binseg label {data} --model {model}` labels them")


def _check_parts() -> None:
    from importlib.util import find_spec

    for package in _LABEL_PARTS:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="label", purpose="binseg label")
