"""The side that a session sees of whatever trains and predicts beside it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float


class Network(Protocol):
    """A network that trains and predicts in another process."""

    def predicted(self, name: str) -> Float[np.ndarray, "h w"] | None:
        """Give the network's probability for an image, where there is one."""

    def version(self) -> str | None:
        """Name what `predicted` is of: `warm 3`, or a model's name; None while there is none."""

    def wake(self, *, first: Sequence[str]) -> None:
        """Have it train a round, if new labels are there, and predict; these images first."""

    def scores(self) -> list[tuple[str, list[float]]]:
        """Take the scores on the check images that have come since."""

    def train(self, minutes: float) -> None:
        """Begin to train for real."""

    def training(self) -> Mapping[str, object]:
        """Tell how far that is."""

    def close(self) -> None:
        """End it."""
