"""The routes that answer at once."""

import asyncio
import io
import json
import time
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles

from binseg.serve.limits import Reservation
from binseg.serve.model_registry import ServedModel
from binseg.serve.pipeline import EncodedResult, preview
from binseg.serve.queries import Asking, Output, Predicting, Wanted, media_of, output_of
from binseg.serve.refusals import DOCUMENTED, Documented, Refusal, documented
from binseg.serve.service import Service
from binseg.serve.threads import unless_gone
from binseg.serve.uploads import Upload, read_form, read_upload

PAGE = Path(__file__).parent / "page"
_AT_ONCE = 4
"""Files of one batch that are in work together."""
_BINARY = {"type": "string", "format": "binary"}
_UNCACHED = {"Cache-Control": "no-cache"}


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


def add_to(app: FastAPI, service: Service) -> None:
    """Add all routes."""
    add_page(app, service)
    _add_metrics(app, service)
    _add_models(app, service)
    _add_predict(app, service)
    _add_batch(app, service)


class Ready(Protocol):
    """A service that says whether it accepts requests."""

    is_ready: bool


def add_page(app: FastAPI, service: Ready, *, page: Path = PAGE / "index.html") -> None:
    """Add a page, the files that belong to it, and the probes of health."""
    html = page.read_bytes()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=_UNCACHED)

    app.mount("/static", _Static(directory=PAGE), name="static")

    @app.get("/healthz", tags=["service"], responses=documented(403, 422))
    async def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"], responses=documented(403, 422, 503))
    async def readyz() -> JSONResponse:
        """Say whether images are accepted: 503 while the server starts or ends."""
        status, code = ("ready", 200) if service.is_ready else ("not ready", 503)
        return JSONResponse({"status": status}, status_code=code)


def _add_metrics(app: FastAPI, service: Service) -> None:
    @app.get("/metrics", tags=["service"], responses=binary_response("text/plain"))
    async def metrics() -> Response:
        """Figures about the server, as Prometheus reads them."""
        text, media = service.metrics.text()
        return Response(text, headers={"Content-Type": media})


class _Static(StaticFiles):
    """Files of the page; browsers ask each time whether they have changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Give a file, or say that it is as before."""
        response = super().file_response(*args, **kwargs)
        response.headers.setdefault("Cache-Control", "no-cache")
        return response


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", tags=["models"], responses=DOCUMENTED)
    async def models() -> dict[str, Any]:
        """List the models with their cards, and the server's limits."""
        return {
            "models": [model.facts() for model in service.registry],
            "limits": service.limits.as_dict(),
        }

    @app.get("/v1/models/{model}", tags=["models"], responses=DOCUMENTED | documented(404))
    async def model(model: str) -> dict[str, Any]:
        """Show one model's card."""
        return service.registry.find(model).facts()

    @app.get("/v1/examples", tags=["examples"], responses=DOCUMENTED)
    async def examples() -> list[dict[str, str]]:
        """List images to try a model with."""
        return [one.as_dict() for one in service.examples.list()]

    @app.get(
        "/v1/examples/{name}",
        tags=["examples"],
        response_class=Response,
        responses=binary_response("image/png") | documented(404),
    )
    async def example(name: str) -> Response:
        """Give an example's image."""
        found = service.examples.find(name)
        if found is None:
            raise Refusal(404, "not_found", "There is no such example; /v1/examples lists them.")
        png = await service.pipeline.in_thread(lambda: found.png)
        return Response(png, media_type="image/png", headers=_UNCACHED)


def _add_predict(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post(
        "/v1/predict",
        tags=["predict"],
        response_class=Response,
        responses=binary_response("image/png", "application/json") | documented(404, 406),
        openapi_extra=IMAGE_BODY,
    )
    async def predict(request: Request, query: Predicting) -> Response:
        """Find the foreground in one image, at the image's own size (turned by its EXIF)."""
        output = output_of(query, request)
        model = service.registry.find(query.model)
        service.capacity.check()
        with ExitStack() as held:
            reserved = held.enter_context(service.capacity.reservation())
            upload = await read_upload(request, limits=limits, reserved=reserved)
            held.enter_context(service.capacity.slot())
            work = service.pipeline.predict(model, upload, query, output=output, reserved=reserved)
            made = await unless_gone(request, work, seconds=limits.max_seconds, held=held.pop_all())
        return Response(made.data, media_type=made.media, headers=made.headers)

    @app.post(
        "/v1/preview",
        tags=["predict"],
        response_class=Response,
        responses=binary_response("image/png"),
        openapi_extra=IMAGE_BODY,
    )
    async def show(request: Request) -> Response:
        """Turn any image (TIFF, 16 bits) into a PNG that browsers show, at most 4096 a side."""
        service.capacity.check()
        with ExitStack() as held:
            reserved = held.enter_context(service.capacity.reservation())
            upload = await read_upload(request, limits=limits, reserved=reserved)
            held.enter_context(service.capacity.slot())
            pipeline, name = service.pipeline, upload.name
            work = pipeline.in_thread(
                preview, pipeline.cage, upload.data, name=name, limits=limits, reserved=reserved
            )
            png, (height, width) = await unless_gone(
                request, work, seconds=limits.max_seconds, held=held.pop_all()
            )
        headers = {"X-Binseg-Size": f"{width}x{height}"}
        return Response(png, media_type="image/png", headers=headers)


def _add_batch(app: FastAPI, service: Service) -> None:
    limits = service.limits

    @app.post(
        "/v1/batch",
        tags=["predict"],
        response_class=Response,
        responses=binary_response("application/zip", "application/json") | documented(404, 406),
        openapi_extra=_FILES_BODY,
    )
    async def batch(request: Request, query: Asking) -> Response:
        """Find the foreground in several images (a form's fields `files`).

        A ZIP of masks comes back, or JSON by Accept. What can't be read is listed in the ZIP's
        errors.json; if nothing can, the whole is refused.
        """
        media = media_of(request, ("application/zip", "application/json"))
        output: Output = "json" if media == "application/json" else "mask"
        model = service.registry.find(query.model)
        service.capacity.check()
        with ExitStack() as held:
            reserved = held.enter_context(service.capacity.reservation())
            files = await read_form(
                request,
                field="files",
                max_files=limits.max_files,
                max_bytes=4 * limits.max_bytes,
                limits=limits,
                reserved=reserved,
            )
            held.enter_context(service.capacity.slot())
            work = _predict_all(service, model, files, query, output=output, reserved=reserved)
            results = await unless_gone(
                request, work, seconds=limits.max_seconds, held=held.pop_all()
            )
        first = results[0]
        if isinstance(first, Refusal) and all(isinstance(one, Refusal) for one in results):
            raise first
        pack = _as_json if output == "json" else _as_zip
        data = await service.pipeline.in_thread(pack, files, results)
        return Response(data, media_type=media, headers={"X-Binseg-Model": model.id})


async def _predict_all(
    service: Service,
    model: ServedModel,
    files: Sequence[Upload],
    query: Wanted,
    *,
    output: Output,
    reserved: Reservation,
) -> list[EncodedResult | Refusal]:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(upload: Upload) -> EncodedResult | Refusal:
        async with turns:
            with reserved.part() as own:  # its pixels are gone when it is encoded
                return await service.pipeline.try_predict(
                    model, upload, query, output=output, reserved=own
                )

    async with asyncio.TaskGroup() as group:  # unlike gather, it ends when all have ended
        tasks = [group.create_task(one(upload)) for upload in files]
    return [task.result() for task in tasks]


def _as_zip(files: Sequence[Upload], results: Sequence[EncodedResult | Refusal]) -> bytes:
    out, names, errors = io.BytesIO(), set[str](), []
    with zipfile.ZipFile(out, "w") as archive:  # PNG is packed already
        for upload, result in zip(files, results, strict=True):
            if isinstance(result, Refusal):
                errors.append({"name": upload.name, "error": result.as_dict()})
            else:
                archive.writestr(_entry(_unique(Path(upload.name).stem, names)), result.data)
        if errors:
            archive.writestr(_entry("errors.json"), json.dumps(errors, indent=2))
    return out.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, time.localtime()[:6])
    entry.external_attr = 0o644 << 16
    return entry


def _unique(stem: str, names: set[str]) -> str:
    """Choose a name that no mask has yet."""
    name, number = f"{stem}.png", 2
    while name.lower() in names:
        name, number = f"{stem}_{number}.png", number + 1
    names.add(name.lower())
    return name


def _as_json(files: Sequence[Upload], results: Sequence[EncodedResult | Refusal]) -> bytes:
    lines = [
        {"name": upload.name, "error": result.as_dict()}
        if isinstance(result, Refusal)
        else {"name": upload.name, **json.loads(result.data)}
        for upload, result in zip(files, results, strict=True)
    ]
    return json.dumps({"results": lines}).encode()
