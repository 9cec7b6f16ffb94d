"""The application: all parts put together."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from binseg.inference import ModelPredictor
from binseg.serve.capacity import Capacity
from binseg.serve.examples import Examples
from binseg.serve.guard import Guard
from binseg.serve.job_store import JobStore
from binseg.serve.job_worker import JobWorker
from binseg.serve.limits import Limits
from binseg.serve.metrics import Metrics
from binseg.serve.pipeline import Pipeline
from binseg.serve.refusals import add_handlers
from binseg.serve.shelf import Shelf

__all__ = ["Access", "Service", "create_app"]

_ABOUT = """Finds one kind of thing in images. Every refusal has the body
`{"error": {"code": ..., "message": ...}}`: a stable code, and one sentence for people."""
_READABLE = [
    "Retry-After",
    "X-Binseg-Model",
    "X-Binseg-Threshold",
    "X-Binseg-Size",
    "X-Binseg-Seconds",
]


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use a server."""

    token: str | None = field(default=None, repr=False)
    """What requests must bear; None for no token."""
    hosts: Sequence[str] = ()
    """Host names by which it may be called; empty for any."""
    origins: Sequence[str] = ()
    """Other web pages that may use it ("https://example.org")."""


class Service:
    """The parts that the routes use.

    Args:
        predictors: opened bundles; the first is the default.
        state: folder of the jobs.
        limits: how much is taken.
    """

    def __init__(
        self, predictors: Sequence[ModelPredictor], *, state: Path, limits: Limits
    ) -> None:
        self.limits = limits
        self.shelf = Shelf(predictors)
        self.examples = Examples(self.shelf)
        self.capacity = Capacity(limits)
        self.metrics = Metrics()
        self.pipeline = Pipeline(limits)
        self.store = JobStore(state)
        self.is_ready = False
        self._worker: JobWorker | None = None
        self.metrics.watch(self.capacity, self.store)

    @property
    def worker(self) -> JobWorker:
        """What does the jobs, while the server runs."""
        assert self._worker is not None, "jobs are asked for while the server runs"
        return self._worker

    def open(self) -> None:
        """Start all threads."""
        assert self._worker is None, "a service is opened once"
        for model in self.shelf:
            model.open(lambda: self.pipeline.num_coming, self.metrics.batched)
        self._worker = JobWorker(self.store, self.shelf, self.limits)
        self.is_ready = True

    def close(self) -> None:
        """Finish what was begun, except for the job in work, which goes on at the next start."""
        self.is_ready = False
        if self._worker is not None:
            self._worker.stop()
        self.pipeline.close()
        for model in self.shelf:
            model.close()
        self.store.close()


def create_app(service: Service, *, access: Access | None = None) -> ASGIApp:
    """Build the ASGI application; its lifespan opens and closes the service.

    Args:
        service: the parts.
        access: who may use it.
    """
    from binseg.serve import job_routes, routes  # they use this module's Service

    chosen = access or Access()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.open()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="binseg",
        version=version("binseg"),
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    add_handlers(app)
    routes.add_to(app, service)
    job_routes.add_to(app, service)
    guarded: ASGIApp = Guard(
        app,
        token=chosen.token,
        hosts=chosen.hosts,
        origins=chosen.origins,
        max_head_bytes=service.limits.max_head_bytes,
        told=service.metrics.answered,
    )
    if chosen.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(chosen.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=_READABLE,
        )
    return guarded
