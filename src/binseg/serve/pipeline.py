"""From an image's bytes to an encoded result, with images of other requests in between."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import Response
from jaxtyping import Bool, Float32, Num, UInt8

from binseg.errors import ImageError
from binseg.imageio import ImageInfo, encode_image
from binseg.imageio.cage import Cage
from binseg.inference.predict_options import PredictOptions
from binseg.inference.predictor import ModelPredictor
from binseg.inference.quality import Quality
from binseg.parallel import give_way
from binseg.report import for_display
from binseg.serve.incoming import Judged, Output, Upload
from binseg.serve.limits import Limits, Reservation
from binseg.serve.model_registry import ServedModel
from binseg.serve.refusals import Refusal
from binseg.transforms.geometry import plan, resize_image
from binseg.transforms.preprocess import prepare, reduction

_MOST_OUTLINE = 4_000_000  # Pixel sides of outlines in JSON; noise has more, and takes minutes
_MOST_SIDE = 4096  # Longest side of a preview; browsers refuse canvases that are much larger
_LARGE = 4_000_000  # Pixels above which an image gives way to smaller ones
_MOST_INPUT = 16  # Pixels of inputs for each of an image: tiles overlap, may be enlarged
_ITEM_BYTES = {"uint8": 1, "uint16": 2, "float32": 4}
_AGAIN_S = 0.05
R = TypeVar("R")


class Pipeline:
    """Threads around the models' batches: some decode and encode, one a model computes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.cage = Cage(limits.workers)
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="binseg-images")
        self._large_pool = ThreadPoolExecutor(limits.workers, initializer=give_way)
        self._job_pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="binseg-incoming")
        self.num_coming = 0  # Images not decoded yet, or waiting in a model's line

    async def in_thread(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Run a function in a thread; cancelling drops what hasn't begun, and kills a decoder."""
        return await self._run(self._pool, partial(function, *args, **kwargs))

    async def aside(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Do as `in_thread`, giving way to other threads: for what takes long, as large images."""
        return await self._run(self._large_pool, partial(function, *args, **kwargs))

    async def for_job(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Do as `in_thread`, in threads of their own: a slow disk keeps no image waiting."""
        return await self._run(self._job_pool, partial(function, *args, **kwargs))

    async def _run(self, pool: ThreadPoolExecutor, function: Callable[[], R]) -> R:
        worker: list[int] = []

        def work() -> R:
            worker.append(threading.get_ident())
            try:
                return function()
            finally:
                worker.clear()

        future = pool.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            while not future.done():
                for thread in worker.copy():
                    self.cage.stop(thread)
                await asyncio.sleep(_AGAIN_S)
            raise

    async def predict(
        self,
        model: ServedModel,
        sent: Upload,
        wanted: Judged,
        *,
        output: Output,
        reserved: Reservation,
    ) -> Response:
        """Predict one image; raises Refusal (too large, too much in it) and BinsegError."""
        start = time.perf_counter()
        predictor = model.predictor.with_options(wanted.options())
        judges = wanted.quality and predictor.judge is not None
        keeps = "reduced" if judges or output == "json" else None
        keeps = "whole" if output in ("overlay", "cutout") else keeps
        self.num_coming += 1
        try:
            how: dict[str, Any] = {"limits": self._limits, "reserved": reserved, "keeps": keeps}
            predictor, image_HWC, facts, inputs_NHWC = await self.in_thread(
                take_in, self.cage, sent, predictor, **how
            )
            assert model.batcher is not None, "models are open while the server runs"
            is_large = math.prod(facts["size"]) > _LARGE
            order = model.batcher.submit(inputs_NHWC, is_large=is_large)
            maps_NHW = await asyncio.wrap_future(order)
        finally:
            self.num_coming -= 1
        run = self.aside if is_large else self.in_thread
        data, media, quality = await run(
            _encode, predictor, image_HWC, maps_NHW, facts=facts, output=output, judges=judges
        )
        (height, width), pixel = facts["size"], facts["pixel_size"]
        headers = {
            "X-Binseg-Model": model.id,
            "X-Binseg-Threshold": repr(predictor.threshold),
            "X-Binseg-Size": f"{width}x{height}",
            "X-Binseg-Seconds": f"{time.perf_counter() - start:.4f}",
            **({"X-Binseg-Pixel-Um": f"{pixel.width:g}x{pixel.height:g}"} if pixel else {}),
            **quality_header(quality),
        }
        return Response(data, media_type=media, headers=headers)

    def close(self) -> None:
        """Finish what was begun, but for decoding, which is given up."""
        self.cage.close()
        for pool in (self._pool, self._large_pool, self._job_pool):
            pool.shutdown(wait=True, cancel_futures=True)


def _check_header(info: ImageInfo, *, name: str, limits: Limits) -> None:
    """Refuse what is too large, or a stack, before it is unpacked."""
    if info.num_pages > 1:
        told = f"{name}: a stack of {info.num_pages} pages; send it as a job (POST /v1/jobs)."
        raise Refusal(422, "stack", told)
    if info.height * info.width > limits.max_pixels or _num_bytes(info) > 8 * limits.max_pixels:
        told = (
            f"{name}: {info.width} x {info.height} pixels of {info.channels} channels; up to "
            f"{limits.max_pixels / 1e6:,.0f} megapixels are answered at once. Send it as a job "
            "(POST /v1/jobs), or smaller."
        )
        raise Refusal(413, "too_many_pixels", told)


def take_in(
    cage: Cage,
    sent: Upload,
    predictor: ModelPredictor,
    *,
    limits: Limits,
    reserved: Reservation,
    keeps: str | None,
) -> tuple[ModelPredictor, Num[np.ndarray, "H W C"], dict[str, Any], UInt8[np.ndarray, "N H W C"]]:
    """Decode an image and make the model's inputs; its pixels are counted beforehand.

    Gives the predictor for the size of its pixels, and the image whole, reduced as the model takes
    it, or black where it isn't to be kept; its other facts are those of a Prediction. Raises
    Refusal and ImageError.
    """
    name = sent.name
    with cage.open(sent.data, name=name, any_page=True) as opened:
        info = opened.info()
        _check_header(info, name=name, limits=limits)
        pixel_size = opened.pixel_size()
        fit = predictor.scaled_to(pixel_size, PredictOptions())
        assert isinstance(fit, ModelPredictor)
        preprocessing = fit.preprocessing
        placements = plan(info.height, info.width, preprocessing)
        num_inputs = len(placements)
        input_pixels = num_inputs * placements[0].height * placements[0].width
        if num_inputs > 1 and input_pixels > _MOST_INPUT * limits.max_pixels:
            told = f"at this model's scale it makes {num_inputs:,} tiles, too many at once"
            hint = "send it as a job (POST /v1/jobs)"
            raise Refusal(413, "too_many_pixels", f"{name}: {told}; {hint}.")
        per_pixel = preprocessing.channels + 4
        reserved.grow(_num_bytes(info) + 6 * info.height * info.width + per_pixel * input_pixels)
        size = (info.height, info.width)
        by = reduction(size, preprocessing)
        image_HWC, valid_HW = opened.reduced(by), opened.valid()
        inputs_NHWC, _ = prepare(image_HWC, preprocessing, name=name, size=size)
        facts: dict[str, Any] = {"size": size, "name": name, "valid_HW": valid_HW}
        facts["pixel_size"] = pixel_size
        if keeps == "whole":
            image_HWC = image_HWC if image_HWC.shape[:2] == size else opened.image()
            facts["cover"] = opened.cover()
    if keeps is None:
        image_HWC = np.broadcast_to(np.uint8(0), (*size, 1))
    return fit, image_HWC, facts, inputs_NHWC


def quality_header(found: Quality | None) -> dict[str, str]:
    """Say how good a mask probably is, as JSON in a header; nothing where the model can't judge."""
    return {} if found is None else {"X-Binseg-Quality": json.dumps(found.as_dict())}


def preview(cage: Cage, sent: Upload, *, limits: Limits, reserved: Reservation) -> Response:
    """Turn any image into a PNG for browsers, and tell its size; raises Refusal and ImageError."""
    with cage.open(sent.data, name=sent.name, any_page=True) as opened:
        info = opened.info()
        _check_header(info, name=sent.name, limits=limits)
        reserved.grow(_num_bytes(info) + 8 * info.height * info.width)
        image_HWC = opened.image()
    height, width = image_HWC.shape[:2]
    if image_HWC.dtype == np.float32 and not np.isfinite(image_HWC).all():
        raise ImageError(f"{sent.name}: holds NaN or infinite pixels; replace them by numbers")
    image_HWC = image_HWC[:, :, :3] if image_HWC.shape[2] > 3 else image_HWC
    shrink = max(height, width) / _MOST_SIDE
    if shrink > 1:
        size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
        image_HWC = resize_image(image_HWC, *size)
    png = encode_image(for_display(image_HWC))
    return Response(png, media_type="image/png", headers={"X-Binseg-Size": f"{width}x{height}"})


def check_outline(mask_HW: Bool[np.ndarray, "H W"]) -> None:
    """Refuse masks of noise, whose outlines would take minutes and gigabytes."""
    length = np.count_nonzero(mask_HW[:, 1:] != mask_HW[:, :-1])
    length += np.count_nonzero(mask_HW[1:] != mask_HW[:-1])
    if length > _MOST_OUTLINE:
        told = (
            f"The mask's outlines are {length:,} pixels long, too many for JSON; choose another "
            "threshold or a larger min_area, or take the mask."
        )
        raise Refusal(422, "too_many_outlines", told)


def _encode(
    predictor: ModelPredictor,
    image_HWC: Num[np.ndarray, "H W C"],
    maps_NHW: Float32[np.ndarray, "N H W"],
    *,
    facts: dict[str, Any],
    output: Output,
    judges: bool,
) -> tuple[bytes, str, Quality | None]:
    """Join the maps of all inputs at the image's size, encode what was asked for, and judge it."""
    prediction = predictor.prediction_of(image_HWC, maps_NHW, **facts)
    if not judges:  # the image may be a stub
        prediction = replace(prediction, judge=None)
    if output == "json":
        check_outline(prediction.mask)
    return *prediction.encode(output), prediction.quality


def _num_bytes(info: ImageInfo) -> int:
    return info.height * info.width * info.channels * _ITEM_BYTES[info.dtype]
