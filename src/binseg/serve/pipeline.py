"""From an image's bytes to an encoded result, with images of other requests in between."""

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Num, UInt8

from binseg.errors import BinsegError, ImageError
from binseg.imageio import ImageInfo, encode_image
from binseg.imageio.cage import Cage
from binseg.inference.predictor import ModelPredictor
from binseg.report import for_display
from binseg.serve.limits import Limits, Reservation
from binseg.serve.model_registry import ServedModel
from binseg.serve.queries import Output, Wanted
from binseg.serve.refusals import Refusal, refusal_of
from binseg.serve.threads import Threads
from binseg.serve.uploads import Upload
from binseg.transforms.geometry import plan, resize_image
from binseg.transforms.preprocess import prepare
from binseg.types import Preprocessing

_MOST_OUTLINE = 4_000_000
"""Pixel sides along outlines that JSON is made of; noise has more, and would take minutes."""
_MOST_SIDE = 4096
"""Longest side of a preview; browsers refuse canvases that are much larger."""
_MOST_INPUT = 16
"""Pixels of inputs for each pixel that an image may have: tiles overlap and may be enlarged."""
_ITEM_BYTES = {"uint8": 1, "uint16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class EncodedResult:
    """The response to one image."""

    data: bytes
    media: str
    headers: dict[str, str]


class Pipeline:
    """Threads around the models' batches: some decode and encode, one a model computes.

    Args:
        limits: how many threads, how large images may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = Threads(limits.workers)
        self.cage = self._threads.cage
        self.in_thread = self._threads.run
        self.num_coming = 0
        """Images on their way to a model: not decoded yet, or waiting in its line."""

    async def predict(
        self,
        model: ServedModel,
        sent: Upload,
        wanted: Wanted,
        *,
        output: Output,
        reserved: Reservation,
    ) -> EncodedResult:
        """Predict one image.

        Raises:
            Refusal: too large, or too much in it.
            BinsegError: no image, or not one for this model.
        """
        start = time.perf_counter()
        predictor = model.predictor.with_options(wanted.options())
        self.num_coming += 1
        try:
            image_HWC, inputs_NHWC = await self.in_thread(
                take_in,
                self.cage,
                sent.data,
                predictor.preprocessing,
                name=sent.name,
                limits=self._limits,
                reserved=reserved,
                keeps_image=output in ("overlay", "cutout"),
            )
            maps_NHW = await asyncio.wrap_future(model.batcher.submit(inputs_NHWC))
        finally:
            self.num_coming -= 1
        data, media = await self.in_thread(
            _encode, predictor, image_HWC, maps_NHW, name=sent.name, output=output
        )
        headers = {
            "X-Binseg-Model": model.id,
            "X-Binseg-Threshold": repr(predictor.threshold),
            "X-Binseg-Size": f"{image_HWC.shape[1]}x{image_HWC.shape[0]}",
            "X-Binseg-Seconds": f"{time.perf_counter() - start:.4f}",
        }
        return EncodedResult(data=data, media=media, headers=headers)

    async def try_predict(
        self,
        model: ServedModel,
        sent: Upload,
        wanted: Wanted,
        *,
        output: Output,
        reserved: Reservation,
    ) -> EncodedResult | Refusal:
        """Do as `predict`, but give a refusal back: one of several images may fail."""
        try:
            return await self.predict(model, sent, wanted, output=output, reserved=reserved)
        except Refusal as refusal:
            return refusal
        except BinsegError as error:
            return refusal_of(error)

    def close(self) -> None:
        """Finish what was begun, but for decoding, which is given up."""
        self._threads.close()


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
) -> tuple[Num[np.ndarray, "H W C"], UInt8[np.ndarray, "N H W C"]]:
    """Decode an image and make the model's inputs; its pixels are counted beforehand.

    Without `keeps_image`, the image is one black value for all pixels.

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
    if not keeps_image:
        image_HWC = np.broadcast_to(np.uint8(0), (*image_HWC.shape[:2], 1))
    return image_HWC, inputs_NHWC


def preview(
    cage: Cage, data: bytes, *, name: str, limits: Limits, reserved: Reservation
) -> tuple[bytes, tuple[int, int]]:
    """Turn any image into a PNG that browsers show, and tell its own height and width.

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


def check_outline(mask_HW: Bool[np.ndarray, "H W"]) -> None:
    """Refuse masks of noise, whose outlines would take minutes and gigabytes.

    Raises:
        Refusal: 422.
    """
    length = np.count_nonzero(mask_HW[:, 1:] != mask_HW[:, :-1])
    length += np.count_nonzero(mask_HW[1:] != mask_HW[:-1])
    if length > _MOST_OUTLINE:
        raise Refusal(
            422,
            "too_many_outlines",
            f"The mask's outlines are {length:,} pixels long, too many for JSON; choose another "
            "threshold or a larger min_area, or take the mask.",
        )


def _encode(
    predictor: ModelPredictor,
    image_HWC: Num[np.ndarray, "H W C"],
    maps_NHW: Float32[np.ndarray, "N H W"],
    *,
    name: str,
    output: Output,
) -> tuple[bytes, str]:
    """Join the maps of all inputs at the image's size, and encode what was asked for."""
    prediction = predictor.prediction_of(image_HWC, maps_NHW, name=name)
    if output == "json":
        check_outline(prediction.mask)
    return prediction.encode(output)


def _num_bytes(info: ImageInfo) -> int:
    return info.height * info.width * info.channels * _ITEM_BYTES[info.dtype]
