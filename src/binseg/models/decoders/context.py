"""Decoders that gather surroundings at coarse sizes: feature pyramid, pyramid pooling, MLP."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.models.blocks import Norm, conv_unit
from binseg.models.skeleton import Decoder, Encoder, resize


def _first_quarter(encoder: Encoder) -> int:
    """Return the index of the finest map at a quarter of the input's size or below.

    FPN and SegFormer leave out finer ones, as published.
    """
    for index, stride in enumerate(encoder.strides):
        if stride >= 4:
            return index
    return len(encoder.strides) - 1


def _size(maps_BChw: Tensor) -> tuple[int, int]:
    return maps_BChw.shape[-2], maps_BChw.shape[-1]


class FPNDecoder(Decoder):
    """Feature pyramid (arXiv 1612.03144) with the branches of Panoptic FPN (arXiv 1901.02446).

    Maps of all scales get the coarser ones added, are brought to the finest size and summed.
    Top-down maps are resized bilinearly (published: nearest neighbour), so that odd sizes stay
    aligned.

    Args:
        encoder: whose feature maps it takes, from a quarter of the size on.
        width: channels of the pyramid; the segmentation branch has half.
        norm: what follows each convolution of the segmentation branch.
        bias: whether those convolutions have biases.
    """

    def __init__(self, encoder: Encoder, *, width: int, norm: Norm, bias: bool) -> None:
        super().__init__()
        self.first = _first_quarter(encoder)
        self.out_channels = max(1, width // 2)
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels in encoder.channels[self.first :]
        )
        # A map that is n levels below the finest is convolved and doubled n times; the finest is
        # convolved once.
        self.branches = nn.ModuleList(
            nn.ModuleList(
                conv_unit(
                    width if index == 0 else self.out_channels,
                    self.out_channels,
                    norm=norm,
                    bias=bias,
                )
                for index in range(max(1, level))
            )
            for level in range(len(self.laterals))
        )

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return one map at the size of the finest map that is taken (a quarter)."""
        del size
        pyramid = [
            lateral(feature)
            for lateral, feature in zip(self.laterals, features[self.first :], strict=True)
        ]
        for level in range(len(pyramid) - 2, -1, -1):
            pyramid[level] = pyramid[level] + resize(pyramid[level + 1], _size(pyramid[level]))
        total: Tensor | None = None
        for level, (branch, maps) in enumerate(zip(self.branches, pyramid, strict=True)):
            assert isinstance(branch, nn.ModuleList)
            branch_maps = maps
            for index, unit in enumerate(branch):
                finer = pyramid[max(0, level - index - 1)]
                branch_maps = resize(unit(branch_maps), _size(finer))
            total = branch_maps if total is None else total + branch_maps
        assert total is not None
        return total


class PyramidPoolingDecoder(Decoder):
    """Pyramid pooling (PSPNet, arXiv 1612.01105): the whole image's context beside every pixel.

    Averages of the coarsest map over 1, 2, 3 and 6 cells a side are joined with the map itself.

    Args:
        encoder: only its last feature map is used.
        width: channels of the result.
        norm: what follows each convolution.
        bias: whether convolutions have biases.
        cells: cells a side of each pooling.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: int,
        norm: Norm,
        bias: bool,
        cells: tuple[int, ...] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        self.cells = cells
        self.out_channels = width
        channels = encoder.channels[-1]
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
        """Return one map at the size of the encoder's last feature map."""
        del size
        maps = features[-1]
        context = [
            resize(branch(_cells(maps, num)), _size(maps))
            for num, branch in zip(self.cells, self.branches, strict=True)
        ]
        out: Tensor = self.fuse(torch.cat([maps, *context], dim=1))
        return out


def _cells(maps_BChw: Tensor, num: int) -> Tensor:
    """Average over num x num cells.

    ONNX has no adaptive pooling; there the same averages are two matrix products.
    """
    if not torch.onnx.is_in_onnx_export():
        return functional.adaptive_avg_pool2d(maps_BChw, num)
    down = _averaging(maps_BChw.shape[-2], num)
    across = _averaging(maps_BChw.shape[-1], num)
    return torch.matmul(down, torch.matmul(maps_BChw, across.transpose(0, 1)))


def _averaging(length: int, num: int) -> Tensor:
    """Return the matrix (num, length) of adaptive pooling: cells may share a pixel at the seam."""
    cells, pixels = torch.arange(num)[:, None], torch.arange(length)[None]
    starts, ends = cells * length // num, ((cells + 1) * length + num - 1) // num
    inside = ((pixels >= starts) & (pixels < ends)).float()
    return inside / inside.sum(dim=1, keepdim=True)


class MLPDecoder(Decoder):
    """SegFormer's decoder (arXiv 2105.15203): one linear layer per scale, one to fuse them.

    Args:
        encoder: whose feature maps it takes, from a quarter of the size on.
        width: channels of each projected map and of the result.
    """

    def __init__(self, encoder: Encoder, *, width: int) -> None:
        super().__init__()
        self.first = _first_quarter(encoder)
        self.out_channels = width
        taken = encoder.channels[self.first :]
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in taken)
        self.fuse = conv_unit(width * len(taken), width, kernel=1, norm="batch", bias=False)

    def forward(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Return one map at the size of the finest map that is taken (a quarter)."""
        del size
        taken = features[self.first :]
        projected = [
            resize(project(feature), _size(taken[0]))
            for project, feature in zip(self.project, taken, strict=True)
        ]
        out: Tensor = self.fuse(torch.cat(projected, dim=1))
        return out
