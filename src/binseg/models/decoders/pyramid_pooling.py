"""Pyramid pooling (PSPNet, arXiv 1612.01105): the whole image's context beside every pixel."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.models.blocks import Norm, conv_unit
from binseg.models.skeleton import Decoder, resize

__all__ = ["PyramidPoolingDecoder"]


class PyramidPoolingDecoder(Decoder):
    """Averages of the coarsest map over 1, 2, 3 and 6 cells a side, joined with the map itself.

    Args:
        encoder_channels: channels of the feature maps; only the last map is used.
        width: channels of the result.
        norm: what follows each convolution.
        bias: whether convolutions have biases.
        cells: cells a side of each pooling.
    """

    def __init__(
        self,
        encoder_channels: tuple[int, ...],
        *,
        width: int,
        norm: Norm,
        bias: bool,
        cells: tuple[int, ...] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        self.cells = cells
        self.out_channels = width
        channels = encoder_channels[-1]
        inner = max(1, channels // len(cells))
        # Over a single cell and a batch of one, batch norm would have one value to average: it
        # stops with an error in training. That branch goes without.
        self.branches = nn.ModuleList(
            conv_unit(
                channels,
                inner,
                kernel=1,
                norm="none" if num == 1 and norm == "batch" else norm,
                bias=bias or num == 1,
            )
            for num in cells
        )
        self.fuse = conv_unit(channels + inner * len(cells), width, norm=norm, bias=bias)

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """One map at the size of the encoder's last feature map."""
        del size
        maps = features[-1]
        h_w = (maps.shape[-2], maps.shape[-1])
        context = [
            resize(branch(_cells(maps, num)), h_w)
            for num, branch in zip(self.cells, self.branches, strict=True)
        ]
        out: Tensor = self.fuse(torch.cat([maps, *context], dim=1))
        return out


def _cells(maps_BChw: Tensor, num: int) -> Tensor:
    """Averages over num x num cells.

    ONNX has no adaptive pooling; there the same averages are two matrix products.
    """
    if not torch.onnx.is_in_onnx_export():
        return functional.adaptive_avg_pool2d(maps_BChw, num)
    down = _averaging(maps_BChw.shape[-2], num)
    across = _averaging(maps_BChw.shape[-1], num)
    return torch.matmul(down, torch.matmul(maps_BChw, across.transpose(0, 1)))


def _averaging(length: int, num: int) -> Tensor:
    """The matrix (num, length) of adaptive pooling: cells may share a pixel where they meet."""
    cells, pixels = torch.arange(num)[:, None], torch.arange(length)[None]
    starts, ends = cells * length // num, ((cells + 1) * length + num - 1) // num
    inside = ((pixels >= starts) & (pixels < ends)).float()
    return inside / inside.sum(dim=1, keepdim=True)
