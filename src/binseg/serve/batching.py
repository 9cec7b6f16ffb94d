"""Inputs of several requests become one batch of the model."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, zip_longest

import numpy as np
from jaxtyping import Float32, UInt

from binseg.inference.runtimes import Backend

Compute = Callable[[UInt[np.ndarray, "N H W C"]], Float32[np.ndarray, "N H W"]]


class SharedBackend:
    """A backend that computes one batch at a time, whoever asks: requests and jobs take turns.

    It does so on a thread of its own: one of low priority, as that of jobs, would keep all waiting.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.precision = backend.name, backend.precision
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="binseg-network")

    def open(self) -> None:
        """Start the thread, with the priority of the caller."""
        self._thread.submit(int).result()

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """The logits of a batch of normalised inputs."""
        return self._thread.submit(self._backend.logits, inputs_NCHW).result()

    def close(self) -> None:
        """End the thread; nothing is computed afterwards."""
        self._thread.shutdown()


class _Order:
    """The inputs of one image, and the answers so far."""

    def __init__(self, inputs_NHWC: UInt[np.ndarray, "N H W C"], *, is_large: bool) -> None:
        self.inputs_NHWC = inputs_NHWC
        self.kind = (inputs_NHWC.shape[1:], is_large)  # Only one kind is in a batch
        self.maps_NHW = np.empty(inputs_NHWC.shape[:3], np.float32)
        self.num_begun = 0
        self.future: Future[Float32[np.ndarray, "N H W"]] = Future()

    @property
    def num_left(self) -> int:
        return len(self.inputs_NHWC) - self.num_begun

    def settle(self, error: Exception | None) -> None:
        """Answer, unless the one who asked has gone."""
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(self.maps_NHW)
            else:
                self.num_begun = len(self.inputs_NHWC)
                self.future.set_exception(error)


class Batcher:
    """A thread that computes what waits; it waits `wait` seconds itself for what is `expected`."""

    def __init__(
        self,
        compute: Compute,
        *,
        batch_size: int,
        expected: Callable[[], int] = lambda: 0,
        wait: float = 0.004,
        told: Callable[[int], None] = lambda num: None,
    ) -> None:
        self._compute, self._batch_size = compute, batch_size
        self._expected, self._wait, self._told = expected, wait, told
        self._orders: list[_Order] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="binseg-batches", daemon=True)
        self._thread.start()

    def submit(
        self, inputs_NHWC: UInt[np.ndarray, "N H W C"], *, is_large: bool = False
    ) -> "Future[Float32[np.ndarray, 'N H W']]":
        """Have inputs computed; cancelling the future leaves out what isn't computed yet.

        Large images have batches of their own, so that small ones don't wait for them.
        """
        order = _Order(inputs_NHWC, is_large=is_large)
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
            with self._changed:
                self._changed.wait_for(lambda: self._orders or self._closed)
                if not self._orders:
                    return
                if not self._is_full() and self._expected() > len(self._orders):
                    self._changed.wait_for(lambda: self._is_full() or self._closed, self._wait)
                batch = self._take()
            if batch:
                self._answer(batch)

    def _is_full(self) -> bool:
        return sum(one.num_left for one in self._orders) >= self._batch_size

    def _take(self) -> list[tuple[_Order, slice]]:
        """Take an equal share of each image that waits, of one kind, until the batch is full."""
        alive = [one for one in self._orders if not one.future.cancelled()]
        orders = [one for one in alive if one.kind == alive[0].kind]
        others = [one for one in alive if one.kind != alive[0].kind]
        rounds = zip_longest(*([one] * one.num_left for one in orders))
        turns = (one for round_ in rounds for one in round_ if one is not None)
        batch = []
        for order, share in Counter(islice(turns, self._batch_size)).items():
            batch.append((order, slice(order.num_begun, order.num_begun + share)))
            order.num_begun += share
        # Who got nothing this time comes first the next time.
        served = [order for order, _ in batch]
        waiting = [one for one in orders if one not in served]
        self._orders = [one for one in (*others, *waiting, *served) if one.num_left]
        return batch

    def _answer(self, batch: list[tuple[_Order, slice]]) -> None:
        inputs_NHWC = np.concatenate([order.inputs_NHWC[part] for order, part in batch])
        self._told(len(inputs_NHWC))
        try:
            maps_NHW = self._compute(inputs_NHWC)
        except Exception as error:  # noqa: BLE001 - each of them is raised where its answer is awaited
            with self._changed:
                for order, _ in batch:
                    order.settle(error)
                self._orders = [one for one in self._orders if one.num_left]
            return
        start = 0
        for order, part in batch:
            num = part.stop - part.start
            order.maps_NHW[part] = maps_NHW[start : start + num]
            start += num
            if part.stop == len(order.inputs_NHWC):
                order.settle(None)
