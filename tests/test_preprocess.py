from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from binseg.errors import ImageError
from binseg.transforms.geometry import place, plan, resize_image
from binseg.transforms.preprocess import (
    _fit_channels,
    _opened,
    _to_range,
    normalise,
    prepare,
    prepare_batches,
    prepare_image,
    prepare_truth,
)
from binseg.types import IGNORE, Intensity, Preprocessing, ResizeMode

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
FITS: list[ResizeMode] = ["stretch", "letterbox", "tile"]


def settings_of(
    resize: ResizeMode = "stretch",
    channels: int = 3,
    intensity: Intensity = "dtype",
    depth: Literal[8, 16] = 8,
) -> Preprocessing:
    return Preprocessing(
        height=32, width=24, resize=resize, channels=channels, intensity=intensity, depth=depth,
        mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip


def to_unit(
    image_HWC: np.ndarray, preprocessing: Preprocessing, name: str = "the image"
) -> np.ndarray:
    """An image with the model's channels in [0, 1] at its own size: floats, before any resize."""
    original_HWC, bounds = _opened(image_HWC, preprocessing, name)
    return _fit_channels(_to_range(original_HWC, bounds), preprocessing.channels)


@pytest.mark.parametrize(
    ("image_HWC", "expected"),
    [
        (RGB, RGB / 255),
        ((RGB * np.uint16(257)), RGB / 255),
        ((RGB / 255).astype(np.float32), RGB / 255),
        (RGB / 255, RGB / 255),
        (RGB > 99, (RGB > 99) * 1.0),
    ],
    ids=["uint8", "uint16", "float32", "float64", "bool"],
)
def test_dtype_intensity_divides_by_the_largest_value(
    image_HWC: np.ndarray, expected: np.ndarray
) -> None:
    """One image in five types gives one answer."""
    unit_HWC = to_unit(image_HWC, settings_of())
    assert unit_HWC.dtype == np.float32
    np.testing.assert_allclose(unit_HWC, expected, atol=1e-6)


def test_grey_is_repeated_and_colour_becomes_luma() -> None:
    """Grey fits a colour model; colour fits a grey one through ITU-R 601, as Pillow's L."""
    grey = to_unit(RGB[:, :, :1], settings_of())
    assert (grey == grey[:, :, :1]).all()
    luma = to_unit(RGB, settings_of(channels=1))
    pillow = np.asarray(Image.fromarray(RGB).convert("L"))
    assert np.abs(luma[:, :, 0] * 255 - pillow).max() <= 1.0


@pytest.mark.parametrize(("have", "want"), [(5, 3), (3, 5), (2, 1), (4, 3), (1, 5)])
def test_other_channel_counts_are_refused(have: int, want: int) -> None:
    """Nothing is dropped or made up; the message names the setting."""
    for call in (to_unit, prepare):
        with pytest.raises(ImageError, match=r"a\.tif: .*input\.channels"):
            call(np.zeros((4, 4, have), np.uint8), settings_of(channels=want), name="a.tif")


def test_equal_channel_counts_are_kept() -> None:
    """Five channels fit a model of five."""
    image_HW5 = RNG.integers(0, 256, (9, 9, 5), dtype=np.uint8)
    np.testing.assert_allclose(to_unit(image_HW5, settings_of(channels=5)), image_HW5 / 255)
    inputs_NHWC, _ = prepare(image_HW5, settings_of(channels=5))
    assert inputs_NHWC.shape == (1, 32, 24, 5)


@pytest.mark.parametrize(
    ("image_HWC", "says"),
    [
        (np.full((4, 4, 3), 200.0, np.float32), "percentile"),
        (np.full((4, 4, 3), -0.5, np.float32), "percentile"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.complex64), "complex64"),
    ],
)
def test_arrays_that_are_no_images_are_refused(image_HWC: np.ndarray, says: str) -> None:
    """One line that says what was given and what is taken."""
    with pytest.raises(ImageError, match=says) as caught:
        prepare(image_HWC, settings_of())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [1.0, 37.0, 1e-3])
def test_percentiles_make_scale_and_offset_irrelevant(scale: float) -> None:
    """A camera's gain and offset change nothing, and outliers are clipped."""
    values = RNG.normal(size=(60, 60, 1)).astype(np.float32)
    unit = to_unit(values, settings_of(intensity="percentile", channels=1))
    other = to_unit(values * scale + 5, settings_of(intensity="percentile", channels=1))
    np.testing.assert_allclose(unit, other, atol=1e-3)
    low, high = np.percentile(values, [0.5, 99.5])
    np.testing.assert_allclose(unit, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)


def test_percentiles_are_taken_channel_by_channel() -> None:
    """Elevation in metres and an index from -1 to 1: each keeps its own levels."""
    both = np.dstack([RNG.uniform(0, 3000, (72, 72)), RNG.uniform(-1, 1, (72, 72))])
    inputs, _ = prepare(both.astype(np.float32), settings_of(intensity="percentile", channels=2))
    assert min(len(np.unique(inputs[..., channel])) for channel in (0, 1)) > 60
    alone, _ = prepare(both[:, :, 1:], settings_of(intensity="percentile", channels=1))
    np.testing.assert_array_equal(inputs[..., 1:], alone)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_constant_images_and_specks_are_safe(dtype: type[np.generic]) -> None:
    """No division by zero: constant is 0, and a lone bright pixel on black stays visible."""
    percentile = settings_of(intensity="percentile")
    constant: np.ndarray = np.full((30, 30, 3), 7, dtype)
    assert (to_unit(constant, percentile) == 0).all()
    speck = constant.copy()
    speck[3, 4] = 200
    unit = to_unit(speck, percentile)
    assert unit[3, 4].tolist() == [1, 1, 1]
    assert unit.sum() == 3


def test_percentiles_of_large_images_come_from_every_few_pixels() -> None:
    """The sample's percentiles are those of the whole, nearly."""
    ramp = np.broadcast_to(np.arange(3000, dtype=np.uint16)[:, None, None], (3000, 2000, 1))
    unit = to_unit(ramp, settings_of(intensity="percentile", channels=1))
    assert abs(unit[1500, 0, 0] - 0.5) < 0.002
    assert abs(float(unit[750, 0, 0]) - (750 - 15) / (3000 - 30)) < 0.002


@pytest.mark.parametrize("resize", FITS)
@pytest.mark.parametrize("intensity", ["dtype", "percentile"])
@pytest.mark.parametrize("have", [1, 3])
@pytest.mark.parametrize("want", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("depth", [8, 16])
def test_prepare_is_to_unit_then_place(
    *,
    resize: ResizeMode,
    intensity: Intensity,
    have: int,
    want: int,
    dtype: type[np.generic],
    depth: Literal[8, 16],
) -> None:
    """The quick ways give the plain way's numbers, but for rounding (two levels where mixed)."""
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype.__name__]
    image_HWC: np.ndarray = (RGB[:, :, :have] / 255 * top).astype(dtype)
    preprocessing = settings_of(resize, want, intensity, depth)
    inputs_NHWC, placements = prepare(image_HWC, preprocessing)
    assert inputs_NHWC.dtype == {8: np.uint8, 16: np.uint16}[depth]
    assert inputs_NHWC.shape == (len(placements), 32, 24, want)
    assert placements == plan(40, 56, preprocessing)
    unit_HWC = to_unit(image_HWC, preprocessing)
    for input_HWC, placement in zip(inputs_NHWC, placements, strict=True):
        exact = place(unit_HWC, placement) * preprocessing.top
        quick = dtype == np.uint8 and intensity == "dtype" and depth == 8
        rounding = 0.501 if depth == 8 else 0.6  # of float32, which has 24 bits
        assert np.abs(input_HWC - exact).max() <= (1.51 if quick else rounding)
    np.testing.assert_allclose(
        normalise(inputs_NHWC, preprocessing).transpose(0, 2, 3, 1),
        (inputs_NHWC / preprocessing.top - 0.5) / 0.25,
        atol=1e-6,
    )


def test_the_usual_case_is_pillows_resize() -> None:
    """An 8-bit colour image, stretched, is what Pillow's antialiased bilinear gives."""
    inputs_NHWC, _ = prepare(RGB, settings_of())
    expected = Image.fromarray(RGB).resize((24, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(inputs_NHWC[0], np.asarray(expected))


@pytest.mark.parametrize("resize", FITS)
@pytest.mark.parametrize("intensity", ["dtype", "percentile"])
def test_batches_are_prepare_in_pieces(resize: ResizeMode, intensity: Intensity) -> None:
    """Tiles made a few at a time are the same tiles."""
    preprocessing = settings_of(resize, intensity=intensity)
    inputs_NHWC, placements = prepare(RGB, preprocessing)
    batches = list(prepare_batches(RGB, preprocessing, batch_size=2))
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in batches]), inputs_NHWC)
    assert sum((some for _, some in batches), ()) == placements
    assert all(len(some) <= 2 for _, some in batches)


def test_padding_is_black_and_ignored() -> None:
    """What isn't image is 0 in the input and 2 in the target."""
    mask_HW = np.ones((10, 40), bool)
    valid_HW = np.ones((10, 40), bool)
    valid_HW[:, :20] = False
    white = np.full((10, 40, 3), 255, np.uint8)
    inputs_NHWC, placements = prepare(white, settings_of("letterbox"))
    (targets_HW,) = prepare_truth(mask_HW, valid_HW, placements)
    assert targets_HW.dtype == np.uint8
    padding = inputs_NHWC[0, :, :, 0] == 0
    assert (targets_HW[padding] == IGNORE).all()
    assert (targets_HW[~padding][: padding.sum()].reshape(-1, 24)[:, :12] == IGNORE).all()
    assert (targets_HW[~padding].reshape(-1, 24)[:, 12:] == 1).all()


def test_pixels_past_the_edge_are_ignored() -> None:
    """A small image in a large tile is mirrored for the network's eye only."""
    mask_HW = np.ones((4, 6), bool)
    _, placements = prepare(np.zeros((4, 6, 3), np.uint8), settings_of("tile"))
    (targets_HW,) = prepare_truth(mask_HW, mask_HW, placements)
    assert (targets_HW == 1).sum() == 24
    assert (targets_HW == IGNORE).sum() == 32 * 24 - 24


def test_background_is_zero() -> None:
    """Valid and not foreground is 0."""
    empty_HW = np.zeros((4, 6), bool)
    _, placements = prepare(np.zeros((4, 6, 3), np.uint8), settings_of())
    assert (prepare_truth(empty_HW, ~empty_HW, placements) == 0).all()


def test_normalise_is_the_textbook_formula_channels_first() -> None:
    """(x / 255 - mean) / std in float32, contiguous, one number per channel."""
    preprocessing = Preprocessing()
    inputs_NHWC = RNG.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    out_NCHW = normalise(inputs_NHWC, preprocessing)
    expected = (inputs_NHWC / 255 - preprocessing.mean) / preprocessing.std
    assert out_NCHW.dtype == np.float32
    assert out_NCHW.flags.c_contiguous
    np.testing.assert_allclose(out_NCHW, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_the_image_is_never_modified() -> None:
    """Arguments come back as they were."""
    for image_HWC in (RGB.copy(), RGB.astype(np.float32) / 255):
        before = image_HWC.copy()
        prepare(image_HWC, settings_of("tile"))[0][:] = 0
        prepare(image_HWC, settings_of(intensity="percentile"))
        to_unit(image_HWC, settings_of())[:] = 0
        np.testing.assert_array_equal(image_HWC, before)


KINDS: dict[str, tuple[np.ndarray, int]] = {
    "uint8": (RGB, 3),
    "grey": (RGB[:, :, :1], 3),
    "luma": (RGB, 1),
    "uint16": (RGB.astype(np.uint16) * 200, 3),
    "five": (RNG.integers(0, 65536, (40, 56, 5), dtype=np.uint16), 5),
    "float": ((RGB / 300).astype(np.float32), 3),
}


@pytest.mark.parametrize("intensity", ["dtype", "percentile"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [8, 16])
def test_training_images_hold_the_tiles_of_prediction(
    kind: str, intensity: Intensity, depth: Literal[8, 16]
) -> None:
    """At scale 1 a patch of the whole image is the tile of prediction, to the bit."""
    image_HWC, channels = KINDS[kind]
    shape = settings_of("tile", channels, intensity, depth)
    whole_HWC = prepare_image(image_HWC, shape)
    assert whole_HWC.shape == (40, 56, channels)
    inputs_NHWC, placements = prepare(image_HWC, shape)
    for input_HWC, placement in zip(inputs_NHWC, placements, strict=True):
        box = placement.source
        patch = whole_HWC[box.top : box.top + box.height, box.left : box.left + box.width]
        assert np.array_equal(input_HWC, patch)


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_images_look_like_scaled_tiles(kind: str) -> None:
    """At another scale they agree but for rounding and the tiles' rims."""
    image_HWC, channels = KINDS[kind]
    smooth_HWC = np.stack(
        [resize_image(image_HWC[:4, :4, c : c + 1], 128, 128)[:, :, 0]
         for c in range(image_HWC.shape[2])],
        axis=2,
    )  # fmt: skip
    shape = replace(settings_of("tile", channels), height=32, width=32, overlap=0.0, scale=0.5)
    whole_HWC = prepare_image(smooth_HWC, shape)
    assert whole_HWC.shape == (64, 64, channels)
    inputs_NHWC, placements = prepare(smooth_HWC, shape)
    assert len(placements) == 4
    joined = np.concatenate(
        [np.concatenate([inputs_NHWC[0], inputs_NHWC[1]], axis=1),
         np.concatenate([inputs_NHWC[2], inputs_NHWC[3]], axis=1)],
    )  # fmt: skip
    difference = np.abs(joined.astype(int) - whole_HWC)
    inner = np.ones((64, 64), bool)
    inner[30:34] = inner[:, 30:34] = False
    assert difference[inner].max() <= 1


def test_shrunk_tiles_are_pillows() -> None:
    """A tile at scale 0.5 is Pillow's antialiased resize of its region."""
    image_HWC = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    shape = replace(settings_of("tile"), height=16, width=16, overlap=0.0, scale=0.5)
    inputs_NHWC, placements = prepare(image_HWC, shape)
    for input_HWC, one in zip(inputs_NHWC, placements, strict=True):
        top, left = one.source.top, one.source.left
        region = Image.fromarray(image_HWC[top : top + 32, left : left + 32])
        expected = np.asarray(region.resize((16, 16), Image.Resampling.BILINEAR))
        assert np.array_equal(input_HWC, expected)


def test_percentiles_are_of_each_channel() -> None:
    """Elevation in metres beside an index of -1 to 1: both keep their levels."""
    random = np.random.default_rng(0)
    image = np.stack([random.normal(1500, 600, (72, 72)), random.uniform(-1, 1, (72, 72))], axis=2)
    for size in (72, 40):
        both = Preprocessing(
            height=size, width=size, channels=2, intensity="percentile", mean=(0,) * 2, std=(1,) * 2
        )
        one = Preprocessing(
            height=size, width=size, channels=1, intensity="percentile", mean=(0,), std=(1,)
        )
        inputs, _ = prepare(image.astype(np.float32), both)
        for channel in range(2):
            alone, _ = prepare(image[:, :, channel : channel + 1].astype(np.float32), one)
            np.testing.assert_array_equal(inputs[0, :, :, channel], alone[0, :, :, 0])
            assert len(np.unique(inputs[0, :, :, channel])) > 90
