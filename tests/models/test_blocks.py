"""The parts in which the reports' networks differ, each against a few numbers by hand."""

import pytest
import torch
from torch.nn import functional

from binseg.models.decoders import AttentionGate, UNetBlock, UNetStyle
from binseg.models.skeleton import (
    fit_by_padding,
    join_maps,
    norm_layer,
    pad_to_minimum,
    resize,
    up_layer,
)


@pytest.mark.parametrize("size", [(5, 8), (4, 6), (7, 6), (3, 9), (2, 2)])
def test_padding_is_torchs_centred_pad(size: tuple[int, int]) -> None:
    """Padding puts half of what is missing on each side; where maps are larger, it cuts."""
    maps = torch.rand(1, 2, 4, 6)
    missing_y, missing_x = size[0] - 4, size[1] - 6
    if missing_y < 0 or missing_x < 0:
        assert fit_by_padding(maps, size).shape[-2:] == size
        return
    # The formula of the U-Net that report D follows.
    top, left = missing_y // 2, missing_x // 2
    expected = functional.pad(maps, [left, missing_x - left, top, missing_y - top])
    assert torch.equal(fit_by_padding(maps, size), expected)


def test_cropping_keeps_the_middle() -> None:
    """A map that is two pixels larger loses one on each side."""
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(fit_by_padding(maps, (2, 4)), maps[..., 1:3, :])


def test_each_report_joins_in_its_own_way() -> None:
    """D pads the upsampled map to the skip, B resizes it, A resizes the skip instead."""
    up, skip = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 5, 5)
    padded, same = join_maps(up, skip, rule="pad", size=(9, 9))
    assert same is skip
    assert padded.shape[-2:] == (5, 5)
    assert padded[0, 0, 4].sum() == 0
    resized, same = join_maps(up, skip, rule="resize-up", size=(9, 9))
    assert same is skip
    assert torch.equal(resized, torch.ones(1, 2, 5, 5))
    same, smaller = join_maps(up, skip, rule="resize-skip", size=(9, 9))
    assert same is up
    assert smaller is not None
    assert smaller.shape == (1, 3, 4, 4)


def test_blocks_without_a_skip_aim_at_the_given_size() -> None:
    """The last block of a decoder reaches the input's size, but leaves A's at twice its own."""
    up = torch.ones(1, 1, 6, 6)
    assert join_maps(up, None, rule="pad", size=(5, 7))[0].shape[-2:] == (5, 7)
    assert join_maps(up, None, rule="resize-up", size=(5, 7))[0].shape[-2:] == (5, 7)
    assert join_maps(up, None, rule="resize-skip", size=(5, 7))[0] is up


def test_order_of_the_concatenation() -> None:
    """`skip_first` says whose channels the first convolution sees first."""
    below, skip = torch.rand(1, 4, 2, 2), torch.rand(1, 3, 4, 4)
    for skip_first in (True, False):
        block = UNetBlock(4, 3, 2, style=UNetStyle(skip_first=skip_first, norm="none"))
        seen: list[torch.Tensor] = []
        block.convs.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        block(below, skip, (4, 4))
        part = seen[0][:, :3] if skip_first else seen[0][:, -3:]
        assert torch.equal(part, skip)


@pytest.mark.parametrize("up", ["bilinear", "nearest"])
def test_convolving_before_interpolation_changes_nothing(up: str) -> None:
    """A 1x1 convolution behind the interpolation gives the same as before it."""
    layer = up_layer("bilinear" if up == "bilinear" else "nearest", 4, 2)
    conv, double = layer.get_submodule("conv"), layer.get_submodule("up")
    maps = torch.rand(1, 4, 3, 5)
    torch.testing.assert_close(layer(maps), conv(double(maps)))


def test_groups_always_divide_the_channels() -> None:
    """Group norm takes 32 groups, or fewer where that would leave less than 4 channels in one."""
    for channels, groups in ((256, 32), (64, 16), (48, 8), (18, 2), (7, 1), (4, 1)):
        norm = norm_layer("group", channels)
        assert isinstance(norm, torch.nn.GroupNorm)
        assert norm.num_groups == groups


def test_attention_weighs_pixels_between_zero_and_one() -> None:
    """A gate scales each pixel of the skip by one number, the same in all channels."""
    gate = AttentionGate(3, 4, norm="none")
    skip = torch.rand(1, 3, 5, 5) + 1
    weight = gate(skip, torch.rand(1, 4, 5, 5)) / skip
    assert ((weight > 0) & (weight < 1)).all()
    torch.testing.assert_close(weight[:, :1].expand(-1, 3, -1, -1), weight)


def test_small_inputs_grow_by_their_edge() -> None:
    """One pixel becomes a plane of itself; inputs that are large enough are not copied."""
    assert torch.equal(
        pad_to_minimum(torch.full((1, 1, 1, 1), 3.0), 4), torch.full((1, 1, 4, 4), 3.0)
    )
    large = torch.rand(1, 1, 4, 9)
    assert pad_to_minimum(large, 4) is large


def test_one_pixel_maps_are_spread_without_interpolation() -> None:
    """Spreading a single pixel gives what bilinear interpolation gives."""
    maps = torch.rand(2, 3, 1, 1)
    expected = functional.interpolate(maps, size=(4, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(maps, (4, 5)), expected)
