"""One thread behind a session: what a person waits for first, the rest in pauses."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from binseg.errors import BinsegError

_LOG = logging.getLogger("binseg.label")
_PAUSE_S = 0.35
_LOOK_S = 2.0


class Worker:
    """Answers for images, the one that was asked for last first, and does chores in pauses.

    `answer` predicts an image anew, by its name; `look` is called now and then while there is
    nothing to do; `state` guards what the session and this thread share.
    """

    def __init__(
        self, answer: Callable[[str], None], look: Callable[[], None], state: threading.Condition
    ) -> None:
        self._answer, self._look, self._state = answer, look, state
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._chores: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._busy_until = 0.0
        self.is_ending = False
        self._thread = threading.Thread(target=self._work, name="binseg-label", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is in work."""
        with self._state:
            self.is_ending = True
            self._state.notify_all()
        self._thread.join(30)

    @property
    def is_awaited(self) -> bool:
        """True if a chore should stop: a person waits, or all ends."""
        return bool(self._asked) or self.is_ending

    def ask(self, name: str) -> None:
        """Have an image predicted; called with the state held."""
        self._asked[name] = None
        self._asked.move_to_end(name)
        self._busy_until = time.monotonic() + _PAUSE_S
        self._state.notify_all()

    def later(self, key: str, chore: Callable[[], None]) -> None:
        """Have a chore done in a pause; a later one of the same key takes its place."""
        with self._state:
            self._chores[key] = chore
            self._state.notify_all()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except BinsegError as error:
                _LOG.warning("binseg label: %s", error)
            except Exception:  # noqa: BLE001 - logged whole; the next stroke must be answered
                _LOG.exception("binseg label: a bug; labels are safe, predictions may be missing")

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do; None at the end."""
        with self._state:
            while not self.is_ending:
                if self._asked:
                    name, _ = self._asked.popitem()
                    return lambda: self._answer(name)
                pause = self._busy_until - time.monotonic()
                if self._chores and pause <= 0:
                    return self._chores.popitem(last=False)[1]
                self._state.wait(pause if self._chores else _LOOK_S)
                self._look()
        return None
