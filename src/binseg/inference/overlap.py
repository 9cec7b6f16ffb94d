"""Reading, computing and writing at the same time, with few images in memory.

    reader threads -> batches of equal inputs, computed in the calling thread -> writer threads

Images of many sizes share batches, since all inputs of a model have one size.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from jaxtyping import Num, UInt8

from binseg.errors import ImageError
from binseg.imageio import read_image
from binseg.inference import Prediction, Predictor
from binseg.inference.inputs import InputImage
from binseg.transforms.preprocess import prepare

__all__ = ["predictions"]

NUM_READERS = 2
NUM_WRITERS = 4
"""More, since they mostly wait until the disk has what they wrote."""
AHEAD_BYTES = 256_000_000
"""Decoded images that wait for the model, or for a writer; at least one each does."""

R = TypeVar("R")
Finish = Callable[[int, Num[np.ndarray, "H W C"], Prediction], R]


@dataclass(frozen=True, kw_only=True)
class _Read:
    """An image in memory, with its inputs where it can share a batch."""

    index: int
    image_HWC: Num[np.ndarray, "H W C"]
    inputs_NHWC: UInt8[np.ndarray, "N height width channels"] | None


def predictions(
    predictor: Predictor, images: Sequence[InputImage], finish: Finish[R]
) -> Iterator[R | ImageError]:
    """Predict images and finish each in a thread; answers come in the images' order.

    Args:
        predictor: the model.
        images: which.
        finish: takes an image's index, its pixels and its prediction; may raise ImageError.

    Yields:
        What `finish` gave, or why there is no answer.
    """
    ahead = _Allowance()
    shares_batches = predictor.has_one_input
    with (
        ThreadPoolExecutor(NUM_READERS, thread_name_prefix="read") as readers,
        ThreadPoolExecutor(NUM_WRITERS, thread_name_prefix="write") as writers,
    ):
        waiting: deque[Future[R | ImageError]] = deque()
        try:
            reads = _read_ahead(readers, predictor, images, ahead, prepared=shares_batches)
            for batch in _batches(reads, predictor.batch_size):
                for future in _computed(batch, predictor, finish, writers):
                    waiting.append(future)
                    while len(waiting) > ahead.num_images:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(wait=True)


class _Allowance:
    """How many images may wait, by the largest that was seen."""

    def __init__(self) -> None:
        self._largest = 1

    def note(self, image_HWC: Num[np.ndarray, "H W C"]) -> None:
        """Note an image; its probability takes four bytes a pixel more."""
        num_pixels = image_HWC.shape[0] * image_HWC.shape[1]
        self._largest = max(self._largest, image_HWC.nbytes + 4 * num_pixels)

    @property
    def num_images(self) -> int:
        """From 1 to 64."""
        return int(min(64, max(1, AHEAD_BYTES // self._largest)))


def _read_ahead(
    pool: ThreadPoolExecutor,
    predictor: Predictor,
    images: Sequence[InputImage],
    ahead: _Allowance,
    *,
    prepared: bool,
) -> Iterator[_Read | tuple[int, ImageError]]:
    """Read images in order, the next ones while the model is busy."""

    def read(index: int) -> _Read | tuple[int, ImageError]:
        image = images[index]
        try:
            image_HWC = read_image(image.path, page=image.page)
            inputs = None
            if prepared:
                inputs, _ = prepare(image_HWC, predictor.preprocessing, name=str(image.path))
        except ImageError as error:
            return index, error
        return _Read(index=index, image_HWC=image_HWC, inputs_NHWC=inputs)

    waiting: deque[Future[_Read | tuple[int, ImageError]]] = deque()
    following = 0
    while following < len(images) or waiting:
        # The first image alone tells how large they are.
        limit = 1 if following == 0 else min(2 * predictor.batch_size, ahead.num_images)
        while len(waiting) < max(1, limit) and following < len(images):
            waiting.append(pool.submit(read, following))
            following += 1
        one = waiting.popleft().result()
        if isinstance(one, _Read):
            ahead.note(one.image_HWC)
        yield one


Item = _Read | tuple[int, ImageError]


def _batches(reads: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Gather images until their inputs fill a batch, or their pixels the allowance."""
    batch: list[Item] = []
    num_bytes = 0
    for one in reads:
        batch.append(one)
        if isinstance(one, _Read):
            num_bytes += one.image_HWC.nbytes
            whole = one.inputs_NHWC is None
            full = sum(isinstance(item, _Read) for item in batch) >= size
            if whole or full or num_bytes > AHEAD_BYTES:
                yield batch
                batch, num_bytes = [], 0
    if batch:
        yield batch


def _computed(
    batch: list[Item], predictor: Predictor, finish: Finish[R], writers: ThreadPoolExecutor
) -> Iterator[Future[R | ImageError]]:
    """Compute a batch, and hand each image to a writer."""
    inputs = [
        one.inputs_NHWC for one in batch if isinstance(one, _Read) and one.inputs_NHWC is not None
    ]
    maps_NHW = predictor.probability_of_inputs(np.concatenate(inputs)) if inputs else None
    taken = 0

    def write(one: _Read, prediction: Callable[[], Prediction]) -> R | ImageError:
        try:
            return finish(one.index, one.image_HWC, prediction())
        except ImageError as error:
            return error

    for one in batch:
        if not isinstance(one, _Read):
            failed: Future[R | ImageError] = Future()
            failed.set_result(one[1])
            yield failed
        elif one.inputs_NHWC is None:
            try:
                whole = predictor.predict(one.image_HWC)
            except ImageError as error:
                failed = Future()
                failed.set_result(error)
                yield failed
            else:
                yield writers.submit(write, one, partial(_as_it_is, whole))
        else:
            assert maps_NHW is not None
            own = maps_NHW[taken : taken + len(one.inputs_NHWC)]
            taken += len(one.inputs_NHWC)
            yield writers.submit(
                write,
                one,
                partial(predictor.prediction_of, one.image_HWC, own),
            )


def _as_it_is(prediction: Prediction) -> Prediction:
    return prediction
