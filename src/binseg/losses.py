"""The losses on logits that training minimises, by name, alike in what they take and promise.

Every loss takes `logits_B1HW`, `target_B1HW` (0 or 1) and `valid_B1HW`, computes in float32
whatever the logits are, and gives one finite number. Ignored pixels (valid False) have no weight
and no gradient: whatever stands there, even nan, changes nothing. "Per image" losses are averaged
over the images that have a valid pixel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from binseg.config.named_models import OptionRule
from binseg.errors import UsageError, suggest


class BatchCounts(NamedTuple):
    """Divisors of a batch's sums; of ranks that share one, its counts over the number of ranks."""

    pixels: Float[Tensor, ""]  # valid pixels, at least 1
    images: Float[Tensor, ""]  # images that have a valid pixel, at least 1

    @classmethod
    def of(
        cls,
        valid_B1HW: Bool[Tensor, "B 1 H W"],
        *,
        world_size: int = 1,
        add: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> "BatchCounts":
        """Count a batch, or one that ranks share; `add` sums a tensor over the ranks."""
        valid_BN = valid_B1HW.flatten(1)
        own = torch.stack([valid_BN.sum(), valid_BN.any(dim=1).sum()]).float()
        pixels, images = (add(own).clamp(min=1) / world_size).unbind()
        return cls(pixels, images)


@runtime_checkable
class Loss(Protocol):
    """A number to minimise."""

    def __call__(
        self,
        logits_B1HW: Float[Tensor, "B 1 H W"],
        target_B1HW: Float[Tensor, "B 1 H W"],
        valid_B1HW: Bool[Tensor, "B 1 H W"],
        counts: BatchCounts | None = None,
    ) -> Float[Tensor, ""]:
        """Compare logits with valid truth, a scalar; `counts` where they are a part of a batch."""


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """One batch with its ignored pixels made harmless: logits and target are 0 there."""

    logits_BN: Float[Tensor, "B N"]
    target_B1HW: Float[Tensor, "B 1 H W"]
    valid_B1HW: Bool[Tensor, "B 1 H W"]
    counts: BatchCounts

    @property
    def target_BN(self) -> Float[Tensor, "B N"]:
        return self.target_B1HW.flatten(1)

    @cached_property
    def weight_BN(self) -> Float[Tensor, "B N"]:
        return self.valid_B1HW.float().flatten(1)

    @property
    def probability_BN(self) -> Float[Tensor, "B N"]:
        return self.logits_BN.sigmoid() * self.weight_BN

    def mean_over_pixels(self, values_BN: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
        return (values_BN * self.weight_BN).sum() / self.counts.pixels

    def mean_over_images(self, values_B: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        seen_B = self.weight_BN.amax(dim=1)
        return (values_B * seen_B).sum() / self.counts.images


_cross_entropy = partial(functional.binary_cross_entropy_with_logits, reduction="none")


def _bce(pixels: _Pixels, *, foreground_weight: float = 1.0) -> Tensor:
    bce_BN = _cross_entropy(pixels.logits_BN, pixels.target_BN)
    return pixels.mean_over_pixels(bce_BN * (1 + (foreground_weight - 1) * pixels.target_BN))


def _dice(pixels: _Pixels, *, smooth: float) -> Tensor:
    probability_BN = pixels.probability_BN
    overlap_B = (probability_BN * pixels.target_BN).sum(dim=1)
    areas_B = (probability_BN + pixels.target_BN).sum(dim=1)
    return pixels.mean_over_images(1 - (2 * overlap_B + smooth) / (areas_B + smooth))


def _bce_dice(pixels: _Pixels, *, bce_weight: float, dice_weight: float, smooth: float) -> Tensor:
    return bce_weight * _bce(pixels) + dice_weight * _dice(pixels, smooth=smooth)


def _tversky(pixels: _Pixels, *, alpha: float, beta: float, smooth: float) -> Tensor:
    probability_BN = pixels.probability_BN
    hit_B = (probability_BN * pixels.target_BN).sum(dim=1)
    extra_B = probability_BN.sum(dim=1) - hit_B
    missed_B = pixels.target_BN.sum(dim=1) - hit_B
    index_B = (hit_B + smooth) / (hit_B + alpha * extra_B + beta * missed_B + smooth)
    return pixels.mean_over_images(1 - index_B)


def _focal(pixels: _Pixels, *, alpha: float, gamma: float) -> Tensor:
    signed_BN = pixels.logits_BN * (2 * pixels.target_BN - 1)  # above 0 where it is right
    # (1 - p)^gamma through its logarithm: a power of 0 has no finite gradient for gamma below 1.
    doubt_BN = (gamma * functional.logsigmoid(-signed_BN)).exp()
    side_BN = alpha * pixels.target_BN + (1 - alpha) * (1 - pixels.target_BN)
    return pixels.mean_over_pixels(-side_BN * doubt_BN * functional.logsigmoid(signed_BN))


def _lovasz(pixels: _Pixels) -> Tensor:
    errors_BN = 1 - pixels.logits_BN * (2 * pixels.target_BN - 1)
    # Ignored pixels get an error below 0: they sort behind all that count, and weigh nothing.
    errors_BN = errors_BN.masked_fill(pixels.weight_BN == 0, -1.0)
    errors_BN, order_BN = errors_BN.sort(dim=1, descending=True)
    with torch.no_grad():
        truth_BN = pixels.target_BN.gather(1, order_BN)
        area_B1 = truth_BN.sum(dim=1, keepdim=True)
        intersection_BN = area_B1 - truth_BN.cumsum(dim=1)
        union_BN = area_B1 + (1 - truth_BN).cumsum(dim=1)
        loss_BN = 1 - intersection_BN / union_BN  # Jaccard loss if the first k were all wrong
        steps_BN = loss_BN.diff(dim=1, prepend=torch.zeros_like(area_B1))
    return pixels.mean_over_images((errors_BN.relu() * steps_BN).sum(dim=1))


def _boundary(pixels: _Pixels, *, width: float, border_weight: float, smooth: float) -> Tensor:
    border_BN = _border_band(pixels, int(width)).flatten(1)
    weight_BN = (1 + border_weight * border_BN) * pixels.weight_BN
    bce_BN = _cross_entropy(pixels.logits_BN, pixels.target_BN)
    bce_B = (bce_BN * weight_BN).sum(dim=1) / weight_BN.sum(dim=1).clamp(min=1)
    probability_BN = pixels.probability_BN
    overlap_B = (weight_BN * probability_BN * pixels.target_BN).sum(dim=1)
    areas_B = (weight_BN * (probability_BN + pixels.target_BN)).sum(dim=1)
    dice_B = 1 - (2 * overlap_B + smooth) / (areas_B + smooth)
    return pixels.mean_over_images(bce_B + dice_B)


@torch.no_grad()
def _border_band(pixels: _Pixels, width: int) -> Tensor:
    near = partial(functional.max_pool2d, kernel_size=2 * width + 1, stride=1, padding=width)
    is_foreground_B1HW = pixels.target_B1HW > 0.5
    foreground_B1HW = (pixels.valid_B1HW & is_foreground_B1HW).float()
    background_B1HW = (pixels.valid_B1HW & ~is_foreground_B1HW).float()
    band_B1HW: Tensor = near(foreground_B1HW) * near(background_B1HW)
    return band_B1HW


def _compute(
    function: Callable[[_Pixels], Tensor],
    logits_B1HW: Tensor,
    target_B1HW: Tensor,
    valid_B1HW: Tensor,
    counts: BatchCounts | None = None,
) -> Tensor:
    assert logits_B1HW.ndim == 4, "logits are batch x 1 x height x width"
    assert logits_B1HW.shape == target_B1HW.shape == valid_B1HW.shape, "tensors are of one size"
    assert valid_B1HW.dtype == torch.bool, "valid is bool"
    # Filled, not multiplied: 0 x nan is nan, and its gradient too.
    given = (logits_B1HW, target_B1HW)
    logits, target = (one.float().masked_fill(~valid_B1HW, 0.0) for one in given)
    counts = counts or BatchCounts.of(valid_B1HW)
    return function(
        _Pixels(
            logits_BN=logits.flatten(1), target_B1HW=target, valid_B1HW=valid_B1HW, counts=counts
        )
    )


class Knob(NamedTuple):
    """One option of a loss."""

    default: float
    rule: OptionRule


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """One row of `LOSSES`: what a loss is, where it comes from, and how it is built."""

    summary: str
    source: str
    function: Callable[..., Tensor]
    knobs: Mapping[str, Knob] = field(default_factory=dict)

    @property
    def defaults(self) -> Mapping[str, float]:
        """Every option with its default."""
        return {name: knob.default for name, knob in self.knobs.items()}


_SMOOTH = Knob(1.0, OptionRule(
    float, "added above and below the fraction, in pixels; keeps empty masks finite", low=1e-6
))  # fmt: skip

LOSSES: Mapping[str, LossEntry] = MappingProxyType({
    "bce": LossEntry(summary="binary cross-entropy, averaged over all valid pixels",
        source="reports A, C and D", function=_bce,
        knobs={
            "foreground_weight": Knob(1.0, OptionRule(
                float, "weight of foreground pixels; above 1 finds more and errs more"))}),
    "dice": LossEntry(summary="1 - soft Dice, per image",
        source="Milletari et al., V-Net (3DV 2016); report A's smooth 1", function=_dice,
        knobs={"smooth": _SMOOTH}),
    "bce-dice": LossEntry(
        summary="bce + dice: steady gradients of the one, the other's eye for small objects",
        source="reports A and B", function=_bce_dice,
        knobs={
            "bce_weight": Knob(1.0, OptionRule(float, "what bce is multiplied with")),
            "dice_weight": Knob(1.0, OptionRule(float, "what dice is multiplied with")),
            "smooth": _SMOOTH}),
    "jaccard": LossEntry(summary="1 - soft IoU, per image",
        source="Rahman & Wang, Optimizing Intersection-Over-Union (ISVC 2016)",
        function=partial(_tversky, alpha=1.0, beta=1.0), knobs={"smooth": _SMOOTH}),
    "lovasz": LossEntry(summary="Lovasz hinge: a convex stand-in for IoU itself, per image",
        source="Berman, Rannen Triki & Blaschko, The Lovasz-Softmax loss (CVPR 2018), section "
        "3.1", function=_lovasz),
    "focal": LossEntry(
        summary="cross-entropy that fades for pixels already right, over all valid pixels",
        source="Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), equation 5",
        function=_focal,
        knobs={
            "alpha": Knob(0.25, OptionRule(
                float, "weight of foreground; background has 1 - alpha", high=1.0)),
            "gamma": Knob(2.0, OptionRule(
                float, "how fast easy pixels fade; 0 is weighted bce"))}),
    "tversky": LossEntry(
        summary="Dice with its own weight for extra and for missed pixels, per image",
        source="Salehi, Erdogmus & Gholipour, Tversky loss function (MLMI 2017)", function=_tversky,
        knobs={
            "alpha": Knob(0.3, OptionRule(float, "weight of extra pixels (false positives)")),
            "beta": Knob(0.7, OptionRule(float, "weight of missed pixels (false negatives)")),
            "smooth": _SMOOTH}),
    "boundary": LossEntry(
        summary="bce + dice with extra weight along the object's border, per image",
        source="border weights: Ronneberger, Fischer & Brox, U-Net (MICCAI 2015), equation 2; "
        "weighted cross-entropy plus weighted overlap: Wei, Wang & Huang, F3Net (AAAI 2020); "
        "border by max-pooling: Bokhovkin & Burnaev, Boundary Loss (ISNN 2019)", function=_boundary,
        knobs={
            "width": Knob(3.0, OptionRule(
                int, "pixels on either side of the border that weigh more", low=1, high=64)),
            "border_weight": Knob(5.0, OptionRule(
                float, "weight of border pixels beyond the 1 of all others")),
            "smooth": _SMOOTH}),
})  # fmt: skip
"""Every loss by the name it has in recipes."""


def build_loss(name: str, options: Mapping[str, float] | None = None) -> Loss:
    """Build a loss by its name in `LOSSES`, with changes to its own defaults; UsageError.

    >>> loss = build_loss("dice", {"smooth": 1e-6})
    >>> target = torch.tensor([[[[1.0, 0.0]]]])
    >>> loss(100 * (2 * target - 1), target, torch.ones_like(target, dtype=torch.bool)).item()
    0.0
    """
    if name not in LOSSES:
        raise UsageError(f"unknown loss {name!r}; {suggest(name, LOSSES)}")
    entry = LOSSES[name]
    for option in options or ():
        if option not in entry.knobs:
            known = suggest(option, entry.knobs) if entry.knobs else "it has none"
            raise UsageError(f"loss {name} has no option {option!r}; {known}")
    given: dict[str, object] = {**entry.defaults, **(options or {})}
    checked: dict[str, float] = {}
    for option, value in given.items():
        rule = entry.knobs[option].rule
        if isinstance(value, float) and value.is_integer():  # as recipes have all numbers
            value = int(value)  # noqa: PLW2901
        if not rule.takes(value):
            raise UsageError(f"loss {name}: {option} is {value!r}; it takes {rule.accepted()}")
        assert isinstance(value, int | float)
        checked[option] = float(value)
    return partial(_compute, partial(entry.function, **checked))
