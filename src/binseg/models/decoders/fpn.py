"""Feature pyramid (arXiv 1612.03144) with the segmentation branch of Panoptic FPN (1901.02446)."""

from torch import Tensor, nn

from binseg.models.blocks import Norm, conv_unit
from binseg.models.skeleton import Decoder, resize

__all__ = ["FPNDecoder"]


class FPNDecoder(Decoder):
    """Maps of all scales get the coarser ones added, are brought to the finest size and summed.

    The stem's map is not used, as published; top-down maps are resized bilinearly (published:
    nearest neighbour), so that odd sizes stay aligned.

    Args:
        encoder_channels: channels of the feature maps, finest first; the first is the stem's.
        width: channels of the pyramid; the segmentation branch has half.
        norm: what follows each convolution of the segmentation branch.
        bias: whether those convolutions have biases.
    """

    def __init__(
        self, encoder_channels: tuple[int, ...], *, width: int, norm: Norm, bias: bool
    ) -> None:
        super().__init__()
        self.out_channels = max(1, width // 2)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in encoder_channels[1:])
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
        """One map at the size of the encoder's second feature map (a quarter)."""
        del size
        pyramid = [
            lateral(feature) for lateral, feature in zip(self.laterals, features[1:], strict=True)
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


def _size(maps_BChw: Tensor) -> tuple[int, int]:
    return maps_BChw.shape[-2], maps_BChw.shape[-1]
