"""SegFormer's encoder, the Mix Transformer, written from the paper (arXiv 2105.15203).

Shape letters: B batch, N tokens (h x w pixels of a feature map), D channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.models.skeleton import Encoder

NUM_HEADS = (1, 2, 5, 8)  # heads of the attention in each stage


def _to_map(tokens_BND: Tensor, h: int, w: int) -> Tensor:
    return tokens_BND.transpose(1, 2).reshape(tokens_BND.shape[0], -1, h, w)


def _to_tokens(maps_BDhw: Tensor) -> Tensor:
    return maps_BDhw.flatten(2).transpose(1, 2)


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by `reduction` a side."""

    def __init__(self, width: int, *, num_heads: int, reduction: int) -> None:
        super().__init__()
        assert width % num_heads == 0, "heads share the channels evenly"
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, width * 2)
        self.out = nn.Linear(width, width)
        self.reduce: nn.Module | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(width, width, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens_BND: Tensor, h: int, w: int) -> Tensor:
        """Return tokens that have attended to each other."""
        source = tokens_BND
        if self.reduce is not None:
            source = self.reduce_norm(_to_tokens(self.reduce(_to_map(tokens_BND, h, w))))
        key, value = self.key_value(source).chunk(2, dim=-1)
        heads = functional.scaled_dot_product_attention(
            self._split(self.query(tokens_BND)), self._split(key), self._split(value)
        )
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out

    def _split(self, tokens_BND: Tensor) -> Tensor:
        """Return one head's share of the channels each: (B, heads, N, D / heads)."""
        return tokens_BND.reshape(*tokens_BND.shape[:2], self.num_heads, -1).transpose(1, 2)


class MixFFN(nn.Module):
    """Two linear layers with a 3x3 depthwise convolution between: it tells where a token is."""

    def __init__(self, width: int, *, inner: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.shrink = nn.Linear(inner, width)

    def forward(self, tokens_BND: Tensor, h: int, w: int) -> Tensor:
        """Return tokens of the same width."""
        mixed = _to_tokens(self.mix(_to_map(self.expand(tokens_BND), h, w)))
        out: Tensor = self.shrink(functional.gelu(mixed))
        return out


class Block(nn.Module):
    """Attention and Mix-FFN, each beside a shortcut; training drops them by `drop_path`."""

    def __init__(self, width: int, *, num_heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = EfficientAttention(width, num_heads=num_heads, reduction=reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = MixFFN(width, inner=width * 4)

    def forward(self, tokens_BND: Tensor, h: int, w: int) -> Tensor:
        """Return tokens of the same width."""
        tokens = tokens_BND + self._drop(self.attention(self.norm1(tokens_BND), h, w))
        return tokens + self._drop(self.ffn(self.norm2(tokens), h, w))

    def _drop(self, branch_BND: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch_BND
        keep = 1 - self.drop_path
        mask_B11 = torch.empty_like(branch_BND[:, :1, :1]).bernoulli_(keep)
        return branch_BND * mask_B11 / keep


class Stage(nn.Module):
    """Overlapping patches of the map before, then two transformer blocks, as in B0."""

    def __init__(self, in_channels: int, width: int, *, index: int, drop_path: float) -> None:
        super().__init__()
        patch, stride = (3, 2) if index else (7, 4)
        self.embed = nn.Conv2d(in_channels, width, patch, stride=stride, padding=patch // 2)
        self.embed_norm = nn.LayerNorm(width, eps=1e-6)
        num_heads, reduction = NUM_HEADS[index], 8 >> index
        self.blocks = nn.ModuleList(
            Block(width, num_heads=num_heads, reduction=reduction, drop_path=drop_path * number / 7)
            for number in (2 * index, 2 * index + 1)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """Return a map of `width` channels at 1/stride of the size, rounded up."""
        patches = self.embed(maps_BChw)
        h, w = patches.shape[-2:]
        tokens = self.embed_norm(_to_tokens(patches))
        for block in self.blocks:
            tokens = block(tokens, h, w)
        return _to_map(self.norm(tokens), h, w)


class MixTransformerEncoder(Encoder):
    """B0: four stages of two transformer blocks; maps at 1/4, 1/8, 1/16, 1/32 (rounded up)."""

    def __init__(self, in_channels: int, *, width: int, drop_path: float) -> None:
        super().__init__()
        self.channels = (width, width * 2, width * 5, width * 8)
        self.strides = (4, 8, 16, 32)
        self.stages = nn.ModuleList()
        for index, (before, after) in enumerate(pairwise((in_channels, *self.channels))):
            self.stages.append(Stage(before, after, index=index, drop_path=drop_path))
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return one map per stage, finest first."""
        features = [images_BCHW]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return tuple(features[1:])
