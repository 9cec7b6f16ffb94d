"""Losses: cases by hand, the answers of other libraries, and ignored pixels that change nothing."""

import math
import pickle
from collections.abc import Callable

import kornia.losses
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from binseg.errors import UsageError
from binseg.losses import LOSSES, build_loss

ALL = sorted(LOSSES)


def batch(seed: int = 0, *, size: tuple[int, ...] = (3, 1, 9, 11)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator) * 3
    target = (torch.rand(size, generator=generator) > 0.6).float()
    return logits, target, torch.rand(size, generator=generator) > 0.25


def all_valid(target: Tensor) -> Tensor:
    return torch.ones_like(target, dtype=torch.bool)


def two_pixels(*logits: float) -> tuple[Tensor, Tensor, Tensor]:
    """One image of 1 x n pixels, of which the first is foreground."""
    logits_B1HW = torch.tensor(logits).reshape(1, 1, 1, -1)
    target = torch.zeros_like(logits_B1HW)
    target[..., 0] = 1
    return logits_B1HW, target, all_valid(target)


# --- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # Two pixels with logit 0 (probability 1/2), one of them foreground.
        ("bce", {}, math.log(2)),
        ("bce", {"foreground_weight": 3.0}, 2 * math.log(2)),
        ("dice", {"smooth": 1.0}, 1 - (2 * 0.5 + 1) / (1 + 1 + 1)),
        ("bce-dice", {"smooth": 1.0}, math.log(2) + 1 / 3),
        ("bce-dice", {"bce_weight": 0.5, "dice_weight": 3.0}, 0.5 * math.log(2) + 1),
        ("jaccard", {"smooth": 1.0}, 1 - (0.5 + 1) / (1.5 + 1)),
        # Both errors are 1 = 1 - 0; the first in order takes the whole step of the Jaccard loss
        # from 0 to 1 if it is the foreground's, else 1/2 and then 1/2: the sum is 1 either way.
        ("lovasz", {}, 1.0),
        ("focal", {"alpha": 0.25, "gamma": 2.0}, 0.25 * math.log(2) * (0.25 + 0.75) / 2),
        # hit 0.5, extra 0.5, missed 0.5
        ("tversky", {"alpha": 0.2, "beta": 0.6, "smooth": 1.0}, 1 - 1.5 / (0.5 + 0.1 + 0.3 + 1)),
        # Every pixel of so small an image is at the border: the weight 2 cancels in the mean, and
        # doubles overlap and areas in the Dice.
        ("boundary", {"border_weight": 1.0}, math.log(2) + 1 - (2 * 1 + 1) / (2 * 2 + 1)),
    ],
)
def test_loss_of_two_undecided_pixels(
    name: str, options: dict[str, float], expected: float
) -> None:
    """Each loss gives the number that pen and paper give."""
    loss = build_loss(name, options)
    assert loss(*two_pixels(0.0, 0.0)).item() == pytest.approx(expected, rel=1e-6)


def test_lovasz_by_hand() -> None:
    """Errors 1.5 (foreground) and 0.5 (background) weigh with the Jaccard steps 1 and 0."""
    assert build_loss("lovasz")(*two_pixels(-0.5, -0.5)).item() == pytest.approx(1.5)


def test_boundary_weighs_the_band_alone() -> None:
    """Pixels within `width` of both sides weigh 1 + border_weight, the others 1."""
    logits, target, valid = two_pixels(*[0.0] * 7)
    target[..., :4] = 1
    logits[..., 3] = 5.0  # near the border: columns 2..5 for width 2
    loss = build_loss("boundary", {"width": 2, "border_weight": 5.0, "smooth": 1.0})
    weight = torch.tensor([1.0, 1, 6, 6, 6, 6, 1])
    bce = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten()
    probability, truth = logits.sigmoid().flatten(), target.flatten()
    overlap = (weight * probability * truth).sum()
    areas = (weight * (probability + truth)).sum()
    expected = (weight * bce).sum() / weight.sum() + 1 - (2 * overlap + 1) / (areas + 1)
    # Columns 2 and 5 lie two pixels from the other side, so they are in the band as well.
    assert loss(logits, target, valid).item() == pytest.approx(expected.item(), rel=1e-6)


# --- other libraries ----------------------------------------------------------------------------


def two_classes(logits: Tensor) -> Tensor:
    """Logits whose softmax over two classes is the sigmoid of ours."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def as_classes(target: Tensor) -> Tensor:
    return target[:, 0].long()


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_bce_is_torchs(weight: float) -> None:
    """BCE is torch's, ignored pixels taken out, with its weight for foreground."""
    logits, target, valid = batch()
    expected = functional.binary_cross_entropy_with_logits(
        logits[valid], target[valid], pos_weight=torch.tensor(weight)
    )
    loss = build_loss("bce", {"foreground_weight": weight})
    torch.testing.assert_close(loss(logits, target, valid), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_kornias(gamma: float) -> None:
    """Focal loss is Kornia's, averaged over valid pixels."""
    logits, target, valid = batch()
    expected = kornia.losses.binary_focal_loss_with_logits(
        logits, target, alpha=0.3, gamma=gamma, reduction="none"
    )[valid].mean()
    loss = build_loss("focal", {"alpha": 0.3, "gamma": gamma})
    torch.testing.assert_close(loss(logits, target, valid), expected)


def test_lovasz_is_kornias() -> None:
    """The Lovasz hinge is Kornia's, which is the paper's per image."""
    logits, target, _ = batch()
    expected = kornia.losses.lovasz_hinge_loss(logits, as_classes(target))
    torch.testing.assert_close(build_loss("lovasz")(logits, target, all_valid(target)), expected)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("dice", lambda p, t: kornia.losses.dice_loss(p, t, average="macro", eps=1e-9)),
        ("jaccard", lambda p, t: kornia.losses.tversky_loss(p, t, alpha=1, beta=1, eps=1e-9)),
        ("tversky", lambda p, t: kornia.losses.tversky_loss(p, t, alpha=0.3, beta=0.7, eps=1e-9)),
    ],
)
def test_overlap_losses_are_kornias(name: str, theirs: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Kornia's two-class loss is the mean of ours for foreground and for background."""
    logits, target, _ = batch()
    loss, valid = build_loss(name, {"smooth": 1e-6}), all_valid(target)
    ours = (loss(logits, target, valid) + loss(-logits, 1 - target, valid)) / 2
    expected = theirs(two_classes(logits), as_classes(target))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


# --- relations among ours -----------------------------------------------------------------------


def test_jaccard_follows_from_dice() -> None:
    """Soft IoU is D / (2 - D) of the soft Dice D, per image."""
    logits, target, valid = batch(size=(1, 1, 9, 11))
    soft_dice = 1 - build_loss("dice", {"smooth": 1e-6})(logits, target, valid)
    jaccard = build_loss("jaccard", {"smooth": 1e-6})(logits, target, valid)
    torch.testing.assert_close(1 - jaccard, soft_dice / (2 - soft_dice))


def test_boundary_without_weight_is_bce_dice() -> None:
    """With border weight 0, the boundary loss of one image is BCE + Dice."""
    arguments = batch(size=(1, 1, 9, 11))
    boundary = build_loss("boundary", {"border_weight": 0.0})
    torch.testing.assert_close(boundary(*arguments), build_loss("bce-dice")(*arguments))


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("bce", "focal")])
def test_per_image_losses_average_over_images(name: str) -> None:
    """The loss of a batch with nothing ignored is the mean of its images' losses."""
    logits, target, _ = batch()
    loss, valid = build_loss(name), all_valid(target)
    single = [loss(logits[i, None], target[i, None], valid[i, None]) for i in range(len(logits))]
    torch.testing.assert_close(loss(logits, target, valid), torch.stack(single).mean())


# --- promises of every loss ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rubbish", [0.0, 1e30, -1e30, math.nan, math.inf])
def test_ignored_values_change_nothing(name: str, rubbish: float) -> None:
    """Whatever stands in an ignored pixel, loss and gradient stay to the bit; its own is zero."""
    logits, target, valid = batch()
    plain, spoilt = logits.clone().requires_grad_(), logits.clone()
    spoilt[~valid] = rubbish
    spoilt.requires_grad_()
    other_target = target.clone()
    other_target[~valid] = 2.0  # what the pixel cache writes for "ignore"
    loss = build_loss(name)
    expected, found = loss(plain, target, valid), loss(spoilt, other_target, valid)
    expected.backward()  # type: ignore[no-untyped-call]
    found.backward()  # type: ignore[no-untyped-call]
    assert plain.grad is not None
    assert spoilt.grad is not None
    assert found.item() == expected.item()
    assert torch.equal(spoilt.grad, plain.grad)
    assert not spoilt.grad[~valid].any()


@pytest.mark.parametrize("name", ALL)
def test_ignored_image_weighs_nothing(name: str) -> None:
    """An image that is ignored whole leaves the loss of the others as it was."""
    logits, target, valid = batch()
    valid[-1] = False
    loss = build_loss(name)
    torch.testing.assert_close(
        loss(logits, target, valid), loss(logits[:-1], target[:-1], valid[:-1])
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["empty", "full", "ignored", "certain and wrong"])
def test_finite_in_every_corner(name: str, dtype: torch.dtype, kind: str) -> None:
    """Empty, full and ignored masks give a finite float32 loss and gradient, in half floats too."""
    logits, target, valid = batch(size=(2, 1, 5, 7))
    if kind == "certain and wrong":
        logits = (1 - 2 * target) * 3e4
    else:
        target = torch.full_like(target, float(kind == "full"))
        valid = torch.full_like(valid, kind != "ignored")
    logits = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = build_loss(name)(logits, target, valid)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()
    if kind == "ignored":
        assert loss.item() == 0
        assert not logits.grad.any()


@pytest.mark.parametrize("name", ALL)
def test_computed_in_float32(name: str) -> None:
    """bf16 logits give what the same numbers give in float32."""
    logits, target, valid = batch()
    rounded, loss = logits.bfloat16(), build_loss(name)
    assert loss(rounded, target, valid).item() == loss(rounded.float(), target, valid).item()


@pytest.mark.parametrize("name", ALL)
def test_right_is_better_than_wrong(name: str) -> None:
    """A certain right answer costs almost nothing, its opposite much more."""
    _, target, valid = batch()
    sure, loss = 20 * (2 * target - 1), build_loss(name)
    assert loss(sure, target, valid).item() < 1e-3
    assert loss(-sure, target, valid).item() > 0.5


@pytest.mark.parametrize("name", ALL)
def test_gradient_leads_downhill(name: str) -> None:
    """The gradient of every loss is the slope that finite differences find."""
    logits, target, valid = batch(seed=3, size=(1, 1, 3, 4))
    loss, step = build_loss(name), 1e-2
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, target, valid), logits)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        up = loss(logits + step * direction, target, valid)
        down = loss(logits - step * direction, target, valid)
    slope = ((up - down) / (2 * step)).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_losses_travel_between_processes(name: str) -> None:
    """A built loss can be pickled, as training on several devices needs."""
    arguments = batch()
    again = pickle.loads(pickle.dumps(build_loss(name)))
    assert again(*arguments).item() == build_loss(name)(*arguments).item()


# --- names and options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("dise", {}, "did you mean dice?"),
        ("Lovász", {}, "did you mean lovasz?"),
        ("xyzzy", {}, "accepted: bce, bce-dice, boundary"),
        ("dice", {"smoth": 1.0}, "did you mean smooth?"),
        ("lovasz", {"gamma": 1.0}, "it has none"),
        ("dice", {"smooth": 0.0}, "it takes a number, 1e-06 or more"),
        ("focal", {"alpha": 1.5}, "it takes a number from 0 to 1"),
        ("focal", {"gamma": math.nan}, "gamma is nan"),
        ("focal", {"gamma": True}, "gamma is True"),
        ("boundary", {"width": 1.5}, "a whole number from 1 to 64"),
    ],
)
def test_unknown_names_and_numbers_are_refused(
    name: str, options: dict[str, float], says: str
) -> None:
    """What isn't accepted is named on one line, with the nearest name or what would be."""
    with pytest.raises(UsageError) as caught:
        build_loss(name, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_entries_are_documented(name: str) -> None:
    """Every loss says what it is and where it comes from, and takes its own defaults."""
    entry = LOSSES[name]
    assert entry.summary
    assert entry.source
    assert all(knob.rule.help for knob in entry.knobs.values())
    arguments = batch()
    assert (
        build_loss(name, entry.defaults)(*arguments).item() == build_loss(name)(*arguments).item()
    )
