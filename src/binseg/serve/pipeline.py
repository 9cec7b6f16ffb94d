"""From an image's bytes to an answer's bytes, with others in between."""

import asyncio
import time
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32

from binseg.errors import BinsegError
from binseg.inference.outputs import Answer, encode_output
from binseg.serve.images import DecodedImage, take_in
from binseg.serve.limits import Limits, Reservation
from binseg.serve.model_registry import ServedModel
from binseg.serve.queries import Output, Wanted
from binseg.serve.refusals import Refusal, refusal_of
from binseg.serve.threads import Threads
from binseg.serve.uploads import Upload

__all__ = ["EncodedResult", "Pipeline", "check_outline"]

_MOST_OUTLINE = 4_000_000
"""Pixel sides along outlines that JSON is made of; noise has more, and would take minutes."""
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class EncodedResult:
    """An answer, encoded."""

    data: bytes
    media: str
    model: str
    threshold: float
    height: int
    width: int
    seconds: float

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's headers say."""
        return {
            "X-Binseg-Model": self.model,
            "X-Binseg-Threshold": repr(self.threshold),
            "X-Binseg-Size": f"{self.width}x{self.height}",
            "X-Binseg-Seconds": f"{self.seconds:.4f}",
        }


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
        """Answer one image.

        Raises:
            Refusal: too large, or too much in it.
            BinsegError: no image, or not one for this model.
        """
        start = time.perf_counter()
        self.num_coming += 1
        try:
            taken = await self.in_thread(
                take_in,
                self.cage,
                sent.data,
                model.predictor.preprocessing,
                name=sent.name,
                limits=self._limits,
                reserved=reserved,
                keeps_image=output in ("overlay", "cutout"),
            )
            maps_NHW = await asyncio.wrap_future(model.batcher.submit(taken.inputs_NHWC))
        finally:
            self.num_coming -= 1
        threshold = wanted.threshold
        if threshold is None:
            threshold = model.predictor.threshold
        data, media = await self.in_thread(
            _finish,
            model,
            taken,
            maps_NHW,
            name=sent.name,
            wanted=wanted,
            threshold=threshold,
            output=output,
        )
        return EncodedResult(
            data=data,
            media=media,
            model=model.id,
            threshold=threshold,
            height=taken.height,
            width=taken.width,
            seconds=time.perf_counter() - start,
        )

    async def try_predict(
        self,
        model: ServedModel,
        sent: Upload,
        wanted: Wanted,
        *,
        output: Output,
        reserved: Reservation,
    ) -> EncodedResult | Refusal:
        """As `predict`, but a refusal is the answer: one of several images may fail."""
        try:
            return await self.predict(model, sent, wanted, output=output, reserved=reserved)
        except Refusal as refusal:
            return refusal
        except BinsegError as error:
            return refusal_of(error)

    def close(self) -> None:
        """Finish what was begun, but for decoding, which is given up."""
        self._threads.close()


def _finish(
    model: ServedModel,
    taken: DecodedImage,
    maps_NHW: Float32[np.ndarray, "N H W"],
    *,
    name: str,
    wanted: Wanted,
    threshold: float,
    output: Output,
) -> tuple[bytes, str]:
    """Join the answers to all inputs at the image's size, and encode what was asked for."""
    image_HWC = taken.image_HWC
    if image_HWC is None:
        image_HWC = np.broadcast_to(np.uint8(0), (taken.height, taken.width, 1))
    predictor = model.predictor.with_threshold(threshold)
    predictor = predictor.with_postprocessing(wanted.postprocessing_for(predictor.postprocessing))
    prediction = predictor.prediction_of(image_HWC, maps_NHW)
    answer = Answer(prediction=prediction, image_HWC=image_HWC, name=name)
    if output == "json":
        check_outline(answer.mask_HW)
    return encode_output(output, answer)


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
