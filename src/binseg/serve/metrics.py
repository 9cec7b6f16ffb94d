"""Figures about the server itself, as Prometheus reads them."""

from functools import partial

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from binseg.serve.capacity import Capacity
from binseg.serve.job_store import JobStore

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and gauges of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "binseg_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "binseg_request_seconds",
            "From a request's head to the last byte of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "binseg_batch_inputs",
            "Inputs that were computed together.",
            buckets=_SIZES,
            registry=self._registry,
        )

    def watch(self, capacity: Capacity, store: JobStore) -> None:
        """Show what these hold whenever the figures are asked for."""
        slots = Gauge("binseg_predictions", "In work or waiting.", registry=self._registry)
        slots.set_function(lambda: capacity.num_slots)
        held = Gauge("binseg_held_bytes", "Of images in work.", registry=self._registry)
        held.set_function(lambda: capacity.held_bytes)
        jobs = Gauge("binseg_jobs", "Jobs by state.", ("state",), registry=self._registry)
        for state in ("queued", "running", "done", "failed"):
            jobs.labels(state).set_function(partial(_count, store, state))

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batched(self, num: int) -> None:
        """Count a batch."""
        self._batches.observe(num)

    def text(self) -> tuple[bytes, str]:
        """All figures, with their media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def _count(store: JobStore, state: str) -> float:
    return store.num_in()[state]
