"""Motion of patches: surroundings, bytes, mirrors within a resampling, deformation."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from binseg.transforms.augmentation import PresetAugment
from binseg.transforms.batch_transforms import (
    BatchRandom,
    Preset,
    _bent,
    _grid,
    _knots,
    _matrix,
    _Mirror,
    _mirrored,
    move,
)

NOW = {"seed": 0, "epoch": 1, "step": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def smooth(num: int, size: int, *, channels: int = 1) -> torch.Tensor:
    """Bytes of gentle noise, another one in each image."""
    noise = np.random.default_rng(0).normal(size=(num, channels, size, size))
    soft = ndimage.gaussian_filter(noise, (0, 0, 4, 4), mode="wrap")
    return torch.from_numpy((128 + 400 * soft).clip(0, 255).astype(np.uint8))


def always(**changes: Any) -> PresetAugment:
    return PresetAugment(preset=Preset(source="test", **changes))


def test_surroundings_are_used_instead_of_mirrors() -> None:
    """Turned with its surroundings, a patch is the middle of the larger image turned."""
    images = smooth(6, 96)
    targets = (images[:, 0] > 128).to(torch.uint8)
    apply = always(affine=1.0, rotate=45.0)
    assert apply.context == pytest.approx(np.sqrt(2))
    whole, whole_targets = apply(images, targets, **NOW)
    moved, labels = apply(images, targets, size=64, **NOW)
    assert moved.shape == (6, 1, 64, 64)
    middle = (slice(None), slice(None), slice(16, 80), slice(16, 80))
    assert (moved - whole[middle]).abs().max() < 1e-4
    assert (labels != whole_targets[:, 16:80, 16:80]).float().mean() < 0.001


def test_without_motion_the_middle_is_cut() -> None:
    """A patch to which nothing happens is the middle of what was cut, as floats in [0, 1]."""
    images = smooth(3, 20, channels=5)
    targets = images[:, 0] % 3
    moved, labels = always()(images, targets, size=14, **NOW)
    assert torch.equal(moved, images[:, :, 3:17, 3:17].float() / 255)
    assert torch.equal(labels, targets[:, 3:17, 3:17])


def test_bytes_and_floats_give_the_same() -> None:
    """Bytes are divided by 255 on the way; arguments stay as they are."""
    images = smooth(4, 24, channels=3)
    before = images.clone()
    targets = images[:, 0] % 3
    apply = always(affine=0.5, rotate=30.0, flip=0.5, quarter_turn=1.0, jitter=1.0, contrast=0.4)
    from_bytes = apply(images, targets, **NOW)
    floats = images.float() / 255
    from_floats = apply(floats, targets, **NOW)
    assert (from_bytes[0] - from_floats[0]).abs().max() < 1e-6
    assert torch.equal(from_bytes[1], from_floats[1])
    assert torch.equal(images, before)
    assert torch.equal(floats, before.float() / 255)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_mirror_is_the_same_by_map_and_by_pixels(right: bool, down: bool, quarters: int) -> None:
    """Resampling by a mirror's map gives the very pixels that flips and quarter turns give."""
    mirror = _Mirror(right, down, quarters)
    image = torch.rand(1, 2, 9, 9)
    grid = _grid(_matrix(mirror)[None], 9, 9)
    sampled = torch.nn.functional.grid_sample(
        image, grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    assert torch.equal(sampled, _mirrored(image, mirror))


def test_the_grid_is_torchs() -> None:
    """Places equal `affine_grid`'s."""
    theta = torch.rand(3, 3, 3)
    theta[:, 2] = torch.tensor([0.0, 0.0, 1.0])
    expected = torch.nn.functional.affine_grid(theta[:, :2], [3, 1, 7, 12], align_corners=False)
    assert (_grid(theta, 7, 12) - expected).abs().max() < 1e-6


def test_deformations_are_smooth_and_never_fold() -> None:
    """Even the strongest one keeps neighbours in their order, and moves no pixel further."""
    preset = Preset(source="", affine=1.0, elastic=0.1)
    knots = _knots(preset, BatchRandom(torch.Generator().manual_seed(0), 50))
    assert knots is not None
    bent = _bent(knots, 64, 48)
    assert bent.shape == (50, 64, 48, 2)
    assert bent.abs().max() <= 0.2
    across = torch.linspace(-1, 1, 48) + bent[..., 0]
    down = torch.linspace(-1, 1, 64)[:, None] + bent[..., 1]
    assert (across.diff(dim=2) > 0).all()
    assert (down.diff(dim=1) > 0).all()
    assert bent.diff(n=2, dim=2).abs().max() < 0.02


def test_a_deformation_moves_image_and_target_alike() -> None:
    """Where the target isn't at an edge, the image still shows it."""
    targets = (smooth(8, 64)[:, 0] > 128).to(torch.uint8)
    images = targets[:, None] * 255
    preset = Preset(source="", affine=1.0, elastic=0.05)
    random = BatchRandom(torch.Generator().manual_seed(0), 8)
    moved, labels = move(preset, images, targets, random, (64, 64))
    assert (labels != targets).float().mean() > 0.02
    assert ((moved[:, 0] > 0.5) != (labels == 1)).float().mean() < 0.01
