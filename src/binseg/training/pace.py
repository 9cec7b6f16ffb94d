"""How far a run is: by its epochs, or by the clock where it has a budget of time.

The learning rate and the size of the inputs follow from that share, 0 at the start and 1 at the
end. With a budget it is the share of the time, looked at after each step, so that the rate falls to
nothing just when the time is over, however fast the machine turns out to be or becomes; the last
epoch ends where it then is. Time for its validation is kept aside.
"""

import time
from collections.abc import Callable
from typing import Any

from binseg.config.recipe import Recipe
from binseg.errors import TrainingError

__all__ = ["Pace"]

FIRST_CLOSING = 0.04
"""Share of the time that is kept for the last validation, before the first one was seen."""
MOST_CLOSING = 0.3


class Pace:
    """How much of a run is over.

    Args:
        recipe: its epochs and sizes.
        seconds: for all epochs with their validations; None where the epochs alone decide.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        seconds: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._recipe = recipe
        self._seconds = seconds
        self._clock = clock
        self._started = clock()
        self._before = 0.0
        """Seconds of the run before a resume."""
        self._closing = FIRST_CLOSING * (seconds or 0.0)
        """Seconds that the last validation will take."""
        self._sizes: dict[int, int] = {}
        """Of the inputs of each epoch that has begun."""

    @property
    def is_timed(self) -> bool:
        """Whether a clock decides."""
        return self._seconds is not None

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, those before a resume included."""
        return self._before + self._clock() - self._started

    @property
    def time_share(self) -> float:
        """How much of the time for steps is over."""
        assert self._seconds is not None
        return min(1.0, self.elapsed / (self._seconds - self._closing))

    @property
    def is_over(self) -> bool:
        """Whether the time for steps is over."""
        return self.is_timed and self.time_share >= 1.0

    def share(self, epoch: float) -> float:
        """How much of the run is over now, or where the epochs decide, after so many of them.

        Args:
            epoch: 2.5 is half-way through the third one.
        """
        return self.time_share if self.is_timed else epoch / self._recipe.train.epochs

    def training_size(self, epoch: int) -> int:
        """Height and width of an epoch's training inputs; an epoch has one size."""
        if not self.is_timed:
            return self._recipe.training_size(epoch)
        if epoch not in self._sizes:
            self._sizes[epoch] = self._recipe.size_at(self.time_share)
        return self._sizes[epoch]

    def validated(self, seconds: float) -> None:
        """Hear what an epoch's validation and files took."""
        if self._seconds is not None:
            self._closing = min(MOST_CLOSING * self._seconds, seconds)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs."""
        return {"elapsed": self.elapsed, "closing": self._closing, "sizes": dict(self._sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off; the time in between doesn't count."""
        if not self.is_timed:
            return
        if not {"elapsed", "closing", "sizes"} <= state.keys():
            raise TrainingError("the checkpoint has no record of its time; start a new run")
        self._before = float(state["elapsed"])
        self._started = self._clock()
        self._closing = float(state["closing"])
        self._sizes = {int(epoch): int(size) for epoch, size in state["sizes"].items()}
