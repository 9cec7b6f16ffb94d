"""Two threads behind a session: one answers whoever waits, the other does chores in pauses."""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from binseg.errors import BinsegError
from binseg.parallel import give_way

_LOG = logging.getLogger("binseg.label")
_PAUSE_S = 0.35
_LOOK_S = 2.0


class Worker:
    """Answers for images, the last asked for first; chores in pauses. `state` guards it all."""

    def __init__(
        self, answer: Callable[[str], None], look: Callable[[], None], state: threading.Condition
    ) -> None:
        self._answer, self._look, self._state = answer, look, state
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._chores: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._busy_until = 0.0
        self.is_ending = False
        self._threads = [
            threading.Thread(target=self._work, args=(one,), name="binseg-label", daemon=True)
            for one in (self._next_answer, self._next_chore)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after what is in work."""
        with self._state:
            self.is_ending = True
            self._state.notify_all()
        for thread in self._threads:
            thread.join(30)

    def ask(self, name: str) -> None:
        """Have an image predicted; called with the state held."""
        self._asked[name] = None
        self._asked.move_to_end(name)
        self._state.notify_all()

    def later(self, key: str, chore: Callable[[], None]) -> None:
        """Have a chore done in a pause; a later one of the same key takes its place."""
        with self._state:
            self._chores[key] = chore
            self._state.notify_all()

    def _work(self, next_task: Callable[[], Callable[[], None] | None]) -> None:
        if next_task == self._next_chore:
            give_way()
        while (task := next_task()) is not None:
            try:
                task()
            except BinsegError as error:
                _LOG.warning("binseg label: %s", error)
            except Exception:  # noqa: BLE001 - logged whole; the next stroke must be answered
                _LOG.exception("binseg label: a bug; labels are safe, predictions may be missing")

    def _next_answer(self) -> Callable[[], None] | None:
        """Wait for an image that is asked for; None at the end."""
        with self._state:
            while not self.is_ending:
                if self._asked:
                    self._busy_until = math.inf
                    return partial(self._answer, self._asked.popitem()[0])
                if math.isinf(self._busy_until):
                    self._busy_until = time.monotonic() + _PAUSE_S
                    self._state.notify_all()
                self._state.wait(_LOOK_S)
                self._look()
        return None

    def _next_chore(self) -> Callable[[], None] | None:
        """Wait for a chore and a pause; None at the end."""
        with self._state:
            while not self.is_ending:
                pause = self._busy_until - time.monotonic()
                if self._chores and pause <= 0 and not self._asked:
                    return self._chores.popitem(last=False)[1]
                self._state.wait(pause if 0 < pause < _LOOK_S else _LOOK_S)
        return None
