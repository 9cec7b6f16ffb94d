"""Random changes of what pixels are worth: light, contrast, colour, exposure, noise, blur.

All work in place: the batch is the augmentation's own.
"""

import math

import torch
from kornia.filters import gaussian_blur2d

from binseg.transforms.presets import Preset
from binseg.transforms.random_numbers import Draw

__all__ = ["add_noise", "blur", "jitter"]

GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue."""
NARROW = 0.8
"""Largest sigma that a 3x3 kernel holds."""


def jitter(preset: Preset, images_BCHW: torch.Tensor, draw: Draw) -> None:
    """Change brightness, contrast, saturation and gamma, in this order, where it happens.

    All but gamma are linear, so they are one matrix for each image. Channels that are neither
    grey nor RGB are different measurements: each also gets a brightness of its own, half as strong.
    """
    chosen = draw.happens(preset.jitter)
    amounts = (preset.brightness, preset.contrast, preset.saturation)
    brightness, contrast, saturation = (
        torch.where(chosen, draw.uniform(1 - a, 1 + a), 1.0) for a in amounts
    )
    limit = math.log1p(preset.gamma)
    exponent = torch.exp(draw.uniform(-limit, limit)) if limit > 0 else None
    num, channels = images_BCHW.shape[:2]
    light_BC = brightness[:, None].expand(num, channels)
    if channels not in {1, 3} and preset.brightness > 0:
        half = preset.brightness / 2
        own = draw.field(channels, low=1 - half, high=1 + half)
        light_BC = light_BC * torch.where(chosen[:, None], own, 1.0)
    if not bool(chosen.any()):
        return
    if any(amount > 0 for amount in amounts):
        _recolour(images_BCHW, light_BC, contrast, saturation)
    if exponent is not None:
        for row in chosen.nonzero()[:, 0].tolist():
            images_BCHW[row].pow_(float(exponent[row]))


def _recolour(
    images_BCHW: torch.Tensor,
    light_BC: torch.Tensor,
    contrast_B: torch.Tensor,
    saturation_B: torch.Tensor,
) -> None:
    """Multiply, stretch about the mean grey, and mix with grey; then clip to [0, 1]."""
    num, channels = images_BCHW.shape[:2]
    weights_C = torch.tensor(GREY) if channels == 3 else torch.full((channels,), 1 / channels)
    lit_BC = images_BCHW.mean(dim=(2, 3)).cpu() * light_BC
    mean_B1 = (lit_BC * weights_C).sum(dim=1, keepdim=True)
    gain_BC = light_BC * contrast_B[:, None]
    # Mixing with grey leaves an equal amount in all channels as it is.
    offset_B1 = mean_B1 * (1 - contrast_B)[:, None]
    flat = images_BCHW.view(num, channels, -1)
    if channels == 3:
        s = saturation_B[:, None, None]
        matrix = (s * torch.eye(3) + (1 - s) * weights_C) * gain_BC[:, None, :]
        offset = offset_B1[:, :, None].to(flat.device)
        flat.copy_(torch.baddbmm(offset, matrix.to(flat.device), flat))
    else:
        flat.mul_(gain_BC[:, :, None].to(flat.device)).add_(offset_B1[:, :, None].to(flat.device))
    flat.clamp_(0.0, 1.0)


def blur(preset: Preset, images_BCHW: torch.Tensor, draw: Draw) -> None:
    """Blur the images that it happens to."""
    chosen = draw.happens(preset.blur)
    sigma = draw.uniform(*preset.blur_sigma)[chosen]
    if not bool(chosen.any()):
        return
    rows = chosen.nonzero()[:, 0].to(images_BCHW.device)
    sigmas = sigma[:, None].expand(-1, 2).to(images_BCHW.device)
    # Reflection at the edges needs more pixels than the kernel reaches over.
    side = 3 if preset.blur_sigma[1] <= NARROW or min(images_BCHW.shape[-2:]) < 4 else 7
    images_BCHW[rows] = gaussian_blur2d(images_BCHW[rows], (side, side), sigmas)


def add_noise(preset: Preset, images_BCHW: torch.Tensor, draw: Draw) -> None:
    """Add Gaussian noise to the images that it happens to, and keep them in [0, 1].

    One field of noise serves the batch, moved round by other amounts in each image: drawing
    normal numbers for every pixel would cost more than all else together.
    """
    if preset.noise == 0:
        return
    chosen = draw.happens(preset.noisy)
    strength = draw.uniform(0.0, preset.noise)
    turns = draw.field(2, low=0.0, high=1.0)
    if not bool(chosen.any()):
        return
    channels, height, width = images_BCHW.shape[1:]
    field = draw.normal(channels, height, width).to(images_BCHW.device)
    for row in chosen.nonzero()[:, 0].tolist():
        down, right = int(turns[row, 0] * height), int(turns[row, 1] * width)
        noise = field.roll((down, right), (-2, -1))
        images_BCHW[row].add_(noise, alpha=float(strength[row])).clamp_(0.0, 1.0)
