"""The one place where a picture becomes model inputs, in training and in prediction alike.

    picture, any type and size -> channels and range -> placed -> uint8 input -> normalised float32

The uint8 inputs are what the cache stores and what prediction computes: the same to the bit.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Num, Shaped, UInt8

from binseg.errors import PictureError
from binseg.geometry import place, place_mask, plan
from binseg.structures import Placement, Preprocessing

__all__ = ["normalise", "prepare", "prepare_batches", "prepare_truth", "to_unit"]

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue."""
_PERCENTILES = (0.5, 99.5)
_PERCENTILE_VALUES = 1 << 22
"""Percentiles of larger pictures are taken from evenly spaced pixels, about this many values."""


def to_unit(
    image_HWC: Shaped[np.ndarray, "..."], preprocessing: Preprocessing, *, name: str = "the picture"
) -> Float32[np.ndarray, "H W channels"]:
    """Bring a picture to the model's channels and to [0, 1], at its own size.

    A grey picture is repeated to three channels, a colour one becomes grey by its luma (ITU-R 601);
    any other number of channels must match. `intensity` says what becomes 0 and 1.

    Args:
        image_HWC: uint8, uint16 or float32 (bool and float64 are taken too); other shapes and
            types are refused.
        preprocessing: the model's channels and intensity.
        name: what error messages call the picture.

    Raises:
        PictureError: the channels don't fit, the type isn't one of these, or floats leave [0, 1].
    """
    picture_HWC = _accept(image_HWC, preprocessing, name)
    low, high = _range(picture_HWC, preprocessing, name)
    return _to_range(_fit_channels(picture_HWC, preprocessing.channels), low, high)


def prepare(
    image_HWC: Shaped[np.ndarray, "..."], preprocessing: Preprocessing, *, name: str = "the picture"
) -> tuple[UInt8[np.ndarray, "N height width channels"], tuple[Placement, ...]]:
    """Make all model inputs of a picture, and say where each came from.

    Args:
        image_HWC: a picture as `to_unit` takes it.
        preprocessing: everything that decides the result.
        name: what error messages call the picture.

    Returns:
        The inputs as uint8 (0..255 stands for 0..1; padding is 0) and their placements.

    Raises:
        PictureError: as `to_unit`.
    """
    picture_HWC = _accept(image_HWC, preprocessing, name)
    low, high = _range(picture_HWC, preprocessing, name)
    placements = plan(picture_HWC.shape[0], picture_HWC.shape[1], preprocessing)
    return _inputs(picture_HWC, preprocessing.channels, low, high, placements), placements


def prepare_batches(
    image_HWC: Shaped[np.ndarray, "..."],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    name: str = "the picture",
) -> Iterator[tuple[UInt8[np.ndarray, "B height width channels"], tuple[Placement, ...]]]:
    """Make the inputs of `prepare` a few at a time, so that a huge picture's tiles fit in memory.

    Raises:
        PictureError: as `to_unit`, when the first batch is asked for.
    """
    picture_HWC = _accept(image_HWC, preprocessing, name)
    low, high = _range(picture_HWC, preprocessing, name)
    placements = plan(picture_HWC.shape[0], picture_HWC.shape[1], preprocessing)
    for start in range(0, len(placements), batch_size):
        some = placements[start : start + batch_size]
        yield _inputs(picture_HWC, preprocessing.channels, low, high, some), some


def prepare_truth(
    mask_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"],
    placements: Sequence[Placement],
) -> UInt8[np.ndarray, "N height width"]:
    """Make the targets that belong to the inputs of `prepare`.

    Returns:
        0 background, 1 foreground, 2 ignored: not valid, padding, or past the picture's edge.
    """
    assert mask_HW.shape == valid_HW.shape, (mask_HW.shape, valid_HW.shape)
    return np.stack(
        [
            np.where(
                place_mask(valid_HW, placement),
                place_mask(mask_HW, placement).astype(np.uint8),
                np.uint8(2),
            )
            for placement in placements
        ]
    )


def normalise(
    inputs_NHWC: UInt8[np.ndarray, "N H W C"], preprocessing: Preprocessing
) -> Float32[np.ndarray, "N C H W"]:
    """Turn uint8 inputs into what a network computes on: (x / 255 - mean) / std, channels first."""
    assert inputs_NHWC.dtype == np.uint8, inputs_NHWC.dtype
    mean_C11 = np.asarray(preprocessing.mean, np.float64)[:, None, None]
    std_C11 = np.asarray(preprocessing.std, np.float64)[:, None, None]
    num, height, width, channels = inputs_NHWC.shape
    out_NCHW = np.empty((num, channels, height, width), np.float32)
    np.multiply(
        inputs_NHWC.transpose(0, 3, 1, 2), (1 / (255 * std_C11)).astype(np.float32), out=out_NCHW
    )
    out_NCHW -= (mean_C11 / std_C11).astype(np.float32)
    return out_NCHW


def _accept(
    image_HWC: Shaped[np.ndarray, "..."], preprocessing: Preprocessing, name: str
) -> Num[np.ndarray, "H W C"]:
    """Refuse what can't become an input; give the rest as uint8, uint16 or float32."""
    if image_HWC.ndim != 3 or 0 in image_HWC.shape:
        raise PictureError(
            f"{name}: an array of shape {image_HWC.shape}; give height x width x channels, "
            "none of them 0"
        )
    have, want = image_HWC.shape[2], preprocessing.channels
    if have != want and (have, want) not in {(1, 3), (3, 1)}:
        raise PictureError(
            f"{name}: {have} channels, but the model takes {want} (input.channels); grey fits 3 "
            "and colour fits 1, any other number must be equal"
        )
    if image_HWC.dtype == np.bool_:
        return image_HWC.astype(np.uint8) * np.uint8(255)
    if image_HWC.dtype in (np.uint8, np.uint16, np.float32):
        picture_HWC = image_HWC
    elif image_HWC.dtype.kind == "f":
        picture_HWC = image_HWC.astype(np.float32)
    else:
        raise PictureError(
            f"{name}: pixels of type {image_HWC.dtype}; give uint8, uint16 or floats in [0, 1]"
        )
    if picture_HWC.dtype == np.float32 and not np.isfinite(picture_HWC).all():
        raise PictureError(f"{name}: holds NaN or infinite pixels; replace them by numbers")
    return picture_HWC


def _range(
    picture_HWC: Num[np.ndarray, "H W C"], preprocessing: Preprocessing, name: str
) -> tuple[float, float]:
    """Which values become 0 and 1."""
    if preprocessing.intensity == "percentile":
        return _percentile_range(picture_HWC)
    if picture_HWC.dtype != np.float32:
        return 0.0, float(np.iinfo(picture_HWC.dtype).max)
    low, high = float(picture_HWC.min()), float(picture_HWC.max())
    if low < -1e-6 or high > 1 + 1e-6:
        raise PictureError(
            f"{name}: float pixels from {low:g} to {high:g}; scale them to 0..1, or train with "
            "input.intensity: percentile"
        )
    return 0.0, 1.0


def _percentile_range(picture_HWC: Num[np.ndarray, "H W C"]) -> tuple[float, float]:
    every = int(np.ceil(np.sqrt(max(1.0, picture_HWC.size / _PERCENTILE_VALUES))))
    low, high = np.percentile(picture_HWC[::every, ::every], _PERCENTILES)
    if low < high:
        return float(low), float(high)
    # Nearly all pixels are equal (a few bright specks on black): the extremes still differ.
    return float(picture_HWC.min()), float(picture_HWC.max())


def _to_range(
    values_HWC: Num[np.ndarray, "H W C"], low: float, high: float
) -> Float32[np.ndarray, "H W C"]:
    """Stretch low..high to 0..1 and clip; a constant picture becomes 0."""
    if high <= low:
        return np.zeros(values_HWC.shape, np.float32)
    unit_HWC = values_HWC.astype(np.float32)
    unit_HWC -= np.float32(low)
    unit_HWC /= np.float32(high - low)
    return np.clip(unit_HWC, 0.0, 1.0, out=unit_HWC)


def _fit_channels(
    picture_HWC: Num[np.ndarray, "H W C"], channels: int
) -> Num[np.ndarray, "H W channels"]:
    """Repeat grey or average colour; luma is float32, anything else keeps its type."""
    have = picture_HWC.shape[2]
    if have == channels:
        return picture_HWC
    if have == 1:
        return np.repeat(picture_HWC, channels, axis=2)
    assert (have, channels) == (3, 1)
    luma_HW1 = np.zeros((*picture_HWC.shape[:2], 1), np.float32)
    for channel, weight in enumerate(_LUMA):
        luma_HW1[:, :, 0] += picture_HWC[:, :, channel] * np.float32(weight)
    return luma_HW1


def _inputs(
    picture_HWC: Num[np.ndarray, "H W C"],
    channels: int,
    low: float,
    high: float,
    placements: Sequence[Placement],
) -> UInt8[np.ndarray, "N height width channels"]:
    return np.stack([_input(picture_HWC, channels, low, high, one) for one in placements])


def _input(
    picture_HWC: Num[np.ndarray, "H W C"],
    channels: int,
    low: float,
    high: float,
    placement: Placement,
) -> UInt8[np.ndarray, "height width channels"]:
    """One uint8 input: by whole numbers for plain 8-bit pictures, by floats for the rest."""
    if picture_HWC.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        # The usual case. Placing, stretching and mixing channels are all linear, so their order
        # changes rounding only, and few pixels are mixed after a resize.
        placed_HWC = _fit_channels(place(picture_HWC, placement), channels)
        return np.rint(placed_HWC).astype(np.uint8) if placed_HWC.dtype != np.uint8 else placed_HWC
    source, target = placement.source, placement.target
    if (source.height, source.width) == (target.height, target.width):
        fitted_HWC = _fit_channels(place(picture_HWC, placement), channels)
        return _rounded(_to_range(fitted_HWC, low, high))
    # A whole picture is resized: one channel at a time, so that only one is in memory as floats.
    planes = []
    for channel in range(min(channels, picture_HWC.shape[2])):
        one_HWC = picture_HWC if channels == 1 else picture_HWC[:, :, channel : channel + 1]
        unit_HW1 = _to_range(_fit_channels(one_HWC, 1), low, high)
        planes.append(_rounded(place(unit_HW1, placement)))
    return _fit_channels(np.concatenate(planes, axis=2), channels)


def _rounded(unit_HWC: Float32[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W C"]:
    return np.rint(unit_HWC * np.float32(255)).astype(np.uint8)
