"""The routes of work that takes longer than a request."""

import os
import shutil
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from binseg.errors import OutputError
from binseg.serve.app import Service
from binseg.serve.bodies import chunks_of, is_form, read_form
from binseg.serve.job_store import IMAGE, Job
from binseg.serve.job_worker import check_job, facts_of
from binseg.serve.queries import Working
from binseg.serve.refusals import DOCUMENTED, Documented, Refusal
from binseg.serve.routes import IMAGE_BODY

__all__ = ["add_to"]

_CHUNK = 1 << 20
_ASK_AGAIN = {"Retry-After": "1"}
_MISSING: Documented = {
    404: {**DOCUMENTED[422], "description": "there is no such job, or it was removed"}
}
_EARLY: Documented = {409: {**DOCUMENTED[422], "description": "the job isn't finished yet"}}


def add_to(app: FastAPI, service: Service) -> None:
    """Add all routes."""

    @app.post(
        "/v1/jobs",
        tags=["jobs"],
        status_code=202,
        responses={**DOCUMENTED, 404: {**DOCUMENTED[422], "description": "there is no such model"}},
        openapi_extra=IMAGE_BODY,
    )
    async def start(request: Request, query: Working) -> JSONResponse:
        """Take an image of any size; ask for the job's state until it is done.

        Jobs survive a restart of the server. A form may have up to `max_bytes`, a plain body up to
        `max_job_bytes`.
        """
        model = service.shelf.find(query.model)
        folder = await service.pipeline.in_thread(service.store.new_folder)
        try:
            name, num_bytes = await _receive(request, service, folder / IMAGE)
            await service.pipeline.in_thread(
                check_job, folder / IMAGE, query.output, name=name, limits=service.limits
            )
            settings = query.model_dump(exclude={"model"}, exclude_none=True)
            job = await service.pipeline.in_thread(
                service.store.add,
                folder,
                model=model.id,
                name=name,
                query=settings,
                num_bytes=num_bytes,
            )
        finally:
            # In line, it lies under another name by now.
            await service.pipeline.in_thread(service.store.release, folder)
        service.worker.wake()
        facts = facts_of(job, service.worker)
        return JSONResponse(
            facts, status_code=202, headers={"Location": facts["location"], **_ASK_AGAIN}
        )

    @app.get("/v1/jobs/{job_id}", tags=["jobs"], responses={**DOCUMENTED, **_MISSING})
    async def state(job_id: str) -> JSONResponse:
        """Show a job's state (queued, running, done, failed) and how far it is, from 0 to 1."""
        job = _find(service, job_id)
        waits = job.state in ("queued", "running")
        return JSONResponse(facts_of(job, service.worker), headers=_ASK_AGAIN if waits else None)

    @app.get(
        "/v1/jobs/{job_id}/result",
        tags=["jobs"],
        response_class=Response,
        responses={**DOCUMENTED, **_MISSING, **_EARLY, 200: _result_kinds()},
    )
    async def result(job_id: str) -> Response:
        """Give what a job has made."""
        job = _find(service, job_id)
        if job.state == "failed":
            raise Refusal(422, job.code or "failed", job.message or "The job failed.")
        if job.state != "done" or job.result is None:
            raise Refusal(
                409,
                "not_finished",
                f"The job is {job.state}; ask again later.",
                headers=_ASK_AGAIN,
            )
        path = service.store.path(job.id) / job.result
        return FileResponse(path, media_type=job.media, headers=job.headers)

    @app.delete(
        "/v1/jobs/{job_id}",
        tags=["jobs"],
        status_code=204,
        responses={**DOCUMENTED, **_MISSING},
    )
    async def remove(job_id: str) -> Response:
        """Forget a job and its files, finished or not."""
        job = _find(service, job_id)
        await service.pipeline.in_thread(service.worker.remove, job.id)
        return Response(status_code=204)


def _result_kinds() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": "The result.",
        "content": {"image/png": binary, "image/tiff": binary, "application/json": {}},
    }


def _find(service: Service, job_id: str) -> Job:
    job = service.store.find(job_id)
    if job is None:
        raise Refusal(404, "no_such_job", "There is no such job, or it was removed.")
    return job


async def _receive(request: Request, service: Service, path: Path) -> tuple[str, int]:
    """Write what is sent to a file, and give its name and size."""
    limits, in_thread = service.limits, service.pipeline.in_thread
    if is_form(request):
        with service.capacity.holding() as held:
            (sent,) = await read_form(
                request,
                field="file",
                max_files=1,
                max_bytes=limits.max_bytes,
                limits=limits,
                held=held,
            )
            _check_room(service, path, len(sent.data))
            await in_thread(_write, path, sent.data)
            return sent.name, len(sent.data)
    waiting, total = bytearray(), 0
    declared = request.headers.get("content-length", "")
    _check_room(service, path, int(declared) if declared.isdecimal() else 0)
    async for chunk in chunks_of(request, max_bytes=limits.max_job_bytes, limits=limits):
        waiting += chunk
        if len(waiting) >= _CHUNK:
            total += len(waiting)
            _check_room(service, path, total)
            await in_thread(_write, path, bytes(waiting))
            waiting.clear()
    await in_thread(_write, path, bytes(waiting))
    return "the image", total + len(waiting)


def _write(path: Path, data: bytes) -> None:
    """Add to a file; on disk for good when this returns."""
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"can't keep a job's image: {error.strerror or error}") from None


def _check_room(service: Service, path: Path, num_bytes: int) -> None:
    """Refuse a job that would fill the disk, or the share of it that jobs have."""
    service.store.reserve(path.parent, num_bytes)
    used = service.store.num_bytes()
    if used > service.limits.max_jobs_bytes or 2 * num_bytes > shutil.disk_usage(path.parent).free:
        raise Refusal(
            429,
            "jobs_full",
            "There is no room for further jobs; take the results of finished ones and remove them "
            "(DELETE /v1/jobs/ID), or try again later.",
            headers={"Retry-After": "60"},
        )
