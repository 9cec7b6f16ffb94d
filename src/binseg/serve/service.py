"""The parts that the routes share, and the figures about them for Prometheus."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from binseg.inference import ModelPredictor
from binseg.serve.job_store import STATES, JobStore
from binseg.serve.job_worker import JobWorker
from binseg.serve.limits import Capacity, Limits
from binseg.serve.model_registry import ModelRegistry, examples_for
from binseg.serve.pipeline import Pipeline

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Service:
    """The parts that the routes use; jobs lie in the folder `state`, `names` are those of runs."""

    def __init__(
        self,
        predictors: Sequence[ModelPredictor],
        *,
        state: Path,
        limits: Limits,
        names: Sequence[str] = (),
    ) -> None:
        self.limits = limits
        self.registry = ModelRegistry(predictors, names)
        self.examples = examples_for(self.registry)
        self.capacity = Capacity(limits)
        self.pipeline = Pipeline(limits)
        self.store = JobStore(state)
        self.metrics = Metrics(self.capacity, self.store)
        self.answered = self.metrics.answered
        self.is_ready = False
        self._worker: JobWorker | None = None

    @property
    def worker(self) -> JobWorker:
        """The thread that runs the jobs, while the server runs."""
        assert self._worker is not None, "jobs are asked for while the server runs"
        return self._worker

    def open(self) -> None:
        """Start all threads."""
        assert self._worker is None, "a service is opened once"
        for model in self.registry:
            model.open(lambda: self.pipeline.num_coming, self.metrics.batches.observe)
        self._worker = JobWorker(self.store, self.registry, self.limits, self.pipeline.cage)
        self.is_ready = True

    def close(self) -> None:
        """Finish what was begun, except for the job in work, which goes on at the next start."""
        self.is_ready = False
        if self._worker is not None:
            self._worker.stop()
        self.pipeline.close()
        for model in self.registry:
            model.close()
        self.store.close()


class Metrics:
    """Counters and gauges of one server, in a `registry` of Prometheus of their own."""

    def __init__(self, capacity: Capacity, store: JobStore) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        labels = ("route", "method", "status")
        self._requests = Counter("binseg_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "binseg_request_seconds",
            "From a request's head to the last byte of its response.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "binseg_batch_inputs", "Inputs computed together.", buckets=_SIZES, registry=registry
        )
        slots = Gauge("binseg_predictions", "Predictions in work or waiting.", registry=registry)
        slots.set_function(lambda: capacity.num_slots)
        held = Gauge("binseg_held_bytes", "Bytes of images in work.", registry=registry)
        held.set_function(lambda: capacity.held_bytes)
        jobs = Gauge("binseg_jobs", "Jobs by state.", ("state",), registry=registry)
        for state in STATES:
            jobs.labels(state).set_function(partial(lambda state: store.num_in()[state], state))

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
