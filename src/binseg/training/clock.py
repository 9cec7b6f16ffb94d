"""The progress of a run by epochs or by the clock, where its seconds go, and requests to stop it.

Learning rate and input size follow from the share of the run that is over. With a budget it is the
share of the time, read after each step, so that the rate falls to nothing just when the time is
over, however fast the machine turns out to be; the last epoch ends where it then is. Time for its
validation is kept aside.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from binseg.config.recipe import Recipe
from binseg.parallel import heard
from binseg.progress import Task

BAR_UNITS = 1000  # length of the progress bar of a run with a budget: thousandths of its time
FIRST_CLOSING = 0.04
"""Share of the time that is kept for the last validation, before the first one was seen."""
MOST_CLOSING = 0.3


class Clock:
    """The share of a run that is over, alike on all ranks; without `seconds` the epochs decide."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        seconds: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.elapsed = 0.0  # seconds of the run at the last reading, those before a resume included
        self._recipe, self._seconds = recipe, seconds
        self._clock, self._started = clock, clock()
        self._closing = FIRST_CLOSING * (seconds or 0.0)  # seconds of the last validation
        self._sizes: dict[int, int] = {}  # side of the inputs of each epoch that has begun

    @property
    def is_timed(self) -> bool:
        """Return True if time decides, not the number of epochs."""
        return self._seconds is not None

    @property
    def time_share(self) -> float:
        """Share of the time for steps that is over."""
        assert self._seconds is not None
        return min(1.0, self.elapsed / (self._seconds - self._closing))

    @property
    def is_over(self) -> bool:
        """Return True if the time for steps is over."""
        return self.is_timed and self.time_share >= 1.0

    @property
    def now(self) -> tuple[float, float]:
        """The reading of this rank's clock: seconds of the run, and those kept for its end."""
        return self._clock() - self._started, self._closing

    def read(self, now: tuple[float, ...] | None = None) -> None:
        """Move on to a reading: this clock's, or that of rank 0."""
        self.elapsed, self._closing = self.now if now is None else now

    def share(self, epoch: float) -> float:
        """Give how much of the run is over: by time, or by epochs (2.5 is amid the third one)."""
        return self.time_share if self.is_timed else epoch / self._recipe.train.epochs

    def training_size(self, epoch: int) -> int:
        """Height and width of an epoch's training inputs; an epoch has one size."""
        if not self.is_timed:
            return self._recipe.training_size(epoch)
        if epoch not in self._sizes:
            self._sizes[epoch] = self._recipe.size_at(self.time_share)
        return self._sizes[epoch]

    def validated(self, seconds: float) -> None:
        """Note what an epoch's validation and files took."""
        if self._seconds is not None:
            self._closing = min(MOST_CLOSING * self._seconds, seconds)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs; where the epochs decide that is nothing."""
        if not self.is_timed:
            return {}
        elapsed, closing = self.now
        return {"elapsed": elapsed, "closing": closing, "sizes": dict(self._sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off; the time in between doesn't count."""
        if self.is_timed:
            self.elapsed, self._closing = float(state["elapsed"]), float(state["closing"])
            self._started = self._clock() - self.elapsed
            self._sizes = {int(epoch): int(size) for epoch, size in state["sizes"].items()}


class Timer:
    """Times an epoch's steps and waits for data, and moves the progress bar."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._task: Task
        self._shown = 0
        self._mark = self._epoch_start = time.perf_counter()
        self._waited = self._worked = 0.0

    @property
    def epoch_seconds(self) -> float:
        """Seconds since this epoch's start."""
        return time.perf_counter() - self._epoch_start

    @property
    def training_seconds(self) -> float:
        """Seconds of the epoch's steps so far."""
        return self._waited + self._worked

    @property
    def data_share(self) -> float:
        """Share of the epoch's step time that was spent waiting for the loader."""
        return self._waited / max(self.training_seconds, 1e-9)

    def start_run(self, task: Task, num_done: int) -> None:
        """Move the progress bar to where a resumed run is, after so many steps."""
        self._task = task
        self._task.advance(self._time_passed() if self._clock.is_timed else num_done)

    def start_epoch(self) -> None:
        """Begin an epoch's record."""
        self._epoch_start = self._mark = time.perf_counter()
        self._waited = self._worked = 0.0

    def batch_arrived(self) -> None:
        """Note that the loader has given a batch; what follows is work, not waiting."""
        self._waited += self._lap()

    def step_done(self, figures: dict[str, float]) -> None:
        """Note the end of a step, and show its figures."""
        self._worked += self._lap()
        self._task.advance(self._time_passed() if self._clock.is_timed else 1, **figures)

    def _lap(self) -> float:
        """Give the seconds since the last call."""
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume within an epoch needs."""
        return {"seconds": self.epoch_seconds, "waited": self._waited, "worked": self._worked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._mark = time.perf_counter()
        self._epoch_start = self._mark - state["seconds"]
        self._waited, self._worked = state["waited"], state["worked"]

    def _time_passed(self) -> int:
        """Units of the bar since it was last moved."""
        before, self._shown = self._shown, int(self._clock.time_share * BAR_UNITS)
        return self._shown - before


class StopAskedError(Exception):
    """Ends a piece of work between two of its parts; the run then saves itself and stops."""


class StopRequest:
    """The latest request to stop, from the user or the system: a signal's number, or 0."""

    number = 0

    def check(self) -> None:
        """Raise StopAskedError where a stop is asked for."""
        if self.number:
            raise StopAskedError


@contextmanager
def hearing_interrupts() -> Iterator[StopRequest]:
    """Give what tells of SIGINT or SIGTERM; a second one raises KeyboardInterrupt."""
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        again, request.number = request.number, number
        if again:
            raise KeyboardInterrupt

    with heard(note):
        yield request
