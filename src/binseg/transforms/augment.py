"""Random changes of training images, on the batch and on its device; masks move alike.

All geometry of an image (rotation, scale, shift, crop, deformation) is one map and one resampling,
where the reports resample once for each; flips and quarter turns are exact. Images are interpolated
bilinearly, targets take the nearest pixel, and what comes from outside is the image mirrored at
its edge, in image and target alike. (The reports fill with black, labelled background: corners
that no photo has, for batch norm to average and the network to learn.)

Kornia's augmentation classes aren't used: with the same changes
they took 2 to 4 ms for an image of 128x128 on two cores where this takes 0.3 to 0.6, most of it
for resampling each image once per change, and they draw from torch's global generator. Here
(seed, epoch, step) alone decide, so that a resumed run sees the same images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from binseg.config.recipe import AugmentConfig
from binseg.transforms.albumentations import PipelineAugment, load_pipeline
from binseg.transforms.motion import move
from binseg.transforms.presets import PRESETS, Preset, resolve_preset
from binseg.transforms.random_numbers import Draw
from binseg.transforms.shades import add_noise, blur, jitter

__all__ = [
    "PRESETS",
    "Augment",
    "PipelineAugment",
    "Preset",
    "PresetAugment",
    "build_augment",
    "generator_for",
]


def generator_for(*, seed: int, epoch: int, step: int) -> torch.Generator:
    """A random generator (on the CPU) that these three numbers decide, each step its own."""
    state = np.random.SeedSequence((seed, epoch, step)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@runtime_checkable
class Augment(Protocol):
    """A random change of a batch that (seed, epoch, step) decide."""

    @property
    def context(self) -> float:
        """How much larger than the output it likes its input, where that can be had."""

    def __call__(
        self,
        images_BCHW: Float32[torch.Tensor, "B C H W"] | UInt8[torch.Tensor, "B C H W"],
        targets_BHW: UInt8[torch.Tensor, "B H W"],
        *,
        seed: int,
        epoch: int,
        step: int,
        size: int | None = None,
        first: int = 0,
        total: int | None = None,
    ) -> tuple[Float32[torch.Tensor, "B C h w"], UInt8[torch.Tensor, "B h w"]]:
        """Give changed images (in [0, 1]) and targets (0, 1, `IGNORE`), of bytes or of floats in [0, 1].

        They have the shapes of the arguments, or the `size` in their middle: what is around it
        serves to turn and shrink them. Where several processes share a batch of `total` images,
        those from `first` on are at hand, and change as they would in one process.
        """


def build_augment(config: AugmentConfig) -> Augment:
    """Build the augmentation that a recipe asks for.

    Raises:
        UsageError: an Albumentations file that can't be read.
        MissingExtraError: such a file is given and Albumentations isn't installed.
    """
    if config.albumentations is not None:
        return PipelineAugment(load_pipeline(Path(config.albumentations)))
    return PresetAugment(preset=resolve_preset(config))


@dataclass(frozen=True, kw_only=True)
class PresetAugment:
    """One of the presets, at work."""

    preset: Preset

    @property
    def context(self) -> float:
        """How much larger than the output the input should be."""
        return self.preset.context

    def __call__(
        self,
        images_BCHW: Float32[torch.Tensor, "B C H W"] | UInt8[torch.Tensor, "B C H W"],
        targets_BHW: UInt8[torch.Tensor, "B H W"],
        *,
        seed: int,
        epoch: int,
        step: int,
        size: int | None = None,
        first: int = 0,
        total: int | None = None,
    ) -> tuple[Float32[torch.Tensor, "B C h w"], UInt8[torch.Tensor, "B h w"]]:
        """Give changed images and targets, of `size` where it is given."""
        generator = generator_for(seed=seed, epoch=epoch, step=step)
        draw = Draw(generator, len(images_BCHW), first=first, total=total)
        height, width = images_BCHW.shape[-2:] if size is None else (size, size)
        images, targets = move(self.preset, images_BCHW, targets_BHW, draw, (height, width))
        jitter(self.preset, images, draw)
        blur(self.preset, images, draw)
        add_noise(self.preset, images, draw)
        return images, targets
