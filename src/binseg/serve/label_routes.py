"""The routes of `binseg label`: strokes in, what is known and predicted out."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from binseg.errors import ImageError, OutputError
from binseg.labeling.label_log import MOST_POINTS, ChangedError, Stroke
from binseg.labeling.open_image import to_rgb
from binseg.labeling.session import Session
from binseg.serve.incoming import chunks_of
from binseg.serve.limits import Limits
from binseg.serve.refusals import DOCUMENTED, Refusal, documented
from binseg.serve.routes import PAGE, binary_response, healthz, readyz, service_of

_MOST_BODY = 2_000_000
_MOST_SHOWN = 16_000_000
_WAIT_S = 20.0
_TILE = 1024
_FARTHEST, _MOST_LINES = 10**6, 2**62
_HTML = (PAGE / "label" / "index.html").read_bytes()
router = APIRouter()
router.add_api_route("/healthz", healthz, tags=["service"], responses=documented(403, 422))
router.add_api_route("/readyz", readyz, tags=["service"], responses=documented(403, 422, 503))


Side = Annotated[int, Field(ge=-_FARTHEST, le=_FARTHEST)]


class _Sent(BaseModel):
    """The base of what the page sends."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Tile(_Sent):
    """The query for a square of an image."""

    name: str
    row: Side
    column: Side
    level: int = Field(default=0, ge=0, le=8)
    stretch: bool = False


class Part(_Sent):
    """The query for a part of what is shown."""

    name: str
    top: Side
    left: Side
    bottom: Side
    right: Side
    level: int = Field(default=0, ge=0, le=8)
    after: int = Field(default=0, le=_MOST_LINES)
    """A line of the log that the prediction should know of."""
    fine: bool = False
    """Wait for the finest answer."""


class Action(_Sent):
    """The base of what the page sends about an image."""

    name: str
    client: str | None = Field(default=None, max_length=64)
    """The page's own name for the request: sent twice, it counts once."""


class Drawing(Action):
    """Keep a stroke; the answer comes when it is on the disk."""

    tool: Literal["brush", "polygon"]
    value: int
    points: tuple[tuple[float, float], ...] = Field(max_length=MOST_POINTS)
    radius: float = 0.0
    model: str | None = Field(default=None, max_length=64)


class Filling(Action):
    """Give a value to the area around a point that is shown alike."""

    x: Side
    y: Side
    value: int


class Boxing(Action):
    """Give a value to the thing in a box, whose outline is found."""

    top: Side
    left: Side
    bottom: Side
    right: Side
    value: int


class Undoing(Action):
    """Take back the last stroke or decision on an image, or bring it back."""

    redo: bool = False


class Accepting(Action):
    """Keep what is shown as the image's mask; refused where something else is shown by now."""

    seen: int
    version: int | None = None
    """The prediction that was seen, by its number."""
    empty: bool = False


class Skipping(Action):
    """Leave an image out."""


class Training(_Sent):
    """Begin to train for real, with a budget in minutes; the status tells how far it is."""

    minutes: float = Field(gt=0.2, le=24 * 60)


def _draw(session: Session, *, name: str, client: str, model: str, **drawn: Any) -> int:
    return session.add_stroke(name, Stroke(**drawn), client=client, model=model)


def _box(session: Session, *, top: int, left: int, bottom: int, right: int, **more: Any) -> int:
    return session.box(rectangle=(top, left, bottom, right), **more)


ACTIONS: dict[str, tuple[type[BaseModel], Callable[..., int | None]]] = {
    "stroke": (Drawing, _draw),
    "fill": (Filling, Session.fill),
    "box": (Boxing, _box),
    "undo": (Undoing, Session.undo),
    "accept": (Accepting, Session.accept),
    "skip": (Skipping, Session.skip),
    "train": (Training, Session.train),
}
"""The body and the deed of each POST to /v1/label/..., by its name."""


class LabelService:
    """A session as the application needs a service; it is closed with the server."""

    def __init__(self, session: Session) -> None:
        self.session, self.limits, self.is_ready = session, Limits(), False
        self.tiles = _Tiles(session)
        self.waiting = ThreadPoolExecutor(32, thread_name_prefix="binseg-masks")
        """Requests for masks, which wait for an engine, so that no stroke waits behind them."""

    def open(self) -> None:
        """Begin to answer."""
        self.is_ready = True

    def close(self) -> None:
        """End the session; all strokes are on the disk already."""
        self.is_ready = False
        self.session.close()
        self.waiting.shutdown(cancel_futures=True)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count nothing: one person's page has no monitoring."""


Parts = Annotated[LabelService, Depends(service_of)]


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def label_page() -> Response:
    """Give the page."""
    return Response(_HTML, media_type="text/html", headers={"Cache-Control": "no-cache"})


@router.get("/v1/label/status", tags=["label"], responses=DOCUMENTED)
async def status(service: Parts) -> dict[str, Any]:
    """Say how far the project is, which engine answers, and how good it is."""
    return await asyncio.to_thread(service.session.status)


@router.get("/v1/label/images", tags=["label"], responses=DOCUMENTED)
async def images(service: Parts) -> list[dict[str, Any]]:
    """List all images with their state."""
    rows = await asyncio.to_thread(service.session.project.rows)
    return [
        {"name": row.name, "state": row.state, "check": row.is_check, "strokes": row.num_strokes}
        for row in rows
    ]


@router.get("/v1/label/open", tags=["label"], responses=DOCUMENTED)
async def open_image(name: str, service: Parts) -> dict[str, Any]:
    """Open an image: its size, its state, and the last line of its log."""
    opened = await asyncio.to_thread(service.session.open, name)
    row = await asyncio.to_thread(service.session.project.row, name)
    height, width = opened.image.size
    facts = {"name": name, "height": height, "width": width, "deep": opened.image.is_deep}
    return {**facts, "state": row.state, "check": row.is_check, "line": opened.line}


@router.get("/v1/label/next", tags=["label"], responses=DOCUMENTED)
async def next_image(service: Parts, after: str | None = None) -> dict[str, str | None]:
    """Choose the image to label next; null where none is left."""
    return {"name": await asyncio.to_thread(service.session.next, after)}


_PNG = binary_response("image/png")


@router.get("/v1/label/tile", tags=["label"], response_class=Response, responses=_PNG)
async def tile(query: Annotated[Tile, Query()], service: Parts) -> Response:
    """Give a square of an image, 1024 pixels a side, of which each stands for 2^level."""
    png = await asyncio.to_thread(service.tiles.png, query)
    kept = {"Cache-Control": "private, max-age=3600"}
    return Response(png, media_type="image/png", headers=kept)


@router.get("/v1/label/mask", tags=["label"], response_class=Response, responses=_PNG)
async def mask(query: Annotated[Part, Query()], service: Parts) -> Response:
    """Give a part of what is shown: 0 and 1 predicted, 2 and 3 labelled (grey PNG).

    It waits until the prediction knows of the line `after` of the log.
    """
    height, width = query.bottom - query.top, query.right - query.left
    if min(query.top, query.left) < 0 or min(height, width) <= 0:
        raise Refusal(422, "bad_parameter", "Ask for a part of the image that isn't empty.")
    if height * width >> (2 * query.level) > _MOST_SHOWN:
        raise Refusal(413, "too_large", "Ask for fewer pixels, or for a higher level.")
    how = query.model_dump(include={"level", "after", "fine"})
    box = (query.top, query.left, query.bottom, query.right)
    look = partial(service.session.shown, query.name, box, wait=_WAIT_S, **how)
    shown = await asyncio.get_running_loop().run_in_executor(service.waiting, look)
    headers = {
        "X-Binseg-Engine": shown.engine,
        "X-Binseg-Line": str(shown.line),
        "X-Binseg-Version": str(shown.version),
        "X-Binseg-Fine": str(int(shown.is_fine)),
        "X-Binseg-Seconds": f"{shown.seconds:.4f}",
        "X-Binseg-Share": f"{shown.share:.5f}",
    }
    png = await asyncio.to_thread(_png, shown.codes)
    return Response(png, media_type="image/png", headers=headers)


def _post(path: str, kind: type[BaseModel], work: Callable[..., int | None]) -> None:
    """Register the route of an action, whose body it reads itself, within its limits."""

    async def act(request: Request) -> dict[str, Any]:
        service: LabelService = request.app.state.service
        chunks = chunks_of(request, max_bytes=_MOST_BODY, limits=service.limits)
        data = b"".join([chunk async for chunk in chunks])
        try:
            body = kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            raise Refusal(422, "bad_parameter", f"{where[:60]}: {first['msg'][:160]}.") from None
        try:
            return {"line": await asyncio.to_thread(work, service.session, **dict(body))}
        except ChangedError as error:
            raise Refusal(409, "changed", f"{error}.") from None
        except OutputError:
            told = "The disk refused it; nothing was lost: make room on it, and draw on."
            raise Refusal(507, "storage", told) from None

    content = {"application/json": {"schema": kind.model_json_schema()}}
    router.add_api_route(
        f"/v1/label/{path}",
        act,
        methods=["POST"],
        name=path,
        description=kind.__doc__,
        tags=["label"],
        responses={**DOCUMENTED, **documented(409)},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


for _path, (_kind, _work) in ACTIONS.items():
    _post(_path, _kind, _work)


class _Tiles:
    """Squares of images as PNG; a large image's levels are made once and kept while it is open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._levels: dict[tuple[str, int, bool], np.ndarray] = {}

    def png(self, query: Tile) -> bytes:
        """Cut a tile, and pack it."""
        name, row, column, level = query.name, query.row, query.column, query.level
        key = (name, level, query.stretch)
        whole = self._levels.get(key)
        if whole is None:
            while len(self._levels) > 4:
                self._levels.pop(next(iter(self._levels)), None)
            image = self._session.open(name).image.rgb_HW3
            if query.stretch:
                image = to_rgb(image, stretch=True)
            if level:
                size = [max(1, (side + (1 << level) - 1) >> level) for side in image.shape[1::-1]]
                pil = Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BOX)
                image = np.asarray(pil)
            whole = self._levels[key] = image
        part = whole[row * _TILE : (row + 1) * _TILE, column * _TILE : (column + 1) * _TILE]
        if part.size == 0:
            raise ImageError(f"{name}: there is no tile {row}, {column} at level {level}")
        return _png(np.ascontiguousarray(part))


def _png(pixels: np.ndarray) -> bytes:
    """Pack pixels quickly rather than small: they travel within this machine."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
