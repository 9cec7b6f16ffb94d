"""Random changes of training pictures, on the batch and on its device; masks move alike.

All geometry of a picture (rotation, scale, shift, crop) is one affine map and one resampling, where
the reports resample once for each; flips and quarter turns are exact. Images are interpolated
bilinearly, targets take the nearest pixel, and what comes from outside is the picture mirrored at
its edge, in image and target alike. (The reports fill with black, labelled background: corners
that no photo has, for batch norm to average and the network to learn.)

Colour and blur are Kornia's functions. Its augmentation classes aren't used: with the same changes
they took 2 to 4 ms for a picture of 128x128 on two cores where this takes 0.3 to 0.6, most of it
for resampling each picture once per change, and they draw from torch's global generator. Here
(seed, epoch, step) alone decide, so that a resumed run sees the same pictures.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from kornia import enhance
from kornia.filters import gaussian_blur2d
from torch.nn import functional

from binseg.config.recipe import AugmentConfig
from binseg.errors import MissingExtraError, UsageError

__all__ = [
    "PRESETS",
    "Augment",
    "PipelineAugment",
    "Preset",
    "PresetAugment",
    "build_augment",
    "generator_for",
]

ASPECTS = (3 / 4, 4 / 3)
"""Of a random crop, as in torchvision's RandomResizedCrop."""
BLUR_SIGMA = (0.5, 0.8)
"""Of a 3x3 Gaussian; Albumentations takes 0.8 for a limit of 3."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of each random change; everything is off unless said."""

    source: str
    """What it reproduces, in a few words."""
    flip: float = 0.0
    """Probability of a left-right flip."""
    flip_vertical: float = 0.0
    quarter_turn: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees."""
    affine: float = 0.0
    """Probability of the changes from here to `shift`."""
    rotate: float = 0.0
    """Largest angle in degrees, either way."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor: above 1 enlarges."""
    shift: float = 0.0
    """Largest shift as a share of the side."""
    crop_area: tuple[float, float] | None = None
    """A random crop of this share of the area (aspect 3:4 to 4:3), resized to the whole; always."""
    jitter: float = 0.0
    """Probability of the colour changes from here to `saturation`."""
    brightness: float = 0.0
    """Factor from 1 - this to 1 + this; likewise contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    blur: float = 0.0
    """Probability of a 3x3 Gaussian blur."""


PRESETS: dict[str, Preset] = {
    "none": Preset(source="no change"),
    "mild": Preset(
        source="report D's, with a little scale and shift",
        flip=0.5,
        affine=0.3,
        rotate=15.0,
        scale=(0.9, 1.1),
        shift=0.05,
        jitter=0.5,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
    ),
    "medium": Preset(
        source="mild, with more of everything, for long runs of small networks",
        flip=0.5,
        affine=0.7,
        rotate=15.0,
        scale=(0.75, 1.35),
        shift=0.08,
        jitter=0.8,
        brightness=0.25,
        contrast=0.25,
        saturation=0.25,
    ),
    "report-a": Preset(
        source="report A: flip, rotation, jitter, random resized crop, shift",
        flip=0.5,
        affine=1.0,
        rotate=20.0,
        shift=0.1,
        crop_area=(0.8, 1.0),
        jitter=1.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
    ),
    "report-b": Preset(
        source="report B: flips, quarter turns, shift-scale-rotate, brightness-contrast, blur",
        flip=0.5,
        flip_vertical=0.2,
        quarter_turn=0.3,
        affine=0.5,
        rotate=15.0,
        scale=(0.8, 1.2),
        shift=0.1,
        jitter=0.2,
        brightness=0.2,
        contrast=0.2,
        blur=0.3,
    ),
    "report-c": Preset(source="tutorial C: none; it only scales values to [0, 1]"),
    "report-d": Preset(
        source="report D: flip, rotation, jitter",
        flip=0.5,
        affine=0.3,
        rotate=15.0,
        jitter=0.5,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
    ),
}


def generator_for(*, seed: int, epoch: int, step: int) -> torch.Generator:
    """A random generator (on the CPU) that these three numbers decide, each step its own."""
    state = np.random.SeedSequence((seed, epoch, step)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@runtime_checkable
class Augment(Protocol):
    """A random change of a batch that (seed, epoch, step) decide."""

    def __call__(
        self,
        images_BCHW: Float32[torch.Tensor, "B C H W"],
        targets_BHW: UInt8[torch.Tensor, "B H W"],
        *,
        seed: int,
        epoch: int,
        step: int,
    ) -> tuple[Float32[torch.Tensor, "B C H W"], UInt8[torch.Tensor, "B H W"]]:
        """Give changed images (in [0, 1]) and targets (0, 1, 2) of the same shapes."""


def build_augment(config: AugmentConfig) -> Augment:
    """Build the augmentation that a recipe asks for.

    Raises:
        UsageError: an Albumentations file that can't be read.
        MissingExtraError: such a file is given and Albumentations isn't installed.
    """
    if config.albumentations is not None:
        return PipelineAugment(load_pipeline(Path(config.albumentations)))
    return PresetAugment(preset=PRESETS[config.preset])


@dataclass(frozen=True, kw_only=True)
class PresetAugment:
    """One of the presets, at work."""

    preset: Preset

    def __call__(
        self,
        images_BCHW: Float32[torch.Tensor, "B C H W"],
        targets_BHW: UInt8[torch.Tensor, "B H W"],
        *,
        seed: int,
        epoch: int,
        step: int,
    ) -> tuple[Float32[torch.Tensor, "B C H W"], UInt8[torch.Tensor, "B H W"]]:
        """Give changed images and targets; the arguments stay as they are."""
        draw = _Draw(generator_for(seed=seed, epoch=epoch, step=step), len(images_BCHW))
        images, targets = _flip(self.preset, images_BCHW, targets_BHW, draw)
        images, targets = _turn(self.preset, images, targets, draw)
        images, targets = _warp(self.preset, images, targets, draw)
        images = _jitter(self.preset, images, draw)
        return _blur(self.preset, images, draw), targets


class _Draw:
    """Random numbers for a batch, on the CPU: the same on every device."""

    def __init__(self, generator: torch.Generator, num: int) -> None:
        self._generator = generator
        self._num = num

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """One number in [low, high) for each picture."""
        return torch.rand(self._num, generator=self._generator) * (high - low) + low

    def happens(self, probability: float) -> torch.Tensor:
        """True for the pictures to which a thing of this probability happens."""
        return self.uniform(0.0, 1.0) < probability


Pair = tuple[torch.Tensor, torch.Tensor]


def _flip(preset: Preset, images: torch.Tensor, targets: torch.Tensor, draw: _Draw) -> Pair:
    """Mirror left-right and upside down."""
    for probability, axis in ((preset.flip, -1), (preset.flip_vertical, -2)):
        chosen = draw.happens(probability).to(images.device)
        if probability > 0:
            images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
            targets = torch.where(chosen[:, None, None], targets.flip(axis), targets)
    return images, targets


def _turn(preset: Preset, images: torch.Tensor, targets: torch.Tensor, draw: _Draw) -> Pair:
    """Turn by 0, 90, 180 or 270 degrees; pictures that aren't square by 0 or 180."""
    chosen = draw.happens(preset.quarter_turn)
    quarters = torch.where(chosen, draw.uniform(0.0, 4.0).long(), 0)
    if images.shape[-1] != images.shape[-2]:
        quarters = quarters // 2 * 2
    if not bool(quarters.any()):
        return images, targets
    images, targets = images.clone(), targets.clone()
    for quarter in (1, 2, 3):
        rows = (quarters == quarter).nonzero()[:, 0].to(images.device)
        if len(rows) == 0:  # nothing to turn, and oblong pictures have no such turn
            continue
        images[rows] = torch.rot90(images[rows], quarter, (-2, -1))
        targets[rows] = torch.rot90(targets[rows], quarter, (-2, -1))
    return images, targets


def _warp(preset: Preset, images: torch.Tensor, targets: torch.Tensor, draw: _Draw) -> Pair:
    """Rotate, scale, shift and crop in one resampling of the pictures that it happens to."""
    height, width = images.shape[-2:]
    chosen = draw.happens(preset.affine)
    theta = _affine(preset, draw, aspect=width / height)
    if preset.crop_area is not None:
        theta = theta @ _crop(preset.crop_area, draw, aspect=width / height)
        chosen = torch.ones_like(chosen)
    if not bool(chosen.any()):
        return images, targets
    rows = chosen.nonzero()[:, 0].to(images.device)
    some, labels = images[rows].contiguous(), targets[rows][:, None].float()
    grid = functional.affine_grid(
        theta[chosen, :2].to(images.device), list(some.shape), align_corners=False
    )
    images, targets = images.clone(), targets.clone()
    images[rows] = functional.grid_sample(
        some, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    labels = functional.grid_sample(
        labels, grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    targets[rows] = labels[:, 0].to(torch.uint8)
    return images, targets


def _affine(preset: Preset, draw: _Draw, *, aspect: float) -> torch.Tensor:
    """Draw rotation, scale and shift as maps (B, 3, 3) from output to input, in [-1, 1]."""
    angle = torch.deg2rad(draw.uniform(-preset.rotate, preset.rotate))
    zoom = draw.uniform(*preset.scale)
    shift_x, shift_y = (draw.uniform(-2 * preset.shift, 2 * preset.shift) for _ in "xy")
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, -sin / aspect, shift_x, sin * aspect, cos, shift_y, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _crop(area: tuple[float, float], draw: _Draw, *, aspect: float) -> torch.Tensor:
    """Draw crops as maps (B, 3, 3) from the whole output to a part of the input."""
    share = draw.uniform(*area)
    shape = torch.exp(draw.uniform(*(float(np.log(a)) for a in ASPECTS))) / aspect
    across = torch.sqrt(share * shape).clamp(max=1.0)
    down = torch.sqrt(share / shape).clamp(max=1.0)
    right = (1 - across) * draw.uniform(-1.0, 1.0)
    below = (1 - down) * draw.uniform(-1.0, 1.0)
    zero, one = torch.zeros_like(share), torch.ones_like(share)
    rows = [across, zero, right, zero, down, below, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _jitter(preset: Preset, images: torch.Tensor, draw: _Draw) -> torch.Tensor:
    """Change brightness, contrast and saturation, in this order, of the pictures it happens to."""
    chosen = draw.happens(preset.jitter)
    amounts = (preset.brightness, preset.contrast, preset.saturation)
    brightness, contrast, saturation = (draw.uniform(1 - a, 1 + a)[chosen] for a in amounts)
    if not bool(chosen.any()):
        return images
    rows = chosen.nonzero()[:, 0].to(images.device)
    some = enhance.adjust_brightness_accumulative(images[rows], brightness)
    some = enhance.adjust_contrast_with_mean_subtraction(some, contrast)
    if images.shape[1] == 3 and preset.saturation > 0:
        some = enhance.adjust_saturation_with_gray_subtraction(some, saturation)
    images = images.clone()
    images[rows] = some
    return images


def _blur(preset: Preset, images: torch.Tensor, draw: _Draw) -> torch.Tensor:
    """Blur the pictures that it happens to."""
    chosen = draw.happens(preset.blur)
    sigma = draw.uniform(*BLUR_SIGMA)[chosen]
    if not bool(chosen.any()):
        return images
    rows = chosen.nonzero()[:, 0].to(images.device)
    images = images.clone()
    sigmas = sigma[:, None].expand(-1, 2).to(images.device)
    images[rows] = gaussian_blur2d(images[rows].contiguous(), (3, 3), sigmas)
    return images


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
    """A user's own Albumentations pipeline, picture by picture on the CPU.

    Args:
        pipeline: takes image (uint8, HWC) and mask (uint8, HW) by keyword, and gives the same.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __call__(
        self,
        images_BCHW: Float32[torch.Tensor, "B C H W"],
        targets_BHW: UInt8[torch.Tensor, "B H W"],
        *,
        seed: int,
        epoch: int,
        step: int,
    ) -> tuple[Float32[torch.Tensor, "B C H W"], UInt8[torch.Tensor, "B H W"]]:
        """Give changed images and targets; the arguments stay as they are."""
        device = images_BCHW.device
        state = np.random.SeedSequence((seed, epoch, step)).generate_state(1)
        self._pipeline.set_random_seed(int(state[0]))
        # The images were bytes divided by 255: this brings the very bytes back.
        images_BHWC = (images_BCHW.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
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
            f"the Albumentations pipeline turns {before.shape[0]}x{before.shape[1]} pictures into "
            f"{image.shape[0]}x{image.shape[1]}; let it keep the size, or end with a Resize"
        )
