"""Random changes of training images, on the batch and on its device; masks move alike.

All geometry of an image (rotation, scale, shift, crop, deformation) is one map and one resampling,
where the reports resample once for each; flips and quarter turns are exact. Images are interpolated
bilinearly, targets take the nearest pixel, and what comes from outside is the image mirrored at
its edge, in image and target alike. (The reports fill with black, labelled background: corners
that no photo has, for batch norm to average and the network to learn.)

Kornia's augmentation classes aren't used: with the same changes
they took 2 to 4 ms for an image of 128x128 on two cores where this takes 0.3 to 0.6, most of it
for resampling each image once per change, and they sample from torch's global generator. Here
(seed, epoch, step) alone decide, so that a resumed run sees the same images.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from binseg.config.recipe import AugmentConfig
from binseg.errors import MissingExtraError, UsageError
from binseg.transforms.batch_transforms import BatchRandom, add_noise, blur, jitter, move
from binseg.transforms.presets import Preset, resolve_preset


def generator_for(*, seed: int, epoch: int, step: int) -> torch.Generator:
    """A random generator (on the CPU) that these three numbers decide, each step its own."""
    state = np.random.SeedSequence((seed, epoch, step)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@runtime_checkable
class Augment(Protocol):
    """A random change of a batch that (seed, epoch, step) decide."""

    @property
    def context(self) -> float:
        """Factor by which its input should be larger than its output, where that can be had."""

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
        """Change images, bytes or floats in [0, 1], and targets of 0, 1 and `IGNORE`.

        Images come out in [0, 1], of the arguments' shape or of the `size` in its middle: what is
        around it serves to turn and shrink them. Where several processes share a batch of `total`
        images, those from `first` on are at hand, and change as they would in one process.
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
        """Factor by which the input should be larger than the output."""
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
        random = BatchRandom(generator, len(images_BCHW), first=first, total=total)
        height, width = images_BCHW.shape[-2:] if size is None else (size, size)
        images, targets = move(self.preset, images_BCHW, targets_BHW, random, (height, width))
        jitter(self.preset, images, random)
        blur(self.preset, images, random)
        add_noise(self.preset, images, random)
        return images, targets


def load_pipeline(path: Path) -> Any:
    """Load a pipeline that `albumentations.save` wrote, as JSON or YAML."""
    # Else each import asks the package index for a newer version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ModuleNotFoundError as problem:
        if problem.name != "albumentations":
            raise
        raise MissingExtraError(
            "albumentations", extra="albumentations", purpose=f"the augmentation {path}"
        ) from None
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


class PipelineAugment:
    """A user's own Albumentations pipeline, image by image on the CPU.

    Args:
        pipeline: takes image (uint8, HWC) and mask (uint8, HW) by keyword, and gives the same.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @property
    def context(self) -> float:
        """A pipeline sees what the network would see, and nothing around it."""
        return 1.0

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
        """Give changed images and targets; the arguments stay as they are.

        A pipeline samples image after image: each process has random numbers of its own.
        """
        del total
        assert size in {None, images_BCHW.shape[-1]}, "its context is 1"
        device = images_BCHW.device
        address = (seed, epoch, step, first) if first else (seed, epoch, step)
        state = np.random.SeedSequence(address).generate_state(1)
        self._pipeline.set_random_seed(int(state[0]))
        if images_BCHW.dtype != torch.uint8:
            # They were bytes divided by 255: this brings the very bytes back.
            images_BCHW = (images_BCHW * 255).round().to(torch.uint8)
        images_BHWC = images_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        images, targets = [], []
        for image_HWC, target_HW in zip(images_BHWC, targets_BHW.cpu().numpy(), strict=True):
            changed = self._pipeline(image=np.ascontiguousarray(image_HWC), mask=target_HW)
            image, target = np.asarray(changed["image"]), np.asarray(changed["mask"])
            _check_changed(image, image_HWC)
            images.append(torch.from_numpy(np.ascontiguousarray(image)).view(image_HWC.shape))
            targets.append(torch.from_numpy(np.ascontiguousarray(target)).to(torch.uint8))
        stacked = torch.stack(images).to(device).permute(0, 3, 1, 2)
        return stacked.float().div_(255.0), torch.stack(targets).to(device)


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
