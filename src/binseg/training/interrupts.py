"""Ctrl-C once: finish the step. Ctrl-C twice: stop at once. Being told to end counts as Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopAskedError", "StopRequest", "hearing_interrupts"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAskedError(Exception):
    """Ends a piece of work between two of its parts; the run then saves itself and stops."""


class StopRequest:
    """What the user, or the system, has asked for so far."""

    def __init__(self) -> None:
        self.number = 0
        """Of the signal; 0 where there was none."""

    @property
    def is_asked(self) -> bool:
        """Whether to stop."""
        return self.number != 0

    def check(self) -> None:
        """Raise StopAskedError where a stop is asked for."""
        if self.is_asked:
            raise StopAskedError


@contextlib.contextmanager
def hearing_interrupts() -> Iterator[StopRequest]:
    """Give what tells whether the user (SIGINT) or the system (SIGTERM) has asked to stop.

    A second request raises KeyboardInterrupt wherever the program is.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may listen to signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        again, request.number = request.is_asked, number
        if again:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
