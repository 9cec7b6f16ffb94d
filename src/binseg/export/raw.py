"""Preprocessing and its inverse as parts of the network: bytes of any size in, probability out.

A resize is two matrix products whose matrices are computed from the picture's size inside the
graph: the triangle filter of Pillow's antialiased bilinear resize, which no runtime's own operator
equals.
"""

import torch
from torch import Tensor, nn

from binseg.errors import UsageError
from binseg.structures import Preprocessing

__all__ = ["RawPixels"]


class RawPixels(nn.Module):
    """A network that takes pictures as they are.

    `forward` takes pixels (H, W, C), uint8 or floats from 0 to 255, and gives the probability
    (H, W) that binseg's own prediction gives for an 8-bit picture.

    Args:
        network: normalised inputs to logits.
        preprocessing: of the bundle; `squash` or `pad`, and `intensity: dtype`.
        temperature: of the bundle.

    Raises:
        UsageError: a preprocessing that can't be put into a graph.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, *, temperature: float
    ) -> None:
        super().__init__()
        if preprocessing.fit == "tile":
            raise UsageError(
                "a model of tiles (fit: tile) can't be one graph for any size: its tiles are cut "
                "and joined outside of it; export the network alone with --to bundle"
            )
        if preprocessing.intensity != "dtype":
            raise UsageError(
                "intensity: percentile looks at a whole picture before it is resized, which the "
                "exported graph doesn't; export the network alone with --to bundle"
            )
        self.network = network
        self.height, self.width = preprocessing.height, preprocessing.width
        self.pads = preprocessing.fit == "pad"
        self.temperature = temperature
        shape = (1, preprocessing.channels, 1, 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape))

    def forward(self, pixels_HWC: Tensor) -> Tensor:
        """Give the probability of foreground, (H, W)."""
        tall, wide = pixels_HWC.shape[0], pixels_HWC.shape[1]
        picture_CHW = pixels_HWC.permute(2, 0, 1).float()
        rows, columns = self._target(tall, wide)
        # Pillow resizes across first, then down, and rounds to bytes (halves up) after each.
        across = _resizing(wide, self.width, columns)
        down = _resizing(tall, self.height, rows)
        input_CHW = torch.floor(torch.matmul(picture_CHW, across.transpose(0, 1)) + 0.5)
        input_CHW = torch.floor(torch.matmul(down, input_CHW) + 0.5)
        normalised = (input_CHW[None] / 255.0 - self.mean) / self.std
        logits = self.network(normalised)
        probability_hw = torch.sigmoid(logits[0, 0] / self.temperature)
        back_across = _restoring(wide, self.width, columns)
        back_down = _restoring(tall, self.height, rows)
        restored = torch.matmul(probability_hw, back_across.transpose(0, 1))
        return torch.clamp(torch.matmul(back_down, restored), 0.0, 1.0)

    def _target(self, tall: int, wide: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """First row and number of rows that the picture takes in the input; likewise columns."""
        height, width = torch.tensor(float(self.height)), torch.tensor(float(self.width))
        zero = torch.zeros(())
        if not self.pads:
            return (zero, height), (zero, width)
        tall_, wide_ = _number(tall), _number(wide)
        factor = torch.minimum(height / tall_, width / wide_)
        fit_height = torch.clamp(torch.round(tall_ * factor), 1, self.height)
        fit_width = torch.clamp(torch.round(wide_ * factor), 1, self.width)
        top = torch.floor((height - fit_height) / 2)
        left = torch.floor((width - fit_width) / 2)
        return (top, fit_height), (left, fit_width)


def _number(size: int) -> Tensor:
    """A size that tracing may know as a tensor, as a float."""
    return torch.ones(size, dtype=torch.float32).sum()


def _weights(centres: Tensor, support: Tensor, num: int) -> Tensor:
    """Triangles around the centres over `num` pixels, each row adding up to 1."""
    pixels = torch.arange(num, dtype=torch.float32) + 0.5
    weights = torch.clamp(1 - torch.abs(pixels[None] - centres[:, None]) / support, min=0)
    return weights / torch.clamp(weights.sum(dim=1, keepdim=True), min=1e-12)


def _resizing(num: int, size: int, target: tuple[Tensor, Tensor]) -> Tensor:
    """The matrix (size, num) from a picture's line to the input's; zeros outside the target."""
    first, taken = target
    scale = _number(num) / taken
    at = torch.arange(size, dtype=torch.float32) - first
    weights = _weights((at + 0.5) * scale, torch.clamp(scale, min=1), num)
    inside = ((at >= 0) & (at < taken)).float()
    return weights * inside[:, None]


def _restoring(num: int, size: int, target: tuple[Tensor, Tensor]) -> Tensor:
    """The matrix (num, size) from the input's line back to the picture's."""
    first, taken = target
    scale = taken / _number(num)
    centres = (torch.arange(num, dtype=torch.float32) + 0.5) * scale
    at = torch.arange(size, dtype=torch.float32) + 0.5 - first
    weights = torch.clamp(
        1 - torch.abs(at[None] - centres[:, None]) / torch.clamp(scale, min=1), min=0
    )
    inside = ((at > 0) & (at < taken)).float()
    weights = weights * inside[None]
    return weights / torch.clamp(weights.sum(dim=1, keepdim=True), min=1e-12)
