"""Images for the eye, overlays, cut-outs and error maps, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binseg.report import cutout, error_map, for_display, overlay
from binseg.report.overlay import ERROR_COLOURS, cropped, on_colour, soft_alpha


def photo(channels: int = 3, dtype: str = "uint8", top: float = 255) -> np.ndarray:
    return (np.random.default_rng(0).random((20, 30, channels)) * top).astype(dtype)


def square() -> np.ndarray:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:15, 5:20] = True
    return mask


def test_rgb_bytes_are_shown_as_they_are() -> None:
    """An 8-bit RGB image isn't changed, and isn't the same array either."""
    image = photo()
    shown = for_display(image)
    assert np.array_equal(shown, image)
    shown[:] = 0
    assert image.any()


@given(
    channels=st.integers(1, 6),
    kind=st.sampled_from([("uint8", 255), ("uint16", 65535), ("float32", 1.0), ("float32", 1e4)]),
)
def test_any_image_can_be_shown(channels: int, kind: tuple[str, float]) -> None:
    """Any number of channels and any type become 8-bit RGB of the same size, dark to bright."""
    dtype, top = kind
    shown = for_display(photo(channels, dtype, top))
    assert shown.shape == (20, 30, 3)
    assert shown.dtype == np.uint8
    assert shown.max() - shown.min() > 100


def test_stretch_ignores_a_hot_pixel() -> None:
    """One pixel a hundred times as bright as the rest doesn't turn the rest black."""
    image = photo(1, "uint16", 600)
    image[0, 0] = 65535
    assert np.median(for_display(image)) > 80


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_flat_and_nan_images_can_be_shown(value: float) -> None:
    """An image of one value, or of none, is shown flat, without a warning."""
    shown = for_display(np.full((4, 5, 1), value, dtype=np.float32))
    assert len(np.unique(shown)) == 1


def test_overlay_paints_inside_and_outlines() -> None:
    """Far from the mask nothing changes; inside, the colour is mixed in; the edge is the colour."""
    image, mask = photo(), square()
    painted = overlay(image, mask, colour=(255, 0, 0), strength=0.5)
    assert np.array_equal(painted[:3], image[:3])
    assert painted[10, 10] == pytest.approx(image[10, 10] * 0.5 + (127.5, 0, 0), abs=1)
    assert np.array_equal(painted[5, 10], (255, 0, 0))
    assert np.array_equal(image, photo()), "the image itself is left alone"


@pytest.mark.parametrize("share", [0, 1])
def test_overlay_of_empty_and_full_masks(share: int) -> None:
    """An empty mask paints nothing; a full one paints all, and the image's edge is no outline."""
    image = photo()
    painted = overlay(image, np.full((20, 30), bool(share)), colour=(0, 0, 255), strength=0.5)
    expected = image * (1 - 0.5 * share) + np.array((0, 0, 127.5)) * share
    assert painted == pytest.approx(expected, abs=1)


def test_cutout_is_transparent_outside() -> None:
    """The alpha is as given; colours stay where it is 0 or 1."""
    image, mask = photo(), square()
    cut = cutout(image, mask.astype(np.float32))
    assert cut.shape == (20, 30, 4)
    assert np.array_equal(cut[:, :, :3], image)
    assert np.array_equal(cut[:, :, 3], mask * 255)


def test_edges_are_soft_and_have_the_objects_colour() -> None:
    """The alpha is a half on the outline between two pixels' centres, and no background stays."""
    y, x = np.mgrid[:60, :60]
    distance = (20 - np.hypot(y - 30, x - 30)).astype(np.float32)
    probability = 1 / (1 + np.exp(-distance))
    mask = probability > 0.5
    alpha = soft_alpha(mask, probability, 0.5)
    assert alpha == pytest.approx(np.clip(0.5 + distance / 4, 0, 1), abs=0.15)
    assert np.array_equal(alpha >= 0.5, distance >= 0)
    blur = np.clip(0.5 + distance / 3, 0, 1)[:, :, None]
    image = np.rint(blur * (200, 60, 40) + (1 - blur) * (20, 120, 60)).astype(np.uint8)
    cut = cutout(image, alpha)
    shown = (alpha > 0.02) & (alpha < 1)
    assert shown.sum() > 300
    assert np.abs(cut[shown][:, :3].astype(int) - (200, 60, 40)).max() <= 30
    assert np.abs(image[shown].astype(int) - (200, 60, 40)).max() > 100, "the image itself is mixed"


def test_cutouts_end_around_the_object_and_lie_on_a_colour() -> None:
    """Rows and columns around the mask, cut off at the image's edge; white is white."""
    image, mask = photo(), np.zeros((20, 30), bool)
    mask[5:8, 20:29] = True
    cut = cutout(image, mask.astype(np.float32))[cropped(mask, 3)]
    assert cut.shape == (9, 13, 4)
    assert cropped(np.zeros((4, 4), bool), 2) == (slice(None), slice(None))
    white = on_colour(cut, (255, 255, 255))
    assert np.array_equal(white[3:6, 3:12], image[5:8, 20:29])
    assert (white[:3] == 255).all()


def test_error_map_colours_what_it_says() -> None:
    """Missed pixels lean to the colour of missed, extra ones to extra, ignored to ignored."""
    truth = np.array([[True, True, False, False, True]])
    prediction = np.array([[True, False, True, False, False]])
    valid = np.array([[True, True, True, True, False]])
    grey = np.full((1, 5, 1), 100, dtype=np.uint8)
    found = error_map(grey, truth, prediction, valid)[0].astype(int)
    colours = {name: np.array(colour) for name, colour in ERROR_COLOURS.items()}
    nearest = [
        min(colours, key=lambda name: np.abs(colours[name] - pixel).sum()) for pixel in found
    ]
    assert nearest[1:3] == ["missed", "extra"]
    assert nearest[4] == "ignored"
    assert len(set(found[0])) == len(set(found[3])) == 1, "right pixels are grey"
    assert found[0, 0] > found[3, 0], "and brighter where an object was found"


def test_error_colours_differ_in_brightness() -> None:
    """Found, missed and extra can be told apart in a grey print too."""
    weights = np.array([0.299, 0.587, 0.114])
    brightness = sorted(float(weights @ colour) for colour in ERROR_COLOURS.values())
    assert np.diff(brightness).min() > 2
