"""Changes of what pixels are worth."""

from typing import Any

import numpy as np
import pytest
import torch
from kornia.augmentation import ColorJitter
from kornia.filters import gaussian_blur2d
from scipy import ndimage

from binseg.config.recipe import AugmentConfig
from binseg.transforms.augmentation import PresetAugment
from binseg.transforms.batch_transforms import Preset, resolve_preset

NOW = {"seed": 0, "epoch": 1, "step": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def change(images: torch.Tensor, **changes: Any) -> torch.Tensor:
    targets = torch.zeros((len(images), *images.shape[-2:]), dtype=torch.uint8)
    augment = PresetAugment(preset=Preset(source="test", **changes))
    return augment(images, targets, **NOW)[0]


def test_all_linear_changes_at_once_are_kornias() -> None:
    """One matrix an image gives what brightness, contrast and saturation give in turn."""
    images = 0.4 + 0.2 * torch.rand(1, 3, 16, 16)  # far from 0 and 1, where Kornia clips between
    moved = change(images, jitter=1.0, brightness=0.1, contrast=0.1, saturation=0.1)
    best = 1.0
    steps = np.linspace(0.9, 1.1, 9)
    for brightness in steps:
        for contrast in steps:
            for saturation in steps[::2]:
                pairs = [(float(x), float(x)) for x in (brightness, contrast, saturation)]
                lit = images
                for index in range(3):
                    only: list[Any] = [0.0, 0.0, 0.0]
                    only[index] = pairs[index]
                    lit = _kornia(only, lit)
                best = min(best, float((moved - lit).abs().max()))
    assert best < 0.02


def _kornia(amounts: list[Any], images: torch.Tensor) -> torch.Tensor:
    brightness, contrast, saturation = (one[0] if one else None for one in amounts)
    lit: torch.Tensor = images
    if brightness is not None:
        lit = images * brightness
    elif contrast is not None:
        grey = images.mean(dim=(2, 3)) @ torch.tensor([0.299, 0.587, 0.114])
        lit = images * contrast + grey[:, None, None, None] * (1 - contrast)
    else:
        lit = ColorJitter(0.0, 0.0, (saturation, saturation), p=1.0)(images)
    return lit


def test_gamma_keeps_black_white_and_order() -> None:
    """Exponents lie between 1 / (1 + g) and 1 + g, so 0 and 1 stay and nothing overtakes."""
    ramp = torch.linspace(0, 1, 50)[None, None, None].expand(64, 1, 1, 50)
    moved = change(ramp, jitter=1.0, gamma=0.5)
    assert (moved[..., 0] == 0).all()
    assert (moved[..., -1] == 1).all()
    assert (moved.diff(dim=-1) > 0).all()
    exponents = torch.log(moved[:, 0, 0, 25]) / torch.log(ramp[:, 0, 0, 25])
    assert 1 / 1.5 - 1e-3 < exponents.min() < 0.8
    assert 1.25 < exponents.max() < 1.5 + 1e-3


def test_noise_is_gaussian_and_another_in_each_image() -> None:
    """Its mean is 0, its deviation below what was asked, its shape independent of the image."""
    images = torch.full((8, 2, 64, 64), 0.5)
    noise = change(images, noisy=1.0, noise=0.1) - 0.5
    assert noise.mean().abs() < 0.005
    deviations = noise.flatten(1).std(dim=1)
    assert deviations.max() < 0.105
    assert deviations.max() > 1.5 * deviations.min()
    flat = (noise / deviations[:, None, None, None]).flatten(1)
    alike = torch.corrcoef(flat) - torch.eye(8)
    assert alike.abs().max() < 0.1
    assert torch.equal(change(images, noisy=0.0, noise=0.1), images)


def test_values_stay_in_range() -> None:
    """The strongest changes together never leave [0, 1]."""
    for channels in (1, 2, 3, 5):
        images = torch.rand(16, channels, 16, 16)
        moved = change(
            images, jitter=1.0, brightness=1.0, contrast=1.0, saturation=1.0, gamma=2.0,
            noisy=1.0, noise=0.5, blur=1.0, blur_sigma=(0.5, 1.5),
        )  # fmt: skip
        assert moved.isfinite().all()
        assert moved.min() >= 0
        assert moved.max() <= 1 + 1e-6


def test_channels_that_are_no_colours_change_apart() -> None:
    """Of five channels each gets its own brightness; grey repeated in RGB stays grey."""
    five = change(torch.full((8, 5, 4, 4), 0.5), jitter=1.0, brightness=0.4)
    assert (five.mean(dim=(2, 3)).std(dim=1) > 0.005).all()
    grey = change(
        torch.rand(8, 1, 4, 4).expand(8, 3, 4, 4), jitter=1.0, brightness=0.4, saturation=0.5
    )
    assert (grey - grey[:, :1]).abs().max() < 1e-5


def test_inverted_images_are_their_negatives_and_masks_stay() -> None:
    """About half of them at 0.5; none, and no other random number, where nothing asks for it."""
    images = torch.rand(64, 3, 8, 8)
    targets = torch.randint(0, 2, (64, 8, 8), dtype=torch.uint8)
    augment = PresetAugment(preset=Preset(source="test", invert=0.5))
    moved, relabelled = augment(images, targets, **NOW)
    is_negative = (moved - (1 - images)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert torch.equal(moved[~is_negative], images[~is_negative])
    assert 20 < int(is_negative.sum()) < 44
    assert torch.equal(relabelled, targets)
    noisy = {"noisy": 1.0, "noise": 0.1}
    assert torch.equal(change(images, invert=0.0, **noisy), change(images, **noisy))
    assert resolve_preset(AugmentConfig(preset="strong")).invert == 0
    assert resolve_preset(AugmentConfig(preset="strong", invert=0.25)).invert == 0.25


def test_colours_go_by_their_lightness() -> None:
    """The weights of ITU-R BT.601, in about half of the images at 0.5; grey images stay."""
    images = torch.rand(64, 3, 8, 8)
    moved = change(images, grey=0.5)
    light = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    is_grey = (moved - light).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert torch.equal(moved[~is_grey], images[~is_grey])
    assert 20 < int(is_grey.sum()) < 44
    assert torch.equal(change(images[:, :1], grey=1.0), images[:, :1])
    assert resolve_preset(AugmentConfig(preset="strong", grey=0.3)).grey == 0.3


def test_a_wide_blur_is_scipys() -> None:
    """A sigma above 0.8 takes a kernel that holds it."""
    images = torch.rand(1, 1, 24, 24)
    moved = change(images, blur=1.0, blur_sigma=(1.2, 1.2))
    expected = ndimage.gaussian_filter(images[0, 0].numpy(), 1.2, mode="mirror", radius=3)
    assert np.abs(moved[0, 0].numpy() - expected).max() < 1e-4


def test_blur_is_kornias() -> None:
    """Several images of several channels, one sigma: the depthwise convolution is Kornia's."""
    images = torch.rand(3, 4, 20, 31)
    sigmas = torch.full((3, 2), 0.7)
    moved = change(images, blur=1.0, blur_sigma=(0.7, 0.7))
    assert torch.allclose(moved, gaussian_blur2d(images, (3, 3), sigmas), atol=1e-6)
