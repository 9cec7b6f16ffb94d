"""Random changes of training images, on the batch and on its device; masks move alike.

All geometry of an image (rotation, scale, shift, crop, deformation) is one map and one resampling;
flips and quarter turns are exact. Images are interpolated bilinearly, targets take the nearest
pixel, and what comes from outside is the image mirrored at its edge, in image and target alike.
(The reports fill with black, labelled background: corners that no photo has, for the network to
learn.) (seed, epoch, step) alone decide, so that a resumed run sees the same images.
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from binseg.config.recipe import AugmentConfig
from binseg.errors import UsageError, needing
from binseg.transforms.batch_transforms import (
    BatchRandom,
    Preset,
    add_noise,
    blur,
    grey,
    invert,
    jitter,
    move,
    resolve_preset,
)


def generator_for(*, seed: int, epoch: int, step: int) -> torch.Generator:
    """A random generator (on the CPU) that these three numbers decide, each step its own."""
    state = np.random.SeedSequence((seed, epoch, step)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


class When(NamedTuple):
    """All that decides random changes: one process has the images from `first` on of `total`."""

    seed: int
    epoch: int
    step: int
    first: int
    total: int | None


class Augment(ABC):
    """A random change of a batch that (seed, epoch, step) decide."""

    context = 1.0
    """Factor by which its input should be larger than its output, where that can be had."""

    def __call__(
        self,
        images_BCHW: Tensor,
        targets_BHW: Tensor,
        *,
        seed: int,
        epoch: int,
        step: int,
        size: int | None = None,
        first: int = 0,
        total: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Change images to floats in [0, 1] of `size`, from `first` on of `total`, and targets."""
        height, width = images_BCHW.shape[-2:] if size is None else (size, size)
        when = When(seed, epoch, step, first, total)
        return self._change(images_BCHW, targets_BHW, (height, width), when)

    @abstractmethod
    def _change(
        self, images: Tensor, targets: Tensor, shape: tuple[int, int], when: When
    ) -> tuple[Tensor, Tensor]:
        """Change a batch, to height and width of `shape`."""


def build_augment(config: AugmentConfig) -> Augment:
    """Build a recipe's augmentation; raises UsageError, MissingExtraError."""
    if config.albumentations is not None:
        return PipelineAugment(load_pipeline(Path(config.albumentations)))
    return PresetAugment(resolve_preset(config))


class PresetAugment(Augment):
    """One of the presets, at work."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.context = preset.context

    def _change(
        self, images: Tensor, targets: Tensor, shape: tuple[int, int], when: When
    ) -> tuple[Tensor, Tensor]:
        generator = generator_for(seed=when.seed, epoch=when.epoch, step=when.step)
        random = BatchRandom(generator, len(images), first=when.first, total=when.total)
        images, targets = move(self.preset, images, targets, random, shape)
        # These work in place: the batch is the augmentation's own by now.
        for change in (jitter, grey, invert, blur, add_noise):
            change(self.preset, images, random)
        return images, targets


class PipelineAugment(Augment):
    """A user's Albumentations pipeline of image and mask, image by image, by keyword."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def _change(
        self, images: Tensor, targets: Tensor, shape: tuple[int, int], when: When
    ) -> tuple[Tensor, Tensor]:
        assert shape == images.shape[-2:], "its context is 1"
        address = when[:4] if when.first else when[:3]
        state = np.random.SeedSequence(address).generate_state(1)
        self._pipeline.set_random_seed(int(state[0]))
        if images.dtype != torch.uint8:
            # They were bytes divided by 255: this brings the very bytes back.
            images = (images * 255).round().to(torch.uint8)
        changed, relabelled = [], []
        for image_CHW, target_HW in zip(images.cpu(), targets.cpu().numpy(), strict=True):
            image_HWC = image_CHW.permute(1, 2, 0).contiguous().numpy()
            given = self._pipeline(image=image_HWC, mask=target_HW)
            image, target = (np.ascontiguousarray(given[name]) for name in ("image", "mask"))
            _check_changed(image, image_HWC)
            changed.append(torch.from_numpy(image).view(image_HWC.shape))
            relabelled.append(torch.from_numpy(target).to(torch.uint8))
        stacked = torch.stack(changed).to(targets.device).permute(0, 3, 1, 2)
        return stacked.float().div_(255.0), torch.stack(relabelled).to(targets.device)


def load_pipeline(path: Path) -> Any:
    """Load a pipeline that `albumentations.save` wrote, as JSON or YAML."""
    # Else each import asks the package index for a newer version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    package = "albumentations"
    with needing(package, extra=package, purpose=f"the augmentation {path}"):
        import albumentations
    data_format = "json" if path.suffix.lower() == ".json" else "yaml"
    try:
        return albumentations.load(path, data_format=data_format)
    except OSError as problem:
        raise UsageError(f"can't read the augmentation {path}: {problem.strerror}") from None
    except Exception as problem:  # noqa: BLE001  # its classes raise what they like
        reason = " ".join(str(problem).split())
        raise UsageError(
            f"{path} is no Albumentations pipeline ({reason}); save one with albumentations.save"
        ) from None


def _check_changed(image: np.ndarray, before: np.ndarray) -> None:
    """Refuse pipelines that do what preprocessing does."""
    if image.dtype != np.uint8:
        raise UsageError(
            f"the Albumentations pipeline gives {image.dtype} pixels, not uint8; remove Normalize, "
            "ToFloat and ToTensorV2: binseg normalises by input.mean and input.std"
        )
    if image.size != before.size or image.shape[:2] != before.shape[:2]:
        raise UsageError(
            f"the Albumentations pipeline turns {before.shape[0]}x{before.shape[1]} images into "
            f"{image.shape[0]}x{image.shape[1]}; let it keep the size, or end with a Resize"
        )
