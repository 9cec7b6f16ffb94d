"""DenseNets (arXiv 1608.06993), with torchvision's parameter names.

`features.conv0`, `features.denseblock1.denselayer1.norm1`, `features.transition1.conv`, ...
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.models.skeleton import Encoder


class _DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution: `growth` new channels."""

    def __init__(self, in_channels: int, *, growth: int) -> None:
        super().__init__()
        inner = growth * 4
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Return the new channels behind the old ones."""
        inner = self.conv1(functional.relu(self.norm1(maps_BChw)))
        new = self.conv2(functional.relu(self.norm2(inner)))
        return torch.cat((maps_BChw, new), dim=1)


class DenseNetEncoder(Encoder):
    """A stem and four dense blocks; five feature maps, each behind norm and ReLU.

    Args:
        in_channels: channels of the images.
        stem_channels: of the first convolution; 64 in DenseNet-121.
        growth: channels that each layer adds; 32 in DenseNet-121.
        num_layers: in each dense block; `(6, 12, 24, 16)` in DenseNet-121.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        stem_channels: int = 64,
        growth: int = 32,
        num_layers: tuple[int, ...] = (6, 12, 24, 16),
    ) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(in_channels, stem_channels, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(stem_channels),
        )
        channels = stem_channels
        widths = [stem_channels]
        for index, num in enumerate(num_layers, start=1):
            layers = OrderedDict(
                (f"denselayer{n + 1}", _DenseLayer(channels + n * growth, growth=growth))
                for n in range(num)
            )
            parts[f"denseblock{index}"] = nn.Sequential(OrderedDict[str, nn.Module](layers))
            channels += num * growth
            widths.append(channels)
            if index < len(num_layers):
                parts[f"transition{index}"] = nn.Sequential(
                    OrderedDict[str, nn.Module](
                        norm=nn.BatchNorm2d(channels),
                        conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
                    )
                )
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.num_blocks = len(num_layers)
        self.channels = tuple(widths)
        self.strides = tuple(2 ** (level + 1) for level in range(len(widths)))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the stem's map and one per dense block: at 1/2, 1/4, 1/8, 1/16, 1/32."""
        part = self.features.get_submodule
        maps = functional.relu(part("norm0")(part("conv0")(images_BCHW)))
        features = [maps]
        maps = functional.max_pool2d(maps, 3, stride=2, padding=1)
        for index in range(1, self.num_blocks):
            maps = part(f"denseblock{index}")(maps)
            # Taken behind the transition's norm, before its convolution halves the channels.
            maps = functional.relu(part(f"transition{index}.norm")(maps))
            features.append(maps)
            maps = functional.avg_pool2d(part(f"transition{index}.conv")(maps), 2)
        maps = part(f"denseblock{self.num_blocks}")(maps)
        features.append(functional.relu(part("norm5")(maps)))
        return tuple(features)
