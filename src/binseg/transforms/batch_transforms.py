"""Random changes of a batch on its device (motion, light, noise, blur), and named sets of them.

Changes of light work in place: the batch is the augmentation's own.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from binseg.config.recipe import AugmentConfig
from binseg.transforms.preprocess import LUMA

UPRIGHT_ANGLE = 20.0  # largest angle of images that have an up, in degrees
CHANCE = 0.5  # probability of a change that a recipe's own field asks for and the preset leaves off
_CHANCE_OF = {"rotate": "affine", "scale": "affine", "elastic": "affine", "gamma": "jitter",
              "noise": "noisy"}  # fmt: skip
_SHARES, _AMOUNTS = ("brightness", "contrast", "saturation"), ("gamma", "noise")
MAX_CONTEXT = 1.5
"""Patches are cut at most this much larger than they are used; beyond it they are mirrored."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Strengths of changes; `affine` is the chance of rotate..elastic, `jitter` that of light."""

    source: str  # origin of the preset, in a few words
    flip: float = 0.0
    flip_vertical: float = 0.0
    quarter_turn: float = 0.0
    affine: float = 0.0
    rotate: float = 0.0  # largest angle in degrees, either way
    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest factor: above 1 enlarges
    shift: float = 0.0  # largest shift as a share of the side
    elastic: float = 0.0  # largest displacement of a smooth deformation, as a share of the side
    crop_area: tuple[float, float] | None = None
    """A random crop of this share of the area (aspect 3:4 to 4:3), resized to the whole; always."""
    jitter: float = 0.0
    brightness: float = 0.0  # factor from 1 - this to 1 + this; likewise contrast and saturation
    contrast: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0  # exponent from 1 / (1 + this) to 1 + this
    invert: float = 0.0  # probability that light and dark change places
    grey: float = 0.0  # probability that colours are taken away
    noise: float = 0.0  # largest standard deviation of Gaussian noise; white is 1
    noisy: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 0.8)
    """In pixels; Albumentations takes 0.8 for a kernel of 3."""

    @property
    def context(self) -> float:
        """Factor by which an input must exceed the output, so that nothing need be mirrored."""
        if self.affine == 0:
            return 1.0
        angle = math.radians(min(self.rotate, 45.0))
        turned = (math.cos(angle) + math.sin(angle)) / min(1.0, self.scale[0])
        return min(MAX_CONTEXT, turned + 2 * self.shift + 2 * self.elastic)


PRESETS: dict[str, Preset] = {
    "none": Preset(source="no change"),
    "mild": Preset(
        source="report D's, with a little scale and shift",
        flip=0.5, affine=0.3, rotate=15.0, scale=(0.9, 1.1), shift=0.05,
        jitter=0.5, brightness=0.2, contrast=0.2, saturation=0.2,
    ),
    "medium": Preset(
        source="mild, with more of everything, for long runs of small networks",
        flip=0.5, affine=0.7, rotate=15.0, scale=(0.75, 1.35), shift=0.08,
        jitter=0.8, brightness=0.25, contrast=0.25, saturation=0.25,
    ),
    "strong": Preset(
        source="medium, with deformation, exposure, noise and blur, for few images",
        flip=0.5, affine=0.8, rotate=20.0, scale=(0.65, 1.5), shift=0.08, elastic=0.02,
        jitter=0.8, brightness=0.3, contrast=0.3, saturation=0.3, gamma=0.4,
        noise=0.05, noisy=0.25, blur=0.25, blur_sigma=(0.5, 1.2),
    ),
    "pet-plain": Preset(
        source="report A: flip, rotation, jitter, random resized crop, shift",
        flip=0.5, affine=1.0, rotate=20.0, shift=0.1, crop_area=(0.8, 1.0),
        jitter=1.0, brightness=0.2, contrast=0.2, saturation=0.2,
    ),
    "pet-augmented": Preset(
        source="report B: flips, quarter turns, shift-scale-rotate, brightness-contrast, blur",
        flip=0.5, flip_vertical=0.2, quarter_turn=0.3,
        affine=0.5, rotate=15.0, scale=(0.8, 1.2), shift=0.1,
        jitter=0.2, brightness=0.2, contrast=0.2, blur=0.3,
    ),
    "em": Preset(source="tutorial C: none; it only scales values to [0, 1]"),
    "pet-cosine": Preset(
        source="report D: flip, rotation, jitter",
        flip=0.5, affine=0.3, rotate=15.0,
        jitter=0.5, brightness=0.2, contrast=0.2, saturation=0.2,
    ),
}  # fmt: skip


def resolve_preset(config: AugmentConfig) -> Preset:
    """Give the preset of a recipe, with what the recipe changes in it.

    >>> resolve_preset(AugmentConfig(preset="none", orientation="any")).quarter_turn
    1.0
    """
    preset = PRESETS[config.preset]
    if config.orientation == "fixed":
        preset = replace(preset, flip=0.0, flip_vertical=0.0, quarter_turn=0.0)
    elif config.orientation == "upright":
        angle = min(preset.rotate, UPRIGHT_ANGLE)
        preset = replace(preset, flip=0.5, flip_vertical=0.0, quarter_turn=0.0, rotate=angle)
    elif config.orientation == "any":
        # With quarter turns, angles up to 45 degrees reach every direction alike.
        preset = replace(preset, flip=0.5, flip_vertical=0.5, quarter_turn=1.0, rotate=45.0)
    named = ("rotate", "elastic", "gamma", "invert", "grey", "noise", "blur")
    own: dict[str, Any] = {"scale": config.zoom, **{name: getattr(config, name) for name in named}}
    own = {name: value for name, value in own.items() if value is not None}
    for name in _CHANCE_OF.keys() & own.keys():
        own[_CHANCE_OF[name]] = getattr(preset, _CHANCE_OF[name]) or CHANCE
    preset = replace(preset, **own)
    amounts = {name: getattr(preset, name) * config.intensity for name in (*_SHARES, *_AMOUNTS)}
    return replace(preset, **amounts | {name: min(1.0, amounts[name]) for name in _SHARES})


ASPECTS = (3 / 4, 4 / 3)
"""Least and largest aspect of a random crop, as in torchvision's RandomResizedCrop."""
ELASTIC_KNOTS = 5
"""Points along a side that a deformation moves; in between it is smooth. With a tenth of the side,
the most a recipe may ask for, nothing folds."""
Size = tuple[int, int]
NARROW = 0.8  # largest sigma that a 3x3 kernel holds


class BatchRandom:
    """Random numbers on the CPU, for `num` images from `first` on of `total` of all processes."""

    def __init__(
        self, generator: torch.Generator, num: int, *, first: int = 0, total: int | None = None
    ) -> None:
        self._generator = generator
        self._total = num if total is None else total
        self._rows = slice(first, first + num)

    def uniform(self, low: float, high: float) -> Tensor:
        """One number in [low, high) for each image."""
        return self.field(low=low, high=high)

    def field(self, *shape: int, low: float, high: float) -> Tensor:
        """As many numbers in [low, high) as the shape asks, for each image."""
        of_all = torch.rand((self._total, *shape), generator=self._generator)
        return of_all[self._rows] * (high - low) + low

    def happens(self, probability: float) -> Tensor:
        """True for the images to which a thing of this probability happens."""
        return self.uniform(0.0, 1.0) < probability

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers that all images share."""
        return torch.randn(shape, generator=self._generator)


class _Mirror(NamedTuple):
    """A mirror image, then a turn: one of the eight ways to lay down a square."""

    right: bool
    down: bool
    quarters: int


def move(
    preset: Preset, images_BCHW: Tensor, targets_BHW: Tensor, random: BatchRandom, shape: Size
) -> tuple[Tensor, Tensor]:
    """Move images and targets alike, mirrored at the edges, to `shape` in their middle."""
    (num, channels), device = images_BCHW.shape[:2], images_BCHW.device
    chosen = random.happens(preset.affine)
    theta = _affine(preset, random, aspect=shape[1] / shape[0])
    if preset.crop_area is not None:
        theta = theta @ _crop(preset.crop_area, random, aspect=shape[1] / shape[0])
        chosen = torch.ones_like(chosen)
    knots = _knots(preset, random)
    mirrors = _mirrors(preset, random, is_square=shape[0] == shape[1])
    images = torch.empty((num, channels, *shape), dtype=torch.float32, device=device)
    targets = torch.empty((num, *shape), dtype=torch.uint8, device=device)
    for mirror in sorted({m for m, warped in zip(mirrors, chosen, strict=True) if not warped}):
        same = [i for i, m in enumerate(mirrors) if m == mirror and not chosen[i]]
        rows = torch.tensor(same, device=device)
        some, labels = (
            _mirrored(_middle(pixels, shape).index_select(0, rows), mirror)
            for pixels in (images_BCHW, targets_BHW)
        )
        images.index_copy_(0, rows, _unit(some.to(torch.float32), images_BCHW.dtype))
        targets.index_copy_(0, rows, labels)
    if bool(chosen.any()):
        turns = torch.stack([_matrix(mirror) for mirror in mirrors])
        grid = _grid((theta @ turns)[chosen].to(device), *shape)
        if knots is not None:
            grid += _bent(knots[chosen].to(device), *shape)
        height, width = images_BCHW.shape[-2:]
        grid *= grid.new_tensor([shape[1] / width, shape[0] / height])
        rows = chosen.nonzero()[:, 0].to(device)
        sample = partial(functional.grid_sample, padding_mode="reflection", align_corners=False)
        moved, relabelled = (
            sample(pixels.index_select(0, rows).float().contiguous(), grid, mode=mode)
            for pixels, mode in ((images_BCHW, "bilinear"), (targets_BHW[:, None], "nearest"))
        )
        images.index_copy_(0, rows, _unit(moved, images_BCHW.dtype))
        targets.index_copy_(0, rows, relabelled[:, 0].to(torch.uint8))
    return images, targets


def _unit(moved: Tensor, dtype: torch.dtype) -> Tensor:
    return moved.div_(255.0) if dtype == torch.uint8 else moved


def _middle(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    height, width = shape
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    return pixels[..., top : top + height, left : left + width]


def _mirrors(preset: Preset, random: BatchRandom, *, is_square: bool) -> list[_Mirror]:
    """Sample flips and quarter turns; images that aren't square turn by 0 or 180 degrees."""
    right, down = random.happens(preset.flip), random.happens(preset.flip_vertical)
    turned = random.happens(preset.quarter_turn)
    quarters = torch.where(turned, random.uniform(0.0, 4.0).long(), 0)
    if not is_square:
        quarters = quarters // 2 * 2
    choices = zip(right.tolist(), down.tolist(), quarters.tolist(), strict=True)
    return [_Mirror(*one) for one in choices]


def _mirrored(pixels: Tensor, mirror: _Mirror) -> Tensor:
    axes = [axis for axis, flipped in ((-1, mirror.right), (-2, mirror.down)) if flipped]
    pixels = pixels.flip(axes) if axes else pixels
    return torch.rot90(pixels, mirror.quarters, (-2, -1)) if mirror.quarters else pixels


def _matrix(mirror: _Mirror) -> Tensor:
    """Give a mirror as a map (3, 3) from output to input, in [-1, 1]."""
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    flip = torch.tensor([1.0 - 2 * mirror.right, 1.0 - 2 * mirror.down, 1.0]).diag()
    return torch.matmul(flip, torch.linalg.matrix_power(turn, mirror.quarters))


def _affine(preset: Preset, random: BatchRandom, *, aspect: float) -> Tensor:
    """Sample rotation, scale and shift as maps (B, 3, 3) from output to input, in [-1, 1]."""
    angle = torch.deg2rad(random.uniform(-preset.rotate, preset.rotate))
    zoom = random.uniform(*preset.scale)
    shift_x, shift_y = (random.uniform(-2 * preset.shift, 2 * preset.shift) for _ in "xy")
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, -sin / aspect, shift_x, sin * aspect, cos, shift_y, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _crop(area: tuple[float, float], random: BatchRandom, *, aspect: float) -> Tensor:
    """Sample crops as maps (B, 3, 3) from the whole output to a part of the input."""
    share = random.uniform(*area)
    shape = torch.exp(random.uniform(*(math.log(a) for a in ASPECTS))) / aspect
    across, down = (torch.sqrt(area).clamp(max=1.0) for area in (share * shape, share / shape))
    right = (1 - across) * random.uniform(-1.0, 1.0)
    below = (1 - down) * random.uniform(-1.0, 1.0)
    zero, one = torch.zeros_like(share), torch.ones_like(share)
    rows = [across, zero, right, zero, down, below, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _grid(theta: Tensor, height: int, width: int) -> Tensor:
    """Find each output pixel's source (n, height, width, 2); torch's `affine_grid`, but faster."""
    x = (torch.arange(width, device=theta.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=theta.device) * 2 + 1) / height - 1
    grid = torch.empty((len(theta), height, width, 2), device=theta.device)
    for axis in (0, 1):
        of_row = theta[:, axis, 1:2] * y + theta[:, axis, 2:3]
        of_column = theta[:, axis, 0:1] * x
        torch.add(of_row[:, :, None], of_column[:, None, :], out=grid[..., axis])
    return grid


def _knots(preset: Preset, random: BatchRandom) -> Tensor | None:
    """Sample how far the knots of a deformation move (B, 2, K, K), in [-1, 1] across the image."""
    if preset.elastic == 0:
        return None
    knots = random.field(2, ELASTIC_KNOTS, ELASTIC_KNOTS, low=-1.0, high=1.0)
    amount = random.uniform(0.0, 2 * preset.elastic)
    return knots * amount[:, None, None, None]


def _bent(knots: Tensor, height: int, width: int) -> Tensor:
    down, across = (_weights(length, knots.device) for length in (height, width))
    return (down @ knots @ across.T).permute(0, 2, 3, 1)


def _weights(length: int, device: torch.device) -> Tensor:
    """Weigh the knots for each pixel (length, K); the shares of a pixel add up to 1."""
    places = torch.linspace(0, ELASTIC_KNOTS - 1, length, device=device)
    away = (places[:, None] - torch.arange(ELASTIC_KNOTS, device=device)).abs().clamp(max=1.0)
    return (torch.cos(math.pi * away) + 1) / 2


def jitter(preset: Preset, images_BCHW: Tensor, random: BatchRandom) -> None:
    """Change brightness (other channels also singly), contrast, saturation, gamma, where chosen."""
    chosen = random.happens(preset.jitter)
    amounts = (preset.brightness, preset.contrast, preset.saturation)
    brightness, contrast, saturation = (
        torch.where(chosen, random.uniform(1 - a, 1 + a), 1.0) for a in amounts
    )
    limit = math.log1p(preset.gamma)
    exponent = torch.exp(random.uniform(-limit, limit)) if limit > 0 else None
    num, channels = images_BCHW.shape[:2]
    light_BC = brightness[:, None].expand(num, channels)
    if channels not in {1, 3} and preset.brightness > 0:
        half = preset.brightness / 2
        own = random.field(channels, low=1 - half, high=1 + half)
        light_BC = light_BC * torch.where(chosen[:, None], own, 1.0)
    if not bool(chosen.any()):
        return
    if any(amount > 0 for amount in amounts):
        _recolour(images_BCHW, light_BC, contrast, saturation)
    if exponent is not None:
        for row in chosen.nonzero()[:, 0].tolist():
            images_BCHW[row].pow_(float(exponent[row]))


def _recolour(
    images_BCHW: Tensor, light_BC: Tensor, contrast_B: Tensor, saturation_B: Tensor
) -> None:
    """Multiply, stretch about the mean grey, and mix with grey; then clip to [0, 1]."""
    num, channels = images_BCHW.shape[:2]
    weights_C = torch.tensor(LUMA) if channels == 3 else torch.full((channels,), 1 / channels)
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


def grey(preset: Preset, images_BCHW: Tensor, random: BatchRandom) -> None:
    """Take the colours away from the images that it happens to."""
    if preset.grey == 0 or images_BCHW.shape[1] != 3:
        return
    weights_C11 = torch.tensor(LUMA, device=images_BCHW.device)[:, None, None]
    for row in random.happens(preset.grey).nonzero()[:, 0].tolist():
        images_BCHW[row] = (images_BCHW[row] * weights_C11).sum(dim=0)


def invert(preset: Preset, images_BCHW: Tensor, random: BatchRandom) -> None:
    """Turn light into dark and dark into light in the images that it happens to."""
    if preset.invert == 0:
        return
    for row in random.happens(preset.invert).nonzero()[:, 0].tolist():
        images_BCHW[row].neg_().add_(1.0)


def blur(preset: Preset, images_BCHW: Tensor, random: BatchRandom) -> None:
    """Blur the images that it happens to."""
    chosen = random.happens(preset.blur)
    sigma = random.uniform(*preset.blur_sigma)[chosen]
    if not bool(chosen.any()):
        return
    rows = chosen.nonzero()[:, 0].to(images_BCHW.device)
    # Reflection at the edges needs more pixels than the kernel reaches over.
    side = 3 if preset.blur_sigma[1] <= NARROW or min(images_BCHW.shape[-2:]) < 4 else 7
    away = torch.arange(side) - side // 2
    kernel_BK = torch.exp(-(away**2) / (2 * sigma[:, None] ** 2))
    kernel_BK = (kernel_BK / kernel_BK.sum(dim=1, keepdim=True)).to(images_BCHW.device)
    # A depthwise convolution whose channels are those of all images, down and then across.
    num, channels, reach = len(rows), images_BCHW.shape[1], side // 2
    kernel = kernel_BK.repeat_interleave(channels, dim=0)[:, None, :, None]
    planes = images_BCHW[rows].flatten(0, 1)[None]
    planes = functional.pad(planes, (reach,) * 4, mode="reflect")
    planes = functional.conv2d(planes, kernel, groups=num * channels)
    planes = functional.conv2d(planes, kernel.mT, groups=num * channels)
    images_BCHW[rows] = planes.view(num, channels, *images_BCHW.shape[-2:])


def add_noise(preset: Preset, images_BCHW: Tensor, random: BatchRandom) -> None:
    """Add noise, one field of the batch moved round in each image, and keep them in [0, 1]."""
    if preset.noise == 0:
        return
    chosen = random.happens(preset.noisy)
    strength = random.uniform(0.0, preset.noise)
    turns = random.field(2, low=0.0, high=1.0)
    if not bool(chosen.any()):
        return
    channels, height, width = images_BCHW.shape[1:]
    field = random.normal(channels, height, width).to(images_BCHW.device)
    for row in chosen.nonzero()[:, 0].tolist():
        down, right = int(turns[row, 0] * height), int(turns[row, 1] * width)
        noise = field.roll((down, right), (-2, -1))
        images_BCHW[row].add_(noise, alpha=float(strength[row])).clamp_(0.0, 1.0)
