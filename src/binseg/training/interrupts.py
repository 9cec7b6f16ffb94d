"""Ctrl-C once: finish the step. Ctrl-C twice: stop at once. Being told to end counts as Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["hearing_interrupts"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def hearing_interrupts() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether the user, or the system, has asked to stop.

    A second request raises KeyboardInterrupt wherever the program is.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread may listen to signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
