"""A user's own Albumentations pipeline as an augmentation."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from binseg.errors import MissingExtraError, UsageError

__all__ = ["PipelineAugment", "load_pipeline"]


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

        A pipeline draws image after image: of several processes each has draws of its own.
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
