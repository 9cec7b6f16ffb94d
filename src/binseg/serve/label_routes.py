"""The routes of `binseg label`: strokes in, what is known and predicted out."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from binseg.errors import ImageError
from binseg.labeling.label_log import ChangedError
from binseg.labeling.session import Session
from binseg.labeling.strokes import MOST_POINTS, Stroke
from binseg.labeling.working_image import to_rgb
from binseg.serve.incoming import chunks_of
from binseg.serve.limits import Limits
from binseg.serve.refusals import DOCUMENTED, Refusal, documented
from binseg.serve.routes import PAGE, binary_response, healthz, readyz

_MOST_BODY = 2_000_000
_MOST_SHOWN = 16_000_000
_WAIT_S = 20.0
_TILE = 1024
_FARTHEST, _MOST_LINES = 10**6, 2**62
_CHANGED = {**DOCUMENTED, **documented(409)}
_HTML = (PAGE / "label" / "index.html").read_bytes()
B = TypeVar("B", bound=BaseModel)
router = APIRouter()
router.add_api_route("/healthz", healthz, tags=["service"], responses=documented(403, 422))
router.add_api_route("/readyz", readyz, tags=["service"], responses=documented(403, 422, 503))


Side = Annotated[int, Field(ge=-_FARTHEST, le=_FARTHEST)]


class Tile(BaseModel):
    """The query for a square of an image."""

    model_config = ConfigDict(extra="forbid")
    name: str
    row: Side
    column: Side
    level: int = Field(default=0, ge=0, le=8)
    stretch: bool = False


class Part(BaseModel):
    """The query for a part of what is shown."""

    model_config = ConfigDict(extra="forbid")
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


class Body(BaseModel):
    """The base of what the page sends about an image."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str
    client: str | None = Field(default=None, max_length=64)
    """The page's own name for the request: sent twice, it counts once."""


class Drawn(Body):
    """One stroke."""

    tool: str
    value: int
    points: list[tuple[float, float]] = Field(max_length=MOST_POINTS)
    radius: float = 0.0
    model: str | None = Field(default=None, max_length=64)


class Filling(Body):
    """A point whose area is filled."""

    x: Side
    y: Side
    value: int


class Boxed(Body):
    """A box around a thing."""

    top: Side
    left: Side
    bottom: Side
    right: Side
    value: int


class Undoing(Body):
    """The last stroke is taken back, or brought back."""

    redo: bool = False


class Accepting(Body):
    """An image is done."""

    seen: int
    version: int | None = None
    """The prediction that was seen, by its number."""
    empty: bool = False


class Training(BaseModel):
    """A training for real."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    minutes: float = Field(gt=0.2, le=24 * 60)


class LabelService:
    """A session as the application needs a service; it is closed with the server."""

    def __init__(self, session: Session, *, limits: Limits | None = None) -> None:
        self.session = session
        self.limits = limits or Limits()
        self.is_ready = False
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


async def _service(request: Request) -> LabelService:
    service: LabelService = request.app.state.service
    return service


Parts = Annotated[LabelService, Depends(_service)]


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
    look = partial(
        service.session.shown,
        query.name,
        (query.top, query.left, query.bottom, query.right),
        level=query.level,
        after=query.after,
        wait=_WAIT_S,
        fine=query.fine,
    )
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


Route = Callable[[Request], Awaitable[dict[str, Any]]]


def _posting(path: str, kind: type[BaseModel]) -> Callable[[Route], Route]:
    """Register a route that takes a body of a kind, which it reads itself, within its limits."""
    content = {"application/json": {"schema": kind.model_json_schema()}}
    extra = {"requestBody": {"required": True, "content": content}}
    return router.post(f"/v1/label/{path}", tags=["label"], responses=_CHANGED, openapi_extra=extra)


async def _read(request: Request, kind: type[B]) -> tuple[B, Session]:
    service: LabelService = request.app.state.service
    chunks = chunks_of(request, max_bytes=_MOST_BODY, limits=service.limits)
    data = b"".join([chunk async for chunk in chunks])
    try:
        return kind.model_validate_json(data), service.session
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Refusal(422, "bad_parameter", f"{where[:60]}: {first['msg'][:160]}.") from None


async def _done(work: Callable[..., int | None], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Do it in a thread, and tell the line of the log that it became."""
    try:
        return {"line": await asyncio.to_thread(work, *args, **kwargs)}
    except ChangedError as error:
        raise Refusal(409, "changed", f"{error}.") from None


@_posting("stroke", Drawn)
async def stroke(request: Request) -> dict[str, Any]:
    """Keep a stroke; the answer comes when it is on the disk."""
    body, session = await _read(request, Drawn)
    if body.tool not in {"brush", "polygon"}:
        raise Refusal(422, "bad_parameter", "Strokes are of the tools brush and polygon.")
    points = tuple(body.points)
    drawn = Stroke(tool=body.tool, value=body.value, points=points, radius=body.radius)
    return await _done(session.add_stroke, body.name, drawn, client=body.client, model=body.model)


@_posting("fill", Filling)
async def fill(request: Request) -> dict[str, Any]:
    """Give a value to the area around a point that is shown alike."""
    body, session = await _read(request, Filling)
    place = (body.x, body.y)
    return await _done(session.fill, body.name, *place, body.value, client=body.client)


@_posting("box", Boxed)
async def box(request: Request) -> dict[str, Any]:
    """Give a value to the thing in a box, whose outline is found."""
    body, session = await _read(request, Boxed)
    sides = (body.top, body.left, body.bottom, body.right)
    return await _done(session.box, body.name, sides, body.value, client=body.client)


@_posting("undo", Undoing)
async def undo(request: Request) -> dict[str, Any]:
    """Take back the last stroke or decision on an image, or bring it back."""
    body, session = await _read(request, Undoing)
    return await _done(session.undo, body.name, redo=body.redo, client=body.client)


@_posting("accept", Accepting)
async def accept(request: Request) -> dict[str, Any]:
    """Keep what is shown as the image's mask; refused where something else is shown by now."""
    body, session = await _read(request, Accepting)
    facts = {"seen": body.seen, "version": body.version, "empty": body.empty}
    return await _done(session.accept, body.name, client=body.client, **facts)


@_posting("skip", Body)
async def skip(request: Request) -> dict[str, Any]:
    """Leave an image out."""
    body, session = await _read(request, Body)
    return await _done(session.skip, body.name, client=body.client)


@_posting("train", Training)
async def train(request: Request) -> dict[str, Any]:
    """Begin to train for real, with a budget in minutes; the status tells how far it is."""
    body, session = await _read(request, Training)
    return await _done(session.train, body.minutes)


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
