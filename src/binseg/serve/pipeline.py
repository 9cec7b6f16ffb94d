"""From an image's bytes to an encoded result, with images of other requests in between."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from jaxtyping import Bool, Float32, Num, UInt8
from starlette.requests import ClientDisconnect

from binseg.errors import BinsegError, ImageError
from binseg.imageio import ImageInfo, decode_image, encode_image, probe_bytes
from binseg.inference.predictor import Predictor
from binseg.report import for_display
from binseg.serve.bodies import Sent
from binseg.serve.capacity import Held
from binseg.serve.limits import Limits
from binseg.serve.queries import Output, Wanted
from binseg.serve.refusals import Refusal, refusal_of
from binseg.serve.shelf import ServedModel
from binseg.transforms.geometry import plan, resize_image
from binseg.transforms.preprocess import prepare
from binseg.types import Preprocessing

__all__ = ["EncodedResult", "Pipeline", "check_outline", "preview", "unless_gone"]

_MOST_OUTLINE = 4_000_000
"""Pixel sides along outlines that JSON is made of; noise has more, and would take minutes."""
_MOST_SIDE = 4096
"""Longest side of a preview; browsers refuse canvases that are much larger."""
_MOST_INPUT = 16
"""Pixels of inputs for each pixel that an image may have: tiles overlap and may be enlarged."""
_ITEM_BYTES = {"uint8": 1, "uint16": 2, "float32": 4}
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class EncodedResult:
    """What a client gets for one image."""

    data: bytes
    media: str
    model: str
    threshold: float
    height: int
    width: int
    seconds: float

    @property
    def headers(self) -> dict[str, str]:
        """The facts as headers of the response."""
        return {
            "X-Binseg-Model": self.model,
            "X-Binseg-Threshold": repr(self.threshold),
            "X-Binseg-Size": f"{self.width}x{self.height}",
            "X-Binseg-Seconds": f"{self.seconds:.4f}",
        }


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image that was read, and the model's inputs of it."""

    image_HWC: Num[np.ndarray, "H W C"]
    """One black value for all pixels where the result doesn't show the image."""
    inputs_NHWC: UInt8[np.ndarray, "N H W C"]


class Pipeline:
    """Threads around the models' batches: some decode and encode, one a model computes.

    Args:
        limits: how many threads, how large images may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="binseg-images")
        self.num_coming = 0
        """Images on their way to a model: not decoded yet, or waiting in its line."""

    async def in_thread(self, function: Callable[..., R], *given: Any, **named: Any) -> R:
        """Run a function in one of the threads; what hasn't begun is dropped on cancelling."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *given, **named))

    async def predict(
        self, model: ServedModel, sent: Sent, wanted: Wanted, *, output: Output, held: Held
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
            decoded = await self.in_thread(
                take_in,
                sent.data,
                predictor.preprocessing,
                name=sent.name,
                limits=self._limits,
                held=held,
                keeps_image=output in ("overlay", "cutout"),
            )
            maps_NHW = await asyncio.wrap_future(model.batcher.submit(decoded.inputs_NHWC))
        finally:
            self.num_coming -= 1
        data, media = await self.in_thread(
            _encode, predictor, decoded, maps_NHW, name=sent.name, output=output
        )
        height, width = decoded.image_HWC.shape[:2]
        return EncodedResult(
            data=data,
            media=media,
            model=model.id,
            threshold=predictor.threshold,
            height=height,
            width=width,
            seconds=time.perf_counter() - start,
        )

    async def try_predict(
        self, model: ServedModel, sent: Sent, wanted: Wanted, *, output: Output, held: Held
    ) -> EncodedResult | Refusal:
        """Do as `predict`, but give a refusal back: one of several images may fail."""
        try:
            return await self.predict(model, sent, wanted, output=output, held=held)
        except Refusal as refusal:
            return refusal
        except BinsegError as error:
            return refusal_of(error)

    def close(self) -> None:
        """Finish what was begun."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def look_at(data: bytes, *, name: str, limits: Limits) -> ImageInfo:
    """Read an image's header, and refuse what is too large before it is unpacked.

    Raises:
        Refusal: 413, too many pixels or channels; 422, a stack.
        ImageError: no image.
    """
    info = probe_bytes(data, name=name)
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
    return info


def take_in(
    data: bytes,
    preprocessing: Preprocessing,
    *,
    name: str,
    limits: Limits,
    held: Held,
    keeps_image: bool,
) -> DecodedImage:
    """Decode an image and make the model's inputs; its pixels are counted beforehand.

    Raises:
        Refusal: too large, or no room.
        ImageError: no image, or not one for this model.
    """
    info = look_at(data, name=name, limits=limits)
    placements = plan(info.height, info.width, preprocessing)
    num_inputs = len(placements)
    input_pixels = num_inputs * placements[0].height * placements[0].width
    if num_inputs > 1 and input_pixels > _MOST_INPUT * limits.max_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name}: at this model's scale it makes {num_inputs:,} tiles, too many at once; send "
            "it as a job (POST /v1/jobs).",
        )
    per_pixel = preprocessing.channels + 4
    held.grow(_num_bytes(info) + 4 * info.height * info.width + per_pixel * input_pixels)
    image_HWC = decode_image(data, name=name)
    inputs_NHWC, _ = prepare(image_HWC, preprocessing, name=name)
    if not keeps_image:
        image_HWC = np.broadcast_to(np.uint8(0), (*image_HWC.shape[:2], 1))
    return DecodedImage(image_HWC=image_HWC, inputs_NHWC=inputs_NHWC)


def preview(data: bytes, *, name: str, limits: Limits, held: Held) -> tuple[bytes, tuple[int, int]]:
    """Turn any image into a PNG that browsers show, and tell its own height and width.

    Raises:
        Refusal: too large, or no room.
        ImageError: no image.
    """
    info = look_at(data, name=name, limits=limits)
    held.grow(_num_bytes(info) + 8 * info.height * info.width)
    image_HWC = decode_image(data, name=name)
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


async def unless_gone(request: Request, work: Coroutine[Any, Any, R], *, seconds: float) -> R:
    """Do the work, unless the client goes away or it takes too long; then it is dropped.

    Args:
        request: whose body was read.
        work: cancelled in these cases.
        seconds: the limit.

    Raises:
        Refusal: 422, it took too long.
        ClientDisconnect: the client is gone.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if gone.done():
            raise ClientDisconnect
        raise Refusal(
            422,
            "timeout",
            f"It would take longer than {seconds:g} s; send it as a job (POST /v1/jobs).",
        )
    finally:
        gone.cancel()
        doing.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _encode(
    predictor: Predictor,
    decoded: DecodedImage,
    maps_NHW: Float32[np.ndarray, "N H W"],
    *,
    name: str,
    output: Output,
) -> tuple[bytes, str]:
    """Join the maps of all inputs at the image's size, and encode what was asked for."""
    prediction = predictor.prediction_of(decoded.image_HWC, maps_NHW, name=name)
    if output == "json":
        check_outline(prediction.mask)
    return prediction.encode(output)


def _num_bytes(info: ImageInfo) -> int:
    return info.height * info.width * info.channels * _ITEM_BYTES[info.dtype]
