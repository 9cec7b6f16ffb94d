"""The routes of work that takes longer than a request."""

import os
import shutil
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from binseg.errors import OutputError
from binseg.serve.incoming import (
    UNNAMED,
    Working,
    chunks_of,
    declared_bytes,
    is_form,
    read_uploads,
)
from binseg.serve.job_store import IMAGE, PRIVATE, Job, JobStore
from binseg.serve.job_worker import check_job, facts_of
from binseg.serve.refusals import DOCUMENTED, Refusal, documented
from binseg.serve.routes import IMAGE_BODY, Parts, binary_response
from binseg.serve.service import Service

_CHUNK = 1 << 20
_ASK_AGAIN = {"Retry-After": "1"}
_RESULT = binary_response("image/png", "image/tiff", "application/json") | documented(404, 409)
router = APIRouter()


@router.post(
    "/v1/jobs",
    tags=["jobs"],
    status_code=202,
    responses=DOCUMENTED | documented(404),
    openapi_extra=IMAGE_BODY,
)
async def start(request: Request, query: Working, service: Parts) -> JSONResponse:
    """Accept an image of any size; ask for the job's state until it is done.

    Jobs survive a restart of the server. A form may have up to `max_bytes`, a plain body up to
    `max_job_bytes`.
    """
    in_thread, store, cage = service.pipeline.for_job, service.store, service.pipeline.cage
    model = service.registry.find(query.model)
    folder = await in_thread(store.new_folder)
    try:
        path = folder / IMAGE
        name = await _receive(request, service, path)
        await in_thread(check_job, cage, path, query.output, name=name, limits=service.limits)
        settings = query.model_dump(exclude={"model"}, exclude_none=True)
        job = await in_thread(store.add, folder, model=model.id, name=name, query=settings)
    finally:
        await in_thread(store.release, folder)  # an accepted job has another name by now
    service.worker.wake()
    facts = facts_of(job, service.worker)
    headers = {"Location": facts["location"], **_ASK_AGAIN}
    return JSONResponse(facts, status_code=202, headers=headers)


@router.get("/v1/jobs/{job_id}", tags=["jobs"], responses=DOCUMENTED | documented(404))
async def state(job_id: str, service: Parts) -> JSONResponse:
    """Show a job's state (queued, running, done, failed) and how far it is, from 0 to 1."""
    job = _find(service, job_id)
    waits = job.state in ("queued", "running")
    return JSONResponse(facts_of(job, service.worker), headers=_ASK_AGAIN if waits else None)


@router.get("/v1/jobs/{job_id}/result", tags=["jobs"], response_class=Response, responses=_RESULT)
async def result(job_id: str, service: Parts) -> Response:
    """Give the result of a job."""
    job = _find(service, job_id)
    if job.state == "failed":
        raise Refusal(422, job.code or "failed", job.message or "The job failed.")
    if job.state != "done" or job.result is None:
        reason = f"The job is {job.state}; ask again later."
        raise Refusal(409, "not_finished", reason, headers=_ASK_AGAIN)
    return _Result(service.store, job)


@router.delete(
    "/v1/jobs/{job_id}", tags=["jobs"], status_code=204, responses=DOCUMENTED | documented(404)
)
async def remove(job_id: str, service: Parts) -> Response:
    """Forget a job and its files, finished or not."""
    job = _find(service, job_id)
    await service.pipeline.for_job(service.worker.remove, job.id)
    return Response(status_code=204)


class _Result(FileResponse):
    """The file of a job's result, which stays until it is sent, whoever removes the job."""

    def __init__(self, store: JobStore, job: Job) -> None:
        assert job.result is not None, "only a job that is done has one"
        path = store.path(job.id) / job.result
        super().__init__(path, media_type=job.media, headers=job.headers)
        self._store, self._job = store, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._store.reading(self._job.id):
            if self._store.find(self._job.id) is None:
                await _no_such_job().response()(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)


def _no_such_job() -> Refusal:
    return Refusal(404, "no_such_job", "There is no such job, or it was removed.")


def _find(service: Service, job_id: str) -> Job:
    job = service.store.find(job_id)
    if job is None:
        raise _no_such_job()
    return job


async def _receive(request: Request, service: Service, path: Path) -> str:
    """Write what is sent to a file, and give its name."""
    limits, in_thread = service.limits, service.pipeline.for_job
    if is_form(request):
        with service.capacity.reservation() as reserved:
            (upload,) = await read_uploads(request, limits=limits, reserved=reserved)
            await in_thread(_check_room, service, path, coming=len(upload.data))
            await in_thread(_append, path, upload.data)
        return upload.name
    waiting = bytearray()
    await in_thread(_check_room, service, path, coming=declared_bytes(request))
    async for chunk in chunks_of(request, max_bytes=limits.max_job_bytes, limits=limits):
        waiting += chunk
        if len(waiting) >= _CHUNK:
            await in_thread(_append, path, bytes(waiting))
            await in_thread(_check_room, service, path)
            waiting.clear()
    await in_thread(_append, path, bytes(waiting))
    return UNNAMED


def _append(path: Path, data: bytes) -> None:
    """Add to a file; on disk for good when this returns."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
        with os.fdopen(descriptor, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"can't keep a job's image: {error.strerror or error}") from None


def _check_room(service: Service, path: Path, *, coming: int = 0) -> None:
    """Refuse a job that would fill the disk, or the share of it that jobs have."""
    limits, store = service.limits, service.store
    free = shutil.disk_usage(path.parent).free  # the result needs as much as the image
    is_full = store.num_bytes() + coming > limits.max_jobs_bytes or len(store) >= limits.max_jobs
    if is_full or 2 * coming + _CHUNK > free:
        told = (
            "There is no room for further jobs; fetch the results of finished ones and remove them "
            "(DELETE /v1/jobs/ID), or try again later."
        )
        raise Refusal(429, "jobs_full", told, headers={"Retry-After": "60"})
