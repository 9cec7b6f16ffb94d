"""The networks that help (torch): ready-made features of a pretrained one, and one that learns.

That one learns in rounds on labelled pixels only, each from the pretrained base, so that what was
drawn wrong and corrected leaves no trace.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from binseg.config.recipe import AugmentConfig
from binseg.inference.runtimes import computes_bf16
from binseg.labeling.cold_engine import Features
from binseg.labeling.label_log import Labels
from binseg.labeling.open_image import RGB
from binseg.losses import build_loss
from binseg.models import create_model
from binseg.models.skeleton import EncoderDecoder
from binseg.transforms.augmentation import build_augment
from binseg.types import IGNORE

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
        enlarge = partial(functional.interpolate, mode="bilinear")
        with torch.inference_mode():
            maps = encoder(enlarge(((image - mean) / std)[None], size=size))
            if not axes:  # the same for all images, so that trees of one can answer for another
                axes.extend(_principal(one) for one in maps)
            pairs = zip(maps, axes, strict=True)
            kept = [torch.einsum("bchw,ck->bkhw", one, axis) for one, axis in pairs]
            full = [enlarge(one, size=(height, width)) for one in kept]
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


CROP, BATCH = 256, 6
RATE, ENCODER_SHARE = 2e-3, 0.25  # learning rate of the decoder, and the encoder's as a share of it
LEAST_STEPS = 60  # steps of a round, however long they take
_AUGMENT = build_augment(AugmentConfig(preset="strong", orientation="any"))
_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with what is labelled of it, at the engines' size."""

    rgb_hw3: RGB
    labels_hw: Labels


class WarmNetwork:
    """A network (its logits) that answers for images at the engines' size."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval()

    def probability(self, rgb_hw3: RGB) -> np.ndarray:
        """Predict one image, and its mirror image, of which the mean is taken."""
        height, width = rgb_hw3.shape[:2]
        pad = (0, -width % _MULTIPLE, 0, -height % _MULTIPLE)
        with torch.inference_mode():
            image = torch.from_numpy(rgb_hw3.astype(np.float32) / 255).permute(2, 0, 1)[None]
            image = functional.pad(_normalised(self._model, image), pad, mode="replicate")
            both = self._model(torch.cat([image, image.flip(-1)])).sigmoid()
            mean = (both[0] + both[1].flip(-1))[0] / 2
        found: np.ndarray = mean[:height, :width].numpy()
        return found


def base_network() -> nn.Module:
    """Give Lite0 from ImageNet with a fresh U-Net decoder; DataError without weights."""
    torch.manual_seed(0)
    return create_model(
        "unet", encoder=ENCODER, encoder_weights="imagenet", up="bilinear", final_convs=0
    )


def train_round(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    seconds: float,
    seed: int = 0,
    most_steps: int | None = None,
) -> WarmNetwork:
    """Train on labels of either kind for some seconds, or `most_steps`, in place."""
    assert isinstance(model, EncoderDecoder)
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model.train()
    for part in model.encoder.modules():
        if isinstance(part, nn.BatchNorm2d):  # crops say less of channels' means than ImageNet
            part.eval()
    rest = [*model.decoder.parameters(), *model.head.parameters()]
    slow = {"params": [*model.encoder.parameters()], "lr": RATE * ENCODER_SHARE}
    groups: list[dict[str, Any]] = [{"params": rest, "lr": RATE}, slow]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    rates = [group["lr"] for group in optimiser.param_groups]
    loss_of, is_mixed = build_loss("bce-dice"), computes_bf16()
    start, step = time.monotonic(), 0
    while True:
        spent = (time.monotonic() - start) / seconds
        # On a busy machine a round takes longer: a network of a few steps would help nobody.
        share = min(spent, step / LEAST_STEPS) if most_steps is None else step / most_steps
        if share >= 1:
            break
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (0.5 + 0.5 * np.cos(np.pi * share))
        images, target, valid = _batch(model, examples, random, step=step)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            logits = model(images)
        loss = loss_of(logits.float(), target, valid)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        step += 1
    return WarmNetwork(model)


def _batch(
    model: nn.Module, examples: Sequence[Example], random: np.random.Generator, *, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut crops around labelled pixels, and change them as training on few images does."""
    crops = [_crop(examples[int(random.integers(len(examples)))], random) for _ in range(BATCH)]
    images, labels = (torch.from_numpy(np.stack(parts)) for parts in zip(*crops, strict=True))
    seed = int(random.integers(2**31))
    changed = _AUGMENT(images.permute(0, 3, 1, 2), labels, seed=seed, epoch=0, step=step)
    target_B1HW = changed[1][:, None]
    return _normalised(model, changed[0]), (target_B1HW == 1).float(), target_B1HW != IGNORE


def _crop(one: Example, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square that holds a labelled pixel; past the image's end nothing is labelled."""
    height, width = one.labels_hw.shape
    places = np.flatnonzero(one.labels_hw == random.integers(2))
    if not len(places):
        places = np.flatnonzero(one.labels_hw != IGNORE)
    y, x = np.divmod(int(random.choice(places)), width)
    top = int(np.clip(y - random.integers(CROP), 0, max(0, height - CROP)))
    left = int(np.clip(x - random.integers(CROP), 0, max(0, width - CROP)))
    image = one.rgb_hw3[top : top + CROP, left : left + CROP]
    known = one.labels_hw[top : top + CROP, left : left + CROP]
    missing = [(0, CROP - side) for side in known.shape]
    padded = np.pad(image, [*missing, (0, 0)], mode="edge")
    return padded, np.pad(known, missing, constant_values=IGNORE)


def _normalised(model: nn.Module, images_B3HW: Tensor) -> Tensor:
    assert isinstance(model, EncoderDecoder)
    assert model.encoder.trained_with is not None
    mean, std = (torch.tensor(values)[:, None, None] for values in model.encoder.trained_with)
    return (images_B3HW - mean) / std
