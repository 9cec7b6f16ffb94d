"""Random numbers for a batch of pictures."""

import torch

__all__ = ["Draw"]


class Draw:
    """Random numbers for a batch, on the CPU: the same on every device.

    Args:
        generator: where they come from.
        num: pictures in the batch.
    """

    def __init__(self, generator: torch.Generator, num: int) -> None:
        self._generator = generator
        self._num = num

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """One number in [low, high) for each picture."""
        return self.field(low=low, high=high)

    def field(self, *shape: int, low: float, high: float) -> torch.Tensor:
        """As many numbers in [low, high) as the shape asks, for each picture."""
        return torch.rand((self._num, *shape), generator=self._generator) * (high - low) + low

    def happens(self, probability: float) -> torch.Tensor:
        """True for the pictures to which a thing of this probability happens."""
        return self.uniform(0.0, 1.0) < probability

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers that all pictures share."""
        return torch.randn(shape, generator=self._generator)
