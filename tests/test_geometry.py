from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from binseg.transforms.geometry import (
    blend,
    cut,
    place,
    place_mask,
    plan,
    resize_image,
    resize_mask,
    restore,
    scaled_size,
)
from binseg.types import Box, Placement, Preprocessing, ResizeMode

SIZES = st.integers(1, 90)
INPUTS = st.integers(8, 40)
FITS: st.SearchStrategy[ResizeMode] = st.sampled_from(["stretch", "letterbox", "tile"])
OVERLAPS = st.sampled_from([0.0, 0.25, 0.5, 0.89])
few = settings(max_examples=60, deadline=None)


def settings_of(
    resize: ResizeMode, height: int, width: int, overlap: float = 0.25
) -> Preprocessing:
    return Preprocessing(resize=resize, height=height, width=width, overlap=overlap)


def smooth(height: int, width: int) -> np.ndarray:
    """A gentle float image that any resizing should nearly keep, half a wave a side."""
    rows = np.linspace(0, np.pi, height)[:, None]
    columns = np.linspace(0, np.pi, width)[None, :]
    return (0.5 + 0.25 * np.cos(rows) + 0.25 * np.cos(columns)).astype(np.float32)[:, :, None]


@few
@given(
    resize=FITS,
    height=SIZES,
    width=SIZES,
    input_height=INPUTS,
    input_width=INPUTS,
    overlap=OVERLAPS,
)
def test_every_pixel_is_in_a_placement_and_targets_are_inside(
    *,
    resize: ResizeMode,
    height: int,
    width: int,
    input_height: int,
    input_width: int,
    overlap: float,
) -> None:
    """No pixel of the image is left out, and no target is empty or leaves the input."""
    seen = np.zeros((height, width), bool)
    for placement in plan(height, width, settings_of(resize, input_height, input_width, overlap)):
        source, target = placement.source, placement.target
        assert (placement.height, placement.width) == (input_height, input_width)
        assert target.height >= 1
        assert target.width >= 1
        assert target.top >= 0
        assert target.left >= 0
        assert target.top + target.height <= input_height
        assert target.left + target.width <= input_width
        if resize == "tile":
            assert (source.height, source.width) == (input_height, input_width)
        seen[
            max(source.top, 0) : source.top + source.height,
            max(source.left, 0) : source.left + source.width,
        ] = True
    assert seen.all()


@few
@given(FITS, SIZES, SIZES, INPUTS, INPUTS)
def test_restore_undoes_place(
    resize: ResizeMode, height: int, width: int, input_height: int, input_width: int
) -> None:
    """The way back gives the image's size and, for a smooth image, nearly its content."""
    image_HW1 = smooth(height, width)
    placements = plan(height, width, settings_of(resize, input_height, input_width))
    maps = [place(image_HW1, placement)[:, :, 0] for placement in placements]
    for map_HW, placement in zip(maps, placements, strict=True):
        back_HW = restore(map_HW, placement)
        assert back_HW.shape == (placement.source.height, placement.source.width)
        assert back_HW.dtype == np.float32
    back_HW = blend(maps, placements, height, width)
    assert back_HW.shape == (height, width)
    if resize == "tile":
        np.testing.assert_allclose(back_HW, image_HW1[:, :, 0], atol=1e-6)
        return
    # What bilinear sampling may lose: about one step of the coarser of the two grids.
    target = placements[0].target
    steps = 1 / min(height, target.height) + 1 / min(width, target.width)
    assert np.abs(back_HW - image_HW1[:, :, 0]).max() <= 0.5 * np.pi * 0.25 * steps + 1e-5


@few
@given(
    resize=FITS,
    height=SIZES,
    width=SIZES,
    input_height=INPUTS,
    input_width=INPUTS,
    overlap=OVERLAPS,
    value=st.floats(0, 1, width=32),
)
def test_blend_of_constant_maps_is_constant(
    *,
    resize: ResizeMode,
    height: int,
    width: int,
    input_height: int,
    input_width: int,
    overlap: float,
    value: float,
) -> None:
    """Weights add up to one everywhere, so that tiles leave no pattern of their own."""
    placements = plan(height, width, settings_of(resize, input_height, input_width, overlap))
    maps = (np.full((one.height, one.width), value, np.float32) for one in placements)
    # The smallest float32 numbers have no digits left to be relative to.
    np.testing.assert_allclose(blend(maps, placements, height, width), value, rtol=2e-6, atol=1e-37)


@few
@given(FITS, INPUTS, INPUTS)
def test_equal_sizes_are_copied_to_the_bit(resize: ResizeMode, height: int, width: int) -> None:
    """An image of the input's size goes in and comes back unchanged, in every fit."""
    rng = np.random.default_rng(height * 100 + width)
    (placement,) = plan(height, width, settings_of(resize, height, width))
    image_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask_HW = image_HWC[:, :, 0] > 99
    map_HW = rng.random((height, width)).astype(np.float32)
    np.testing.assert_array_equal(place(image_HWC, placement), image_HWC)
    np.testing.assert_array_equal(place_mask(mask_HW, placement), mask_HW)
    np.testing.assert_array_equal(restore(map_HW, placement), map_HW)
    np.testing.assert_array_equal(blend([map_HW], [placement], height, width), map_HW)


@few
@given(FITS, SIZES, SIZES, INPUTS)
def test_place_leaves_its_argument_alone_and_gives_own_memory(
    resize: ResizeMode, height: int, width: int, size: int
) -> None:
    """Changing an input never changes the image that it was made of."""
    image_HW1 = np.full((height, width, 1), 7, np.uint8)
    for placement in plan(height, width, settings_of(resize, size, size)):
        place(image_HW1, placement)[:] = 0
    assert (image_HW1 == 7).all()


@few
@given(SIZES, SIZES, SIZES, SIZES)
def test_integer_and_float_paths_differ_by_rounding_alone(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    """The quick path for 8 bits gives the float path's answer to within one grey level."""
    rng = np.random.default_rng(height)
    image_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    quick = resize_image(image_HWC, new_height, new_width).astype(np.float32)
    exact = resize_image(image_HWC.astype(np.float32), new_height, new_width)
    assert np.abs(quick - exact).max() <= 1.01
    deep = resize_image(image_HWC.astype(np.uint16), new_height, new_width)
    assert np.abs(deep - exact).max() <= 0.5001


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_channels_are_resized_alike_and_apart(channels: int) -> None:
    """Any number of channels gives what each gives alone, and Pillow is the referee."""
    image_HWC = np.random.default_rng(0).integers(0, 256, (23, 31, channels), dtype=np.uint8)
    resized_HWC = resize_image(image_HWC, 12, 40)
    for channel in range(channels):
        plane = Image.fromarray(image_HWC[:, :, channel])
        expected = plane.resize((40, 12), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resized_HWC[:, :, channel], np.asarray(expected))


def test_shrinking_averages_instead_of_skipping() -> None:
    """A fine checkerboard becomes grey, not black or white: antialias."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    small = resize_image(board, 8, 8)
    assert np.abs(small[1:-1, 1:-1].astype(int) - 128).max() <= 4


@few
@given(SIZES, SIZES, SIZES, SIZES)
def test_masks_take_the_nearest_pixel_as_pillow_does(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    """No label is ever made up between two others."""
    labels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    resized = resize_mask(labels, new_height, new_width)
    rows = np.floor((np.arange(new_height) + 0.5) * (height / new_height) + 1e-9).astype(int)
    columns = np.floor((np.arange(new_width) + 0.5) * (width / new_width) + 1e-9).astype(int)
    np.testing.assert_array_equal(resized, labels[rows][:, columns])
    if new_height % height == 0 and new_width % width == 0:
        pillow = Image.fromarray(labels).resize((new_width, new_height), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(resized, np.asarray(pillow))


@few
@given(FITS, SIZES, SIZES, INPUTS)
def test_masks_lie_where_their_images_lie(
    resize: ResizeMode, height: int, width: int, size: int
) -> None:
    """The placed mask of all pixels is the target, less what lies past the image's edge."""
    everything = np.ones((height, width), bool)
    for placement in plan(height, width, settings_of(resize, size, size)):
        placed = place_mask(everything, placement)
        source, target = placement.source, placement.target
        rows = min(source.top + source.height, height) - max(source.top, 0)
        columns = min(source.left + source.width, width) - max(source.left, 0)
        if resize == "tile":
            assert placed.sum() == rows * columns
        else:
            assert placed.sum() == target.height * target.width
        assert not place_mask(~everything, placement).any()


def test_pad_keeps_the_aspect_in_the_middle() -> None:
    """An image twice as wide as high fills the width; zeros lie above and below alike."""
    (placement,) = plan(50, 100, settings_of("letterbox", 64, 64))
    assert placement.target == Box(top=16, left=0, height=32, width=64)
    placed = place(np.full((50, 100, 3), 200, np.uint8), placement)
    assert (placed[16:48] == 200).all()
    assert (placed[:16] == 0).all()
    assert (placed[48:] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(60_000, 2), (2, 60_000), (1, 1), (1, 7)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "tile"])
def test_thin_and_tiny_images_work(resize: ResizeMode, height: int, width: int) -> None:
    """An image like a thread, or a single pixel, gets in and out again."""
    image_HW1 = np.full((height, width, 1), 90, np.uint8)
    placements = plan(height, width, settings_of(resize, 256, 256))
    maps = [place(image_HW1, one)[:, :, 0].astype(np.float32) for one in placements]
    np.testing.assert_allclose(blend(maps, placements, height, width), 90, rtol=1e-5)


def test_tiles_smaller_than_the_image_lie_on_the_grid_of_strides_and_overlap() -> None:
    """Tiles begin where the networks' coarsest pixels do, and neighbours share the overlap."""
    placements = plan(1000, 700, settings_of("tile", 256, 256, 0.25))
    tops = sorted({one.source.top for one in placements})
    assert tops[0] == 0
    assert all(top % 32 == 0 for top in tops)
    assert 1000 - 256 <= tops[-1] < 1000 - 256 + 32
    assert all(b - a <= 192 for a, b in pairwise(tops))
    assert len(placements) == len(tops) * len({one.source.left for one in placements})


@pytest.mark.parametrize(("height", "width"), [(5, 3), (1, 1), (2, 40)])
def test_small_images_are_mirrored_as_numpy_does(height: int, width: int) -> None:
    """Past its edge a tile shows numpy's symmetric padding, however often it repeats."""
    image_HWC = np.random.default_rng(0).integers(0, 256, (height, width, 2), dtype=np.uint8)
    (placement, *_) = plan(height, width, settings_of("tile", 32, 32))
    above, left = -placement.source.top, max(-placement.source.left, 0)
    below = 32 - above - height
    right = max(32 - left - width, 0)
    padded = np.pad(image_HWC, ((above, below), (left, right), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(place(image_HWC, placement), padded[:, :32])


def test_tiles_of_a_huge_image_touch_only_their_own_pixels() -> None:
    """A tile of a 40 gigapixel image costs a tile's memory, not the image's."""
    one = np.zeros((1, 1, 1), np.uint8)
    huge = np.broadcast_to(one, (200_000, 200_000, 1))
    source = Box(top=199_990, left=-5, height=32, width=32)
    target = Box(top=0, left=0, height=32, width=32)
    placement = Placement(source=source, target=target, height=32, width=32)
    assert place(huge, placement).shape == (32, 32, 1)


def test_blend_fades_between_tiles_that_disagree() -> None:
    """Between a tile of zeros and a tile of ones there is a slope, not a step."""
    placements = plan(32, 48, settings_of("tile", 32, 32, 0.5))
    maps = [np.full((32, 32), float(one.source.left > 0), np.float32) for one in placements]
    row = blend(maps, placements, 32, 48)[16]
    assert row[0] == 0
    assert row[-1] == 1
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() < 0.2


@few
@given(
    height=SIZES,
    width=SIZES,
    size=INPUTS,
    overlap=OVERLAPS,
    scale=st.sampled_from([0.05, 0.3, 0.5, 1.0, 1.7, 2.0, 8.0]),
)
def test_scaled_tiles_cover_the_image(
    *, height: int, width: int, size: int, overlap: float, scale: float
) -> None:
    """At scale s, a tile of n pixels shows n / s pixels of the image; none is left out."""
    shape = Preprocessing(resize="tile", height=size, width=size, overlap=overlap, scale=scale)
    seen = np.zeros((height, width), bool)
    for placement in plan(height, width, shape):
        source, target = placement.source, placement.target
        assert source.height == source.width == max(1, round(size / scale))
        assert target == Box(top=0, left=0, height=size, width=size)
        seen[
            max(source.top, 0) : source.top + source.height,
            max(source.left, 0) : source.left + source.width,
        ] = True
    assert seen.all()


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 1.6])
def test_scaled_tiles_come_back_to_the_image(scale: float) -> None:
    """Cutting a smooth image into tiles at a scale and blending them gives the image."""
    image_HW1 = smooth(150, 110)
    shape = Preprocessing(resize="tile", height=48, width=48, scale=scale)
    placements = plan(150, 110, shape)
    maps = [place(image_HW1, one)[:, :, 0] for one in placements]
    assert np.abs(blend(maps, placements, 150, 110) - image_HW1[:, :, 0]).max() < 0.01


def test_the_scaled_size_is_that_of_the_tiles() -> None:
    """A whole image takes the very factor of its tiles, whose regions are whole pixels."""
    assert scaled_size(100, 60, Preprocessing(resize="tile")) == (100, 60)
    half = Preprocessing(resize="tile", height=32, width=32, scale=0.5)
    assert scaled_size(100, 61, half) == (50, 30)
    assert scaled_size(1, 1, half) == (1, 1)
    odd = Preprocessing(resize="tile", height=10, width=10, scale=0.3)
    assert plan(99, 99, odd)[0].source.height == 33
    assert scaled_size(99, 99, odd) == (30, 30)


def test_cutting_mirrors_past_the_edges() -> None:
    """Inside it is a slice; outside it is numpy's symmetric padding, with or without channels."""
    image_HWC = np.arange(4 * 5 * 2, dtype=np.uint8).reshape(4, 5, 2)
    padded = np.pad(image_HWC, ((6, 6), (6, 6), (0, 0)), mode="symmetric")
    for top, left in ((0, 0), (1, 2), (-3, 4), (-6, -6), (3, 1)):
        box = Box(top=top, left=left, height=3, width=3)
        expected = padded[top + 6 : top + 9, left + 6 : left + 9]
        assert np.array_equal(cut(image_HWC, box), expected)
        assert np.array_equal(cut(image_HWC[:, :, 1], box), expected[:, :, 1])
