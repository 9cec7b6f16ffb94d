"""Bytes become pixels, after the header was looked at."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num, UInt8

from binseg.errors import ImageError
from binseg.imageio import ImageInfo, encode_image
from binseg.imageio.cage import Cage
from binseg.report import for_display
from binseg.serve.limits import Limits, Reservation
from binseg.serve.refusals import Refusal
from binseg.transforms.geometry import plan, resize_image
from binseg.transforms.preprocess import prepare
from binseg.types import Preprocessing

__all__ = ["DecodedImage", "check_header", "preview", "take_in"]

_MOST_SIDE = 4096
"""Of a preview; browsers refuse canvases that are much larger."""
_MOST_INPUT = 16
"""Pixels of inputs for each pixel that an image may have: tiles overlap and may be enlarged."""
_ITEM_BYTES = {"uint8": 1, "uint16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image that was read, and what the model gets of it."""

    height: int
    width: int
    inputs_NHWC: UInt8[np.ndarray, "N H W C"]
    image_HWC: Num[np.ndarray, "H W C"] | None
    """Only where the answer shows it."""


def check_header(info: ImageInfo, *, name: str, limits: Limits) -> None:
    """Refuse what is too large before it is unpacked.

    Raises:
        Refusal: 413, too many pixels or channels; 422, a stack.
    """
    if info.num_pages > 1:
        raise Refusal(
            422,
            "stack",
            f"{name}: a stack of {info.num_pages} pages; send it as a job (POST /v1/jobs).",
        )
    if info.height * info.width > limits.max_pixels or _num_bytes(info) > 8 * limits.max_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name}: {info.width} x {info.height} pixels of {info.channels} channels; up to "
            f"{limits.max_pixels / 1e6:,.0f} megapixels are answered at once. Send it as a job "
            "(POST /v1/jobs), or smaller.",
        )


def take_in(
    cage: Cage,
    data: bytes,
    preprocessing: Preprocessing,
    *,
    name: str,
    limits: Limits,
    reserved: Reservation,
    keeps_image: bool,
) -> DecodedImage:
    """Read an image and make the model's inputs.

    Args:
        cage: decodes it.
        data: the file.
        preprocessing: of the model.
        name: what refusals call the image.
        limits: how large it may be.
        reserved: counts its pixels.
        keeps_image: whether the image itself is needed later.

    Raises:
        Refusal: too large, or no room.
        ImageError: no image, or not one for this model.
    """
    with cage.open(data, name=name) as opened:
        info = opened.info
        check_header(info, name=name, limits=limits)
        placements = plan(info.height, info.width, preprocessing)
        num_inputs = len(placements)
        input_pixels = num_inputs * placements[0].height * placements[0].width
        if num_inputs > 1 and input_pixels > _MOST_INPUT * limits.max_pixels:
            raise Refusal(
                413,
                "too_many_pixels",
                f"{name}: at this model's scale it makes {num_inputs:,} tiles, too many at once; "
                "send it as a job (POST /v1/jobs).",
            )
        per_pixel = preprocessing.channels + 4
        reserved.grow(_num_bytes(info) + 4 * info.height * info.width + per_pixel * input_pixels)
        image_HWC = opened.read()
    inputs_NHWC, _ = prepare(image_HWC, preprocessing, name=name)
    height, width = image_HWC.shape[:2]
    return DecodedImage(
        height=height,
        width=width,
        inputs_NHWC=inputs_NHWC,
        image_HWC=image_HWC if keeps_image else None,
    )


def preview(
    cage: Cage, data: bytes, *, name: str, limits: Limits, reserved: Reservation
) -> tuple[bytes, tuple[int, int]]:
    """Any image as a PNG that browsers show, and its own height and width.

    Raises:
        Refusal: too large, or no room.
        ImageError: no image.
    """
    with cage.open(data, name=name) as opened:
        info = opened.info
        check_header(info, name=name, limits=limits)
        reserved.grow(_num_bytes(info) + 8 * info.height * info.width)
        image_HWC = opened.read()
    height, width = image_HWC.shape[:2]
    if image_HWC.dtype == np.float32 and not np.isfinite(image_HWC).all():
        raise ImageError(f"{name}: holds NaN or infinite pixels; replace them by numbers")
    image_HWC = image_HWC[:, :, :3] if image_HWC.shape[2] > 3 else image_HWC
    shrink = max(height, width) / _MOST_SIDE
    if shrink > 1:
        size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
        image_HWC = resize_image(image_HWC, *size)
    return encode_image(for_display(image_HWC)), (height, width)


def _num_bytes(info: ImageInfo) -> int:
    return info.height * info.width * info.channels * _ITEM_BYTES[info.dtype]
