"""The limits of one server, and the count of what is in work."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from binseg.errors import UsageError
from binseg.parallel import give_back_memory
from binseg.serve.refusals import Refusal

_SMOOTH = 0.1  # Weight of the newest time in the mean
_LET_GO_BYTES = 100_000_000
_PUBLIC = ("bytes", "pixels", "seconds", "files", "job_bytes", "job_pixels")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a server; UsageError for one that isn't above 0."""

    max_bytes: int = 50_000_000  # Size of an image's file
    max_pixels: int = 50_000_000
    """Height times width of an image that is predicted at once; larger ones are jobs."""
    max_seconds: float = 60.0  # Time from the last byte of a request to its response
    queue: int = 32  # Predictions in work or waiting; one more is refused with 429
    workers: int = 8
    """Images that are decoded or encoded at once; more than processors, so that a decoder that is
    slow, and gets lower priority, holds up nobody."""
    max_files: int = 64  # Files of a batch; together they may have four times `max_bytes`
    max_job_bytes: int = 4_000_000_000
    max_job_pixels: int = 10_000_000_000  # Height times width of a job's image, all pages together
    max_jobs_bytes: int = 20_000_000_000  # Images and results of all jobs on disk
    max_jobs: int = 10_000  # Jobs that are kept, whatever became of them
    keep_hours: float = 24.0  # Time after which finished jobs are removed
    head_seconds: float = 10.0
    """Time for the head of a request to arrive, and for its body to begin."""
    min_rate: int = 16_000
    """Bytes a second at which a body must come, beyond the first `head_seconds`."""
    send_seconds: float = 30.0  # Time for which a client may stop reading its response
    max_head_bytes: int = 16_384  # Size of a request's line and headers
    connections: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise UsageError(f"{name.replace('_', '-')} {value:g}: give a number above 0")

    @property
    def max_memory(self) -> int:
        """Bytes that all images in work may take, packed and unpacked."""
        return 4 * (self.max_bytes + 8 * self.max_pixels)

    def as_dict(self) -> dict[str, float]:
        """The limits that clients should know."""
        return {f"max_{name}": getattr(self, f"max_{name}") for name in _PUBLIC}


class Reservation:
    """The bytes of memory that one request, or a part of a whole one, has reserved."""

    def __init__(self, capacity: "Capacity", whole: "Reservation | None") -> None:
        self._capacity, self._whole = capacity, whole
        self.num_bytes = 0

    def part(self) -> "AbstractContextManager[Reservation]":
        """Reserve further bytes that are returned when the block ends, before the others."""
        return self._capacity.reservation(self)

    def grow(self, num_bytes: int) -> None:
        """Reserve more bytes; a request that is alone always gets them, another one maybe a 429."""
        self._capacity.take(self._whole or self, num_bytes)
        if self._whole is not None:
            self.num_bytes += num_bytes


class Capacity:
    """Counts what is in work, and refuses with 429 what would be too much; thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self.held_bytes = 0  # Bytes of images in work, packed and unpacked
        self._let_go = 0  # Bytes returned since memory was given back to the system
        self.num_slots = 0  # Predictions in work or waiting
        self._seconds = 0.1  # Mean time between two responses while there was work
        self._last = 0.0

    def check(self) -> None:
        """Refuse at once what would find no slot."""
        if self.num_slots >= self._limits.queue:
            raise self._busy(f"The server is busy with {self.num_slots} predictions")

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the slots for predictions."""
        with self._lock:
            self.check()
            if self.num_slots == 0:
                self._last = time.monotonic()
            self.num_slots += 1
        try:
            yield
        finally:
            with self._lock:
                self.num_slots -= 1
                now = time.monotonic()
                self._seconds += _SMOOTH * (now - self._last - self._seconds)
                self._last = now

    @contextmanager
    def reservation(self, whole: Reservation | None = None) -> Iterator[Reservation]:
        """Reserve bytes until the block ends."""
        reserved = Reservation(self, whole)
        try:
            yield reserved
        finally:
            with self._lock:
                self.held_bytes -= reserved.num_bytes
                if whole is not None:
                    whole.num_bytes -= reserved.num_bytes
                self._let_go += reserved.num_bytes
                is_time = self._let_go > _LET_GO_BYTES
                self._let_go *= not is_time
            if is_time:
                threading.Thread(target=give_back_memory).start()

    def take(self, request: Reservation, num_bytes: int) -> None:
        """Reserve more bytes for a whole request."""
        with self._lock:
            alone = self.held_bytes == request.num_bytes
            if not alone and self.held_bytes + num_bytes > self._limits.max_memory:
                raise self._busy("The server's memory is taken by other images")
            self.held_bytes += num_bytes
            request.num_bytes += num_bytes

    def _busy(self, reason: str) -> Refusal:
        seconds = min(60, max(1, math.ceil(self.num_slots * self._seconds / 2)))
        headers = {"Retry-After": str(seconds)}
        return Refusal(429, "busy", f"{reason}; try again in {seconds} s.", headers=headers)
