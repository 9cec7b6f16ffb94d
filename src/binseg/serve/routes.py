"""The routes that answer at once."""

import asyncio
import io
import json
import time
import zipfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from binseg.errors import BinsegError
from binseg.serve.incoming import (
    Asking,
    Output,
    Predicting,
    Upload,
    media_of,
    output_of,
    read_uploads,
)
from binseg.serve.limits import Reservation
from binseg.serve.pipeline import preview
from binseg.serve.refusals import DOCUMENTED, Documented, Refusal, documented, refusal_of
from binseg.serve.service import Service

PAGE = Path(__file__).parent / "page"
_HTML = (PAGE / "index.html").read_bytes()
_AT_ONCE = 4  # Files of one batch that are in work together
_BINARY = {"type": "string", "format": "binary"}
_UNCACHED = {"Cache-Control": "no-cache"}
R = TypeVar("R")
_Result = tuple[Upload, Response | Refusal]
router = APIRouter()


async def service_of(request: Request) -> Any:
    """Give the service that the application was made for."""
    return request.app.state.service


Parts = Annotated[Service, Depends(service_of)]


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    whole = {"type": "object", "properties": {field: schema}, "required": [field]}
    return {"multipart/form-data": {"schema": whole}}


def _body(content: dict[str, Any], **more: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content, **more}}


IMAGE_BODY: dict[str, Any] = _body(
    {"application/octet-stream": {"schema": _BINARY}, **_form("file", _BINARY)},
    description="An image (JPEG, PNG, WebP, BMP, TIFF): its bytes, or a form's field file.",
)
_FILES_BODY = _body(_form("files", {"type": "array", "items": _BINARY, "minItems": 1}))


def binary_response(*media: str) -> Documented:
    """Describe a successful response and the refusals that any route may give, for OpenAPI."""
    kinds: dict[str, Any] = {
        one: {} if one == "application/json" else {"schema": _BINARY} for one in media
    }
    return {200: {"content": kinds, "description": "The result."}, **DOCUMENTED}


class PageFiles(StaticFiles):
    """Files of the page; browsers ask each time whether they have changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Give a file, or say that it is as before."""
        response = super().file_response(*args, **kwargs)
        response.headers.setdefault("Cache-Control", "no-cache")
        return response


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page() -> Response:
    """Give the page."""
    return Response(_HTML, media_type="text/html", headers=_UNCACHED)


@router.get("/healthz", tags=["service"], responses=documented(403, 422))
async def healthz() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz", tags=["service"], responses=documented(403, 422, 503))
async def readyz(service: Parts) -> JSONResponse:
    """Say whether images are accepted: 503 while the server starts or ends."""
    status, code = ("ready", 200) if service.is_ready else ("not ready", 503)
    return JSONResponse({"status": status}, status_code=code)


@router.get("/metrics", tags=["service"], responses=binary_response("text/plain"))
async def metrics(service: Parts) -> Response:
    """Figures about the server, as Prometheus reads them."""
    text = generate_latest(service.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/v1/models", tags=["models"], responses=DOCUMENTED)
async def models(service: Parts) -> dict[str, Any]:
    """List the models with their cards, and the server's limits."""
    cards = [model.facts() for model in service.registry]
    return {"models": cards, "limits": service.limits.as_dict()}


@router.get("/v1/models/{model}", tags=["models"], responses=DOCUMENTED | documented(404))
async def model(model: str, service: Parts) -> dict[str, Any]:
    """Show one model's card."""
    return service.registry.find(model).facts()


@router.get("/v1/examples", tags=["examples"], responses=DOCUMENTED)
async def examples(service: Parts) -> list[dict[str, str]]:
    """List images to try a model with."""
    return [one.facts for one in service.examples.values()]


@router.get(
    "/v1/examples/{name}",
    tags=["examples"],
    response_class=Response,
    responses=binary_response("image/png") | documented(404),
)
async def example(name: str, service: Parts) -> Response:
    """Give an example's image."""
    found = service.examples.get(name)
    if found is None:
        raise Refusal(404, "not_found", "There is no such example; /v1/examples lists them.")
    png = await service.pipeline.in_thread(found.png)
    return Response(png, media_type="image/png", headers=_UNCACHED)


@router.post(
    "/v1/predict",
    tags=["predict"],
    response_class=Response,
    responses=binary_response("image/png", "application/json") | documented(404, 406),
    openapi_extra=IMAGE_BODY,
)
async def predict(request: Request, query: Predicting, service: Parts) -> Response:
    """Find the foreground in one image, at the image's own size (turned by its EXIF)."""
    output = output_of(query, request)
    model = service.registry.find(query.model)

    def work(sent: list[Upload], reserved: Reservation) -> Coroutine[Any, Any, Response]:
        return service.pipeline.predict(model, sent[0], query, output=output, reserved=reserved)

    return await _answer(request, service, work)


@router.post(
    "/v1/preview",
    tags=["predict"],
    response_class=Response,
    responses=binary_response("image/png"),
    openapi_extra=IMAGE_BODY,
)
async def show(request: Request, service: Parts) -> Response:
    """Turn any image (TIFF, 16 bits) into a PNG that browsers show, at most 4096 a side."""
    pipeline, limits = service.pipeline, service.limits

    def work(sent: list[Upload], reserved: Reservation) -> Coroutine[Any, Any, Response]:
        return pipeline.aside(preview, pipeline.cage, sent[0], limits=limits, reserved=reserved)

    return await _answer(request, service, work)


@router.post(
    "/v1/batch",
    tags=["predict"],
    response_class=Response,
    responses=binary_response("application/zip", "application/json") | documented(404, 406),
    openapi_extra=_FILES_BODY,
)
async def batch(request: Request, query: Asking, service: Parts) -> Response:
    """Find the foreground in several images (a form's fields `files`).

    A ZIP of masks comes back, or JSON by Accept. What can't be read is listed in the ZIP's
    errors.json; if nothing can, the whole is refused. quality.json tells which masks to doubt.
    """
    media = media_of(request, ("application/zip", "application/json"))
    output: Output = "json" if media == "application/json" else "mask"
    model = service.registry.find(query.model)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(upload: Upload, whole: Reservation) -> _Result:
        async with turns:
            with whole.part() as own:  # its pixels are gone when it is encoded
                work = service.pipeline.predict(model, upload, query, output=output, reserved=own)
                try:
                    return upload, await work
                except (Refusal, BinsegError) as error:
                    return upload, refusal_of(error)

    async def work(files: list[Upload], reserved: Reservation) -> list[_Result]:
        async with asyncio.TaskGroup() as group:  # unlike gather, it ends when all have ended
            tasks = [group.create_task(one(upload, reserved)) for upload in files]
        return [task.result() for task in tasks]

    results = await _answer(request, service, work, many=True)
    refused = [result for _, result in results if isinstance(result, Refusal)]
    if len(refused) == len(results):
        raise refused[0]
    pack = _as_json if output == "json" else _as_zip
    data = await service.pipeline.in_thread(pack, results)
    return Response(data, media_type=media, headers={"X-Binseg-Model": model.id})


async def _answer(
    request: Request,
    service: Service,
    work: Callable[[list[Upload], Reservation], Coroutine[Any, Any, R]],
    *,
    many: bool = False,
) -> R:
    """Read a body and do the work on it, with memory reserved and a slot held until that ends."""
    service.capacity.check()
    with ExitStack() as held:
        reserved = held.enter_context(service.capacity.reservation())
        sent = await read_uploads(request, limits=service.limits, reserved=reserved, many=many)
        held.enter_context(service.capacity.slot())
        doing = _holding(work(sent, reserved), held.pop_all())
    return await _unless_gone(request, doing, seconds=service.limits.max_seconds)


async def _holding(work: Coroutine[Any, Any, R], held: ExitStack) -> R:
    """Return slots and memory when the work has ended, however late that is."""
    with held:
        return await work


async def _unless_gone(request: Request, work: Coroutine[Any, Any, R], *, seconds: float) -> R:
    """Do the work, unless the client goes away or it takes too long; then it is given up."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if gone.done():
            raise ClientDisconnect
        told = f"It would take longer than {seconds:g} s; send it as a job (POST /v1/jobs)."
        raise Refusal(422, "timeout", told)
    except asyncio.CancelledError:  # by the server's end, which has waited long enough
        raise Refusal(503, "ending", "The server is being stopped; try again later.") from None
    finally:
        gone.cancel()
        if doing.cancel():
            _ENDING.add(doing)  # the loop itself keeps no task alive
            doing.add_done_callback(_ENDING.discard)


_ENDING: set[asyncio.Future[Any]] = set()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _as_zip(results: Sequence[_Result]) -> bytes:
    out, names, errors, judged = io.BytesIO(), set[str](), [], {}
    with zipfile.ZipFile(out, "w") as archive:  # PNG is packed already
        for upload, result in results:
            if isinstance(result, Refusal):
                errors.append({"name": upload.name, "error": result.as_dict()})
                continue
            stem, number = Path(upload.name).stem, 2
            name = f"{stem}.png"
            while name.lower() in names:
                name, number = f"{stem}_{number}.png", number + 1
            names.add(name.lower())
            archive.writestr(_entry(name), bytes(result.body))
            if found := result.headers.get("X-Binseg-Quality"):
                judged[name] = json.loads(found)
        for name, told in (("errors.json", errors), ("quality.json", judged)):
            if told:
                archive.writestr(_entry(name), json.dumps(told, indent=2))
    return out.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, time.localtime()[:6])
    entry.external_attr = 0o644 << 16
    return entry


def _as_json(results: Sequence[_Result]) -> bytes:
    lines = []
    for upload, result in results:
        answer = result.response() if isinstance(result, Refusal) else result
        lines.append({"name": upload.name, **json.loads(bytes(answer.body))})
    return json.dumps({"results": lines}).encode()
