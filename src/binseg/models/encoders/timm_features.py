"""Any network of timm that gives feature maps, as an encoder (extra `timm`)."""

import os
from itertools import pairwise

from torch import Tensor

from binseg.errors import DataError, MissingExtraError, UsageError
from binseg.models.skeleton import Encoder


class TimmEncoder(Encoder):
    """A `features_only` network of timm; its weights are those of the tag in its name.

    timm sums the first convolution's weights for 1 channel, and repeats and scales them for others.
    Raises MissingExtraError, UsageError (no such network, or no feature maps) and DataError
    (weights).
    """

    def __init__(self, in_channels: int, *, name: str, pretrained: bool) -> None:
        super().__init__()
        if os.environ.get("BINSEG_OFFLINE", "") not in ("", "0"):
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when timm's downloader is imported
        try:
            import timm
        except ImportError as error:
            purpose = f"the encoder timm:{name}"
            raise MissingExtraError("timm", extra="timm", purpose=purpose) from error
        if not timm.is_model(name.partition(".")[0]):
            lists = "python -c 'import timm; print(timm.list_models())' lists them"
            raise UsageError(f"timm has no network {name}; {lists}")
        try:
            self.features = timm.create_model(
                name, pretrained=pretrained, features_only=True, in_chans=in_channels
            )
        except RuntimeError as error:
            raise UsageError(f"timm:{name} can't be an encoder: {_line(error)}") from error
        except OSError as error:
            raise DataError(
                f"timm's weights of {name} can't be fetched ({_line(error)}); go online once, or "
                "leave encoder_weights out"
            ) from error
        facts = self.features.feature_info
        self.channels = tuple(facts.channels())
        self.strides = tuple(facts.reduction())
        ratios = {high / low for low, high in pairwise(self.strides)}
        if ratios != {2.0} or self.strides[0] not in (1, 2, 4):
            raise UsageError(
                f"timm:{name} can't be an encoder: its maps have strides "
                f"{', '.join(map(str, self.strides))}, and decoders need maps that halve"
            )
        if pretrained:
            config = timm.get_pretrained_cfg(name)
            self.trained_with = (tuple(config.mean), tuple(config.std))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return one map per stage, finest first."""
        maps: tuple[Tensor, ...] = tuple(self.features(images_BCHW))
        return maps


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
