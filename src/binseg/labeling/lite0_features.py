"""Features of the pretrained Lite0 encoder, ready before anybody has drawn a stroke."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from binseg.labeling.cold_engine import Features
from binseg.labeling.working_image import RGB
from binseg.models import create_model

ENCODER = "efficientnet_lite0"
_ZOOM = 2
"""Images are enlarged before they are looked at, so that maps are finer against their pixels."""
_NUM_KEPT = 16
"""Numbers that each of the encoder's maps is reduced to: the first image's main directions."""
_MOST_PLACES = 20_000


def lite0_features() -> Callable[[RGB], Features]:
    """Give the function that describes pixels by the encoder's maps; DataError without weights."""
    model = create_model("unet", encoder=ENCODER, encoder_weights="imagenet")
    encoder: Any = model.eval().encoder
    mean, std = (torch.tensor(values)[:, None, None] for values in encoder.trained_with)

    axes: list[Tensor] = []

    def describe(rgb_HW3: RGB) -> Features:
        height, width = rgb_HW3.shape[:2]
        image = torch.from_numpy(rgb_HW3.astype(np.float32) / 255).permute(2, 0, 1)
        size = [max(32, _ZOOM * height), max(32, _ZOOM * width)]
        with torch.inference_mode():
            zoomed = functional.interpolate(
                ((image - mean) / std)[None], size=size, mode="bilinear"
            )
            maps = encoder(zoomed)
            if not axes:  # the same for all images, so that trees of one can answer for another
                axes.extend(_principal(one) for one in maps)
            full = [
                functional.interpolate(
                    torch.einsum("bchw,ck->bkhw", one, axis), size=(height, width), mode="bilinear"
                )
                for one, axis in zip(maps, axes, strict=True)
            ]
            return torch.cat(full, dim=1)[0].permute(1, 2, 0).numpy().astype(np.float16)

    return describe


def _principal(maps_1Chw: Tensor) -> Tensor:
    """Directions of a map's channels in which its places differ most."""
    values_NC = maps_1Chw[0].flatten(1).T
    values_NC = values_NC[:: max(1, len(values_NC) // _MOST_PLACES)]
    centred_NC = values_NC - values_NC.mean(dim=0)
    _, vectors_CC = torch.linalg.eigh(centred_NC.T @ centred_NC)
    kept_CK: Tensor = vectors_CC.flip(1)[:, :_NUM_KEPT]
    return kept_CK
