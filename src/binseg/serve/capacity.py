"""How much a server holds at once: predictions, and bytes of images."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from binseg.serve.limits import Limits
from binseg.serve.refusals import Refusal

__all__ = ["Capacity", "Held"]

_SMOOTH = 0.1
"""Weight of the newest time in the mean."""


class Held:
    """The bytes that one request holds; thread-safe.

    Args:
        capacity: of the server.
        whole: what these bytes are a part of, if of anything.
    """

    def __init__(self, capacity: "Capacity", *, whole: "Held | None" = None) -> None:
        self._capacity = capacity
        self.whole = whole
        self.num_bytes = 0

    @contextmanager
    def part(self) -> Iterator["Held"]:
        """Hold further bytes that are given back when the block ends, before the others."""
        part = Held(self._capacity, whole=self)
        try:
            yield part
        finally:
            self._capacity.give_back(part)

    def grow(self, num_bytes: int) -> None:
        """Hold more.

        Raises:
            Refusal: 429, as others hold the room.
        """
        self._capacity.take(self, num_bytes)


class Capacity:
    """Counts what is in work, and refuses what would be too much.

    Args:
        limits: how much is too much.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._held = 0
        self.num_slots = 0
        """Predictions in work or waiting."""
        self._seconds = 0.1
        """Mean time between two answers while there was work."""
        self._last: float | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of images, packed and unpacked."""
        return self._held

    def check(self) -> None:
        """Refuse at once what would find no slot.

        Raises:
            Refusal: 429.
        """
        if self.num_slots >= self._limits.queue:
            raise self._busy(f"The server is busy with {self.num_slots} predictions")

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place among the predictions.

        Raises:
            Refusal: 429, as there is none.
        """
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
                if self._last is not None:
                    self._seconds += _SMOOTH * (now - self._last - self._seconds)
                self._last = now

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """Hold bytes until the block ends."""
        held = Held(self)
        try:
            yield held
        finally:
            self.give_back(held)

    def take(self, held: Held, num_bytes: int) -> None:
        """Hold more bytes for a request, which is granted to whoever is alone."""
        request = held.whole or held
        with self._lock:
            alone = self._held == request.num_bytes
            if not alone and self._held + num_bytes > self._limits.max_memory:
                raise self._busy("The server's memory is taken by other images")
            self._held += num_bytes
            request.num_bytes += num_bytes
            if held is not request:
                held.num_bytes += num_bytes

    def give_back(self, held: Held) -> None:
        """Hold none of these bytes any more."""
        with self._lock:
            self._held -= held.num_bytes
            if held.whole is not None:
                held.whole.num_bytes -= held.num_bytes
            held.num_bytes = 0

    def _busy(self, why: str) -> Refusal:
        seconds = min(60, max(1, math.ceil(self.num_slots * self._seconds / 2)))
        return Refusal(
            429,
            "busy",
            f"{why}; try again in {seconds} s.",
            headers={"Retry-After": str(seconds)},
        )
