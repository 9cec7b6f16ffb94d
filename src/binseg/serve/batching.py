"""Inputs of several requests become one batch of the model."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

import numpy as np
from jaxtyping import Float32, UInt8

from binseg.inference.runtimes import Backend

Compute = Callable[[UInt8[np.ndarray, "N H W C"]], Float32[np.ndarray, "N H W"]]


class SharedBackend:
    """A backend that computes one batch at a time, whoever asks: requests and jobs take turns."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The runtime and where it runs."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """The number format that it computes in."""
        return self._backend.precision

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """The logits of a batch of normalised inputs."""
        with self._lock:
            return self._backend.logits(inputs_NCHW)


class _Order:
    """The inputs of one image, and the answers so far."""

    def __init__(self, inputs_NHWC: UInt8[np.ndarray, "N H W C"]) -> None:
        self.inputs_NHWC = inputs_NHWC
        self.maps_NHW = np.empty(inputs_NHWC.shape[:3], np.float32)
        self.num_begun = 0
        self.future: Future[Float32[np.ndarray, "N H W"]] = Future()


class Batcher:
    """A thread that computes what is waiting, as many inputs at once as the model takes.

    While the model computes, further inputs gather by themselves, so that batches grow with the
    load. Only where more images are known to be on their way, it waits for them, a little. An
    image of many tiles shares each batch with the others that wait, so that it holds up nobody.

    Args:
        compute: gives the probability for inputs (`Predictor.probability_of_inputs`).
        batch_size: most inputs at once.
        expected: how many images are on their way; asked before a batch that isn't full.
        wait: longest time in seconds that is waited for those.
        told: hears of each batch's size.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        batch_size: int,
        expected: Callable[[], int] = lambda: 0,
        wait: float = 0.004,
        told: Callable[[int], None] = lambda num: None,
    ) -> None:
        self._compute = compute
        self._batch_size = batch_size
        self._expected = expected
        self._wait = wait
        self._told = told
        self._orders: deque[_Order] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="binseg-batches", daemon=True)
        self._thread.start()

    def submit(
        self, inputs_NHWC: UInt8[np.ndarray, "N H W C"]
    ) -> "Future[Float32[np.ndarray, 'N H W']]":
        """Have inputs computed; cancelling the future leaves out what isn't computed yet."""
        order = _Order(inputs_NHWC)
        with self._changed:
            assert not self._closed, "nothing is submitted after the end"
            self._orders.append(order)
            self._changed.notify()
        return order.future

    def close(self) -> None:
        """Compute what was submitted, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            self._answer(batch)

    def _next_batch(self) -> list[tuple[_Order, slice]] | None:
        """Wait for inputs and take a batch of them; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._orders or self._closed)
            if not self._orders:
                return None
            if self._num_waiting() < self._batch_size and self._expected() > len(self._orders):
                self._changed.wait_for(
                    lambda: self._num_waiting() >= self._batch_size or self._closed, self._wait
                )
            return self._take()

    def _num_waiting(self) -> int:
        return sum(len(one.inputs_NHWC) - one.num_begun for one in self._orders)

    def _take(self) -> list[tuple[_Order, slice]]:
        """Take an equal share of each image that waits, until the batch is full.

        Only inputs of one size become a batch; images of other sizes come first the next time.
        """
        alive = [one for one in self._orders if not one.future.cancelled()]
        size = alive[0].inputs_NHWC.shape[1:] if alive else ()
        orders = [one for one in alive if one.inputs_NHWC.shape[1:] == size]
        others = [one for one in alive if one.inputs_NHWC.shape[1:] != size]
        shares = [0] * len(orders)
        room, at, idle = self._batch_size, 0, 0
        while room and idle < len(orders):
            place = at % len(orders)
            left = len(orders[place].inputs_NHWC) - orders[place].num_begun - shares[place]
            shares[place] += left > 0
            room -= left > 0
            idle = 0 if left > 0 else idle + 1
            at += 1
        batch = []
        for order, share in zip(orders, shares, strict=True):
            if share:
                batch.append((order, slice(order.num_begun, order.num_begun + share)))
                order.num_begun += share
        # Who got nothing this time comes first the next time.
        waiting = [one for one, share in zip(orders, shares, strict=True) if not share]
        served = [one for one, share in zip(orders, shares, strict=True) if share]
        self._orders = deque(
            one for one in (*others, *waiting, *served) if one.num_begun < len(one.inputs_NHWC)
        )
        return batch

    def _answer(self, batch: list[tuple[_Order, slice]]) -> None:
        if not batch:
            return
        inputs_NHWC = np.concatenate([order.inputs_NHWC[part] for order, part in batch])
        self._told(len(inputs_NHWC))
        try:
            maps_NHW = self._compute(inputs_NHWC)
        except Exception as error:  # noqa: BLE001 - each of them is raised where its answer is awaited
            for order, _ in batch:
                order.num_begun = len(order.inputs_NHWC)
                _settle(order, error)
            with self._changed:
                failed = {id(order) for order, _ in batch}
                self._orders = deque(one for one in self._orders if id(one) not in failed)
            return
        start = 0
        for order, part in batch:
            num = part.stop - part.start
            order.maps_NHW[part] = maps_NHW[start : start + num]
            start += num
            if part.stop == len(order.inputs_NHWC):
                _settle(order, None)


def _settle(order: _Order, error: Exception | None) -> None:
    """Answer, unless the one who asked has gone."""
    try:
        if error is None:
            order.future.set_result(order.maps_NHW)
        else:
            order.future.set_exception(error)
    except InvalidStateError:
        assert order.future.cancelled(), "an order is answered once"
