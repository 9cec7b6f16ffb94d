"""Random numbers for a batch of images."""

import torch

__all__ = ["Draw"]


class Draw:
    """Random numbers for a batch, on the CPU: the same on every device.

    Args:
        generator: where they come from.
        num: images in the batch.
        first: of them that is at hand, where several processes share the batch.
        total: images in the batch of all processes; `num` where this is the only one.
    """

    def __init__(
        self, generator: torch.Generator, num: int, *, first: int = 0, total: int | None = None
    ) -> None:
        self._generator = generator
        self._total = num if total is None else total
        self._rows = slice(first, first + num)

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """One number in [low, high) for each image."""
        return self.field(low=low, high=high)

    def field(self, *shape: int, low: float, high: float) -> torch.Tensor:
        """As many numbers in [low, high) as the shape asks, for each image."""
        of_all = torch.rand((self._total, *shape), generator=self._generator)
        return of_all[self._rows] * (high - low) + low

    def happens(self, probability: float) -> torch.Tensor:
        """True for the images to which a thing of this probability happens."""
        return self.uniform(0.0, 1.0) < probability

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers that all images share."""
        return torch.randn(shape, generator=self._generator)
