"""The one place where an image becomes model inputs, in training and in prediction alike.

    image, any type and size -> channels and range -> placed -> whole numbers -> normalised float32

The inputs, uint8 (or uint16 where 8 bits would hide objects), are what the cache stores and what
prediction computes: the same to the bit.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Num, Shaped, UInt, UInt8

from binseg.errors import ImageError
from binseg.imageio.decoding import without
from binseg.transforms.geometry import (
    place,
    place_mask,
    plan,
    reduce_image,
    resize_image,
    scaled_size,
)
from binseg.types import IGNORE, AnyImage, Box, Mask, Placement, Preprocessing

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601 weights of red, green and blue
Bounds = tuple[tuple[float, ...], tuple[float, ...]]
"""Values that become 0, and values that become 1: one for each channel, or one for all."""
Size = tuple[int, int]
"""Height and width in pixels."""
LEAST_LEFT, MOST_REDUCED = 2, 64
"""Images are averaged while they stay so many times larger than the input; and at most so far."""
_PERCENTILES = (0.5, 99.5)
_PERCENTILE_VALUES = 1 << 22
"""Percentiles of larger images are taken from evenly spaced pixels, about this many values."""


def reduction(size: Size, preprocessing: Preprocessing | None) -> int:
    """Tell over how many pixels a side an image of 8 bits is averaged before it is resized.

    A power of two, for images that become one input and stay at least twice as large as it. JPEG's
    decoder averages at no cost (`read_reduced`); everyone else averages squares of pixels. None
    stands for several models of different inputs.

    >>> reduction((3000, 4000), Preprocessing()), reduction((1000, 4000), Preprocessing())
    (4, 1)
    """
    if preprocessing is None or preprocessing.resize == "tile":
        return 1
    if preprocessing.intensity != "dtype" or preprocessing.nodata is not None:
        return 1
    if preprocessing.depth > 8:
        return 1
    target = plan(*size, preprocessing)[0].target
    times = min(size[0] // target.height, size[1] // target.width) // LEAST_LEFT
    return min(MOST_REDUCED, 1 << max(0, times.bit_length() - 1))


def prepare(
    image_HWC: Shaped[np.ndarray, "..."],
    preprocessing: Preprocessing,
    *,
    name: str = "the image",
    size: Size | None = None,
) -> tuple[UInt[np.ndarray, "N height width channels"], tuple[Placement, ...]]:
    """Make all model inputs of an image (uint8 or uint16 by `depth`), with their placements.

    Grey is repeated to three channels, colour becomes luma. `name` is for messages, `size` the own
    height and width of what the decoder reduced. Raises ImageError for other channels and types.
    """
    everything = prepare_batches(
        image_HWC, preprocessing, batch_size=sys.maxsize, name=name, size=size
    )
    return next(everything)


def prepare_batches(
    image_HWC: Shaped[np.ndarray, "..."],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    name: str = "the image",
    size: Size | None = None,
) -> Iterator[tuple[UInt[np.ndarray, "B height width channels"], tuple[Placement, ...]]]:
    """Make the inputs of `prepare` a few at a time, so that a huge image's tiles fit in memory."""
    original_HWC, bounds = _opened(image_HWC, preprocessing, name)
    size = size or (original_HWC.shape[0], original_HWC.shape[1])
    placements = plan(*size, preprocessing)
    box, by = None, reduction(size, preprocessing) if original_HWC.dtype == np.uint8 else 1
    if by > 1:
        done = 1 << round(math.log2(max(size) / max(original_HWC.shape[:2])))  # by the decoder
        original_HWC = reduce_image(original_HWC, by // done) if by > done else original_HWC
        box = (0.0, 0.0, size[1] / by, size[0] / by)  # the last pixels may be parts of one

    def resized(region_HWC: Num[np.ndarray, "h w C"], height: int, width: int) -> np.ndarray:
        return _resized(region_HWC, preprocessing, bounds, (height, width), box)

    for start in range(0, len(placements), batch_size):
        some = placements[start : start + batch_size]
        sources = some
        if box is not None:  # the one input's source is all that there is
            tall, wide = original_HWC.shape[:2]
            sources = (replace(some[0], source=Box(top=0, left=0, height=tall, width=wide)),)
        yield np.stack([place(original_HWC, one, resize=resized) for one in sources]), some


def prepare_image(
    image_HWC: Shaped[np.ndarray, "..."], preprocessing: Preprocessing, *, name: str = "the image"
) -> UInt[np.ndarray, "H2 W2 channels"]:
    """Make the whole image from which training cuts patches (tiles); raises as `prepare`."""
    original_HWC, bounds = _opened(image_HWC, preprocessing, name)
    size = scaled_size(original_HWC.shape[0], original_HWC.shape[1], preprocessing)
    return _resized(original_HWC, preprocessing, bounds, size)


def prepare_region(
    region_HWC: Shaped[np.ndarray, "h w C"],
    size: Size,
    preprocessing: Preprocessing,
    *,
    values: Bounds,
    rows: tuple[float, float] | None = None,
    name: str = "the image",
) -> UInt[np.ndarray, "height width channels"]:
    """Make an input, or `rows` of it, of a part of a huge image; raises as `prepare`."""
    accepted_HWC = _accept(region_HWC, preprocessing, name)
    box = rows and (0.0, rows[0], float(accepted_HWC.shape[1]), rows[1])
    return _resized(accepted_HWC, preprocessing, values, size, box)


def known_range(dtype: str, preprocessing: Preprocessing) -> Bounds | None:
    """Give the values that become 0 and 1 by the pixels' type; None where the pixels decide."""
    if preprocessing.intensity == "percentile":
        return None
    return (0.0,), (1.0 if dtype == "float32" else float(np.iinfo(dtype).max),)


def percentile_step(num_values: int) -> int:
    """Give the step between the rows and columns that percentiles of so many values look at."""
    return int(np.ceil(np.sqrt(max(1.0, num_values / _PERCENTILE_VALUES))))


def percentile_range(
    sample_NC: Num[np.ndarray, "N C"], extremes: tuple[Num[np.ndarray, " C"], Num[np.ndarray, " C"]]
) -> Bounds:
    """Give 0 and 1 by the percentiles of every `percentile_step`th row and column, or extremes."""
    bounds = np.percentile(sample_NC, _PERCENTILES, axis=0)
    # Where nearly all pixels are equal (a few bright specks on black) the extremes still differ.
    low_C, high_C = np.where(bounds[0] < bounds[1], bounds, np.stack(extremes))
    return tuple(low_C.tolist()), tuple(high_C.tolist())


def prepare_truth(
    mask_HW: Mask, valid_HW: Mask, placements: Sequence[Placement]
) -> UInt8[np.ndarray, "N height width"]:
    """Make the targets of the inputs of `prepare`: 0, 1, and `IGNORE` where nothing is known."""
    assert mask_HW.shape == valid_HW.shape, (mask_HW.shape, valid_HW.shape)
    targets_NHW = np.stack([place_mask(mask_HW, one) for one in placements]).astype(np.uint8)
    targets_NHW[~np.stack([place_mask(valid_HW, one) for one in placements])] = IGNORE
    return targets_NHW


def normalise(
    inputs_NHWC: UInt[np.ndarray, "N H W C"], preprocessing: Preprocessing
) -> Float32[np.ndarray, "N C H W"]:
    """Turn inputs into what a network computes on: (x / top - mean) / std, channels first."""
    assert inputs_NHWC.dtype == preprocessing.pixel_type, inputs_NHWC.dtype
    mean_C11 = np.asarray(preprocessing.mean, np.float64)[:, None, None]
    std_C11 = np.asarray(preprocessing.std, np.float64)[:, None, None]
    factor_C11 = (1 / (preprocessing.top * std_C11)).astype(np.float32)
    out_NCHW = np.multiply(inputs_NHWC.transpose(0, 3, 1, 2), factor_C11, order="C")
    out_NCHW -= (mean_C11 / std_C11).astype(np.float32)
    return np.asarray(out_NCHW)


def _accept(
    image_HWC: Shaped[np.ndarray, "..."], preprocessing: Preprocessing, name: str
) -> AnyImage:
    """Refuse what can't become an input; give the rest as uint8, uint16 or float32."""
    if image_HWC.ndim != 3 or 0 in image_HWC.shape:
        told = "give height x width x channels, none of them 0"
        raise ImageError(f"{name}: an array of shape {image_HWC.shape}; {told}")
    have, want = image_HWC.shape[2], preprocessing.channels
    if have != want and (have, want) not in {(1, 3), (3, 1)}:
        raise ImageError(
            f"{name}: {have} channels, but the model takes {want} (input.channels); grey fits 3 "
            "and colour fits 1, any other number must be equal"
        )
    if image_HWC.dtype == np.bool_:
        return image_HWC.astype(np.uint8) * np.uint8(255)
    if image_HWC.dtype in (np.uint8, np.uint16):
        return image_HWC
    if image_HWC.dtype.kind != "f":
        told = "give uint8, uint16 or floats in [0, 1]"
        raise ImageError(f"{name}: pixels of type {image_HWC.dtype}; {told}")
    original_HWC = image_HWC.astype(np.float32, copy=False)
    if not np.isfinite(original_HWC).all():
        raise ImageError(f"{name}: holds NaN or infinite pixels; replace them by numbers")
    low, high = float(original_HWC.min()), float(original_HWC.max())
    if preprocessing.intensity == "dtype" and (low < -1e-6 or high > 1 + 1e-6):
        raise ImageError(
            f"{name}: float pixels from {low:g} to {high:g}; scale them to 0..1, or train with "
            "input.intensity: percentile"
        )
    return original_HWC


def _opened(
    image_HWC: Shaped[np.ndarray, "..."], preprocessing: Preprocessing, name: str
) -> tuple[AnyImage, Bounds]:
    """Give an image as it can be worked on, and the values of it that become 0 and 1."""
    if preprocessing.nodata is not None and image_HWC.ndim == 3:
        image_HWC, _ = without(image_HWC, preprocessing.nodata)
    original_HWC = _accept(image_HWC, preprocessing, name)
    bounds = known_range(original_HWC.dtype.name, preprocessing)
    if bounds is None:
        every = percentile_step(original_HWC.size)
        # One axis after the other, which numpy does a hundred times as fast as both.
        extremes = original_HWC.min(axis=0).min(axis=0), original_HWC.max(axis=0).max(axis=0)
        sample_NC = original_HWC[::every, ::every].reshape(-1, original_HWC.shape[2])
        bounds = percentile_range(sample_NC, extremes)
    return original_HWC, bounds


def _to_range(values_HWC: AnyImage, bounds: Bounds) -> Float32[np.ndarray, "H W C"]:
    """Stretch the bounds to 0..1 and clip; a constant channel becomes 0."""
    low_C, high_C = (np.array(one, np.float64) for one in bounds)
    width_C = np.where(high_C > low_C, high_C - low_C, np.inf)
    unit_HWC = values_HWC.astype(np.float32)
    unit_HWC -= low_C.astype(np.float32)
    unit_HWC /= width_C.astype(np.float32)
    return np.clip(unit_HWC, 0.0, 1.0, out=unit_HWC)


def _fit_channels(original_HWC: AnyImage, channels: int) -> Num[np.ndarray, "H W channels"]:
    """Repeat grey or average colour; luma is float32, anything else keeps its type."""
    have = original_HWC.shape[2]
    if have == channels:
        return original_HWC
    if have == 1:
        return np.repeat(original_HWC, channels, axis=2)
    assert (have, channels) == (3, 1)
    weighed = (original_HWC[:, :, at] * np.float32(share) for at, share in enumerate(LUMA))
    return np.asarray(sum(weighed, np.zeros(original_HWC.shape[:2], np.float32)))[:, :, None]


def _resized(
    region_HWC: Num[np.ndarray, "h w C"],
    preprocessing: Preprocessing,
    bounds: Bounds,
    size: Size,
    box: tuple[float, float, float, float] | None = None,
) -> UInt[np.ndarray, "height width channels"]:
    """Make whole numbers at a new size: of 8-bit images by whole numbers, of the rest by floats."""
    channels, top = preprocessing.channels, np.float32(preprocessing.top)
    dtype = np.dtype(preprocessing.pixel_type)
    if region_HWC.dtype == np.uint8 == dtype and bounds == ((0.0,), (255.0,)):
        # The usual case. Placing, stretching and mixing channels are all linear, so their order
        # changes rounding only, and few pixels are mixed after a resize.
        placed_HWC = _fit_channels(resize_image(region_HWC, *size, box=box), channels)
        return np.rint(placed_HWC).astype(np.uint8) if placed_HWC.dtype != np.uint8 else placed_HWC
    if channels < region_HWC.shape[2]:  # colours become grey, which needs them all at once
        unit_HWC = _fit_channels(_to_range(region_HWC, bounds), channels)
        unit_HWC = resize_image(unit_HWC, *size, box=box)
        return np.rint(unit_HWC * top).astype(dtype)
    # One channel at a time, so that only one of a whole image is in memory as floats.
    planes = []
    for channel in range(region_HWC.shape[2]):
        own = slice(channel, channel + 1)
        of_own = bounds if len(bounds[0]) == 1 else (bounds[0][own], bounds[1][own])
        unit_HW1 = resize_image(_to_range(region_HWC[:, :, own], of_own), *size, box=box)
        planes.append(np.rint(unit_HW1 * top).astype(dtype))
    return _fit_channels(np.concatenate(planes, axis=2), channels)
