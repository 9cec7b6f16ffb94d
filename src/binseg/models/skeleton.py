"""The one shape of all networks here: an encoder, a decoder and a head, for images of any size.

Shape letters: B batch, C channels, H, W height and width of the input; a feature map's own
height and width are h, w.
"""

from collections.abc import Sequence
from typing import Self

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from binseg.errors import UsageError


class Encoder(nn.Module):
    """Turns images into feature maps, finest first; what decoders need to know is on it."""

    channels: tuple[int, ...]
    """Channels of each feature map."""
    strides: tuple[int, ...]
    """Input pixels per feature pixel, in each map; the last is the least input that makes sense."""
    trained_with: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation of the images that the encoder's weights were trained on."""

    def decoder_channels(self, width: int = 0) -> tuple[int, ...]:
        """Return the channels of a U-Net decoder at each map but the coarsest, finest first.

        `width` is that at a quarter of the size and above, doubled with each halving below; 0
        leaves the choice to the encoder.
        """
        width = width or self.channels[0]
        return tuple(width * max(1, stride // 4) for stride in self.strides[:-1])


class Decoder(nn.Module):
    """Turns an encoder's feature maps and the size of its input into one map for the head."""

    out_channels: int
    """Channels of the map that goes to the head."""
    side_channels: tuple[int, ...] = ()
    """Channels of the maps on the way to it that could be supervised too, the latest first."""

    def levels(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> list[Tensor]:
        """Return the map that goes to the head, then those of `side_channels`."""
        return [self(features, size)]


def pad_to_minimum(images_BCHW: Tensor, minimum: int) -> Tensor:
    """Repeat the right and lower edge pixels until both sides are at least `minimum`."""
    height, width = images_BCHW.shape[-2:]
    if height >= minimum and width >= minimum:
        return images_BCHW
    padding = (0, max(0, minimum - width), 0, max(0, minimum - height))
    return functional.pad(images_BCHW, padding, mode="replicate")


def crop_to(maps_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep the upper left corner of `size`; maps of that size come back as they are."""
    return maps_BChw if size_of(maps_BChw) == size else maps_BChw[..., : size[0], : size[1]]


def size_of(maps_BChw: Tensor) -> tuple[int, int]:
    """Return height and width."""
    return maps_BChw.shape[-2], maps_BChw.shape[-1]


def resize(maps_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly where the size differs; one-pixel maps are spread out, for exporters."""
    if size_of(maps_BChw) == size:
        return maps_BChw
    if size_of(maps_BChw) == (1, 1):
        return maps_BChw.expand(-1, -1, *size)
    return functional.interpolate(maps_BChw, size=size, mode="bilinear", align_corners=False)


class EncoderDecoder(nn.Module):
    """An image-to-logits network made of ready parts; the logits have the input's size.

    K is the head's number of channels, 1 for foreground against background. Inputs smaller than the
    encoder's last stride are padded by repeating their edge, and the logits are cropped back, so
    that 1 x 1 works as well as 572 x 572.
    """

    def __init__(self, *, encoder: Encoder, decoder: Decoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.has_fixed_statistics = False
        self.has_frozen_encoder = False

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        """Switch to training; frozen parts stay in evaluation (`freeze_batch_norm`)."""
        super().train(mode)
        for part in self.encoder.modules():
            is_fixed = self.has_fixed_statistics and isinstance(part, nn.BatchNorm2d)
            if self.has_frozen_encoder or is_fixed:
                part.training = False
        return self

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits, one per input pixel and channel."""
        padded_BCHW = pad_to_minimum(images_BCHW, self.encoder.strides[-1])
        size = size_of(padded_BCHW)
        logits_BKHW = resize(self.head(self.decoder(self.encoder(padded_BCHW), size)), size)
        return crop_to(logits_BKHW, size_of(images_BCHW))

    def forward_levels(
        self, images_BCHW: Float[Tensor, "B C H W"], heads: Sequence[nn.Module]
    ) -> list[Float[Tensor, "B K H W"]]:
        """Return the logits of `forward`, then those of `heads` on the decoder's side maps."""
        padded_BCHW = pad_to_minimum(images_BCHW, self.encoder.strides[-1])
        size = size_of(padded_BCHW)
        maps = self.decoder.levels(self.encoder(padded_BCHW), size)
        pairs = zip((self.head, *heads), maps, strict=True)
        return [crop_to(resize(head(one), size), size_of(images_BCHW)) for head, one in pairs]


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the encoder's parameters, which fine-tuning gives a rate of their own; UsageError."""
    return list(_of_parts(model).encoder.parameters())


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep the encoder's batch-norm statistics, also after `model.train()`; UsageError."""
    whole = _of_parts(model)
    whole.has_fixed_statistics = True
    whole.train(whole.training)


def freeze_encoder(model: nn.Module, *, frozen: bool = True) -> None:
    """Stop the encoder from learning, batch norm included, or let it learn again; UsageError."""
    whole = _of_parts(model)
    whole.has_frozen_encoder = frozen
    whole.encoder.requires_grad_(not frozen)
    whole.train(whole.training)


def _of_parts(model: nn.Module) -> EncoderDecoder:
    if isinstance(model, EncoderDecoder):
        return model
    raise UsageError(f"{type(model).__name__} has no encoder of its own to freeze or fine-tune")
