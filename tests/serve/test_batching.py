"""Batches of several requests' inputs: the answers of each alone, and nobody is held up."""

import os
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from binseg.parallel import give_way
from binseg.serve.batching import Batcher, SharedBackend


def _inputs(num: int, value: int) -> np.ndarray:
    return np.full((num, 2, 2, 1), value, np.uint8)


class _Model:
    """Counts its batches; answers each input with its own value."""

    def __init__(self, *, blocked: bool = False) -> None:
        self.sizes: list[int] = []
        self.orders: list[list[int]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        if not blocked:
            self.gate.set()

    def __call__(self, inputs_NHWC: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(10)
        self.sizes.append(len(inputs_NHWC))
        self.orders.append(inputs_NHWC[:, 0, 0, 0].tolist())
        if (inputs_NHWC == 255).any():
            raise ValueError("this one can't be computed")
        return inputs_NHWC[:, :, :, 0].astype(np.float32)


def test_each_gets_its_own_answer() -> None:
    """Whatever was computed together, every order has the maps of its inputs, in order."""
    model = _Model()
    batcher = Batcher(model, batch_size=8)
    random = np.random.default_rng(0)
    orders = [random.integers(0, 200, (int(n), 2, 2, 1)).astype(np.uint8) for n in (1, 5, 20, 1, 3)]
    answers = [batcher.submit(one) for one in orders]
    for one, answer in zip(orders, answers, strict=True):
        assert np.array_equal(answer.result(10), one[:, :, :, 0])
    batcher.close()
    assert max(model.sizes) <= 8


def test_what_waits_together_is_computed_together() -> None:
    """While a batch is computed, others gather: eight images are one batch more, not eight."""
    model = _Model(blocked=True)
    batcher = Batcher(model, batch_size=8)
    first = batcher.submit(_inputs(1, 0))
    assert model.entered.wait(10)
    others = [batcher.submit(_inputs(1, value)) for value in range(1, 9)]
    model.gate.set()
    for answer in [first, *others]:
        answer.result(10)
    batcher.close()
    assert model.sizes == [1, 8]


def test_an_image_of_many_tiles_holds_up_nobody() -> None:
    """A small image that comes after a huge one is in the very next batch."""
    model = _Model(blocked=True)
    batcher = Batcher(model, batch_size=4)
    huge = batcher.submit(_inputs(100, 1))
    assert model.entered.wait(10)
    small = [batcher.submit(_inputs(1, value)) for value in (2, 3)]
    model.gate.set()
    for answer in (huge, *small):
        answer.result(10)
    batcher.close()
    assert sorted(model.orders[1]) == [1, 1, 2, 3]
    assert sum(model.sizes) == 102
    assert model.sizes[:-1] == [4] * (len(model.sizes) - 1), "batches are full while work is left"


def test_more_images_than_a_batch_has_room_take_turns() -> None:
    """Nobody is served twice while another one waits."""
    model = _Model(blocked=True)
    batcher = Batcher(model, batch_size=2)
    answers = [batcher.submit(_inputs(1, 0))]
    assert model.entered.wait(10)
    answers += [batcher.submit(_inputs(3, value)) for value in (1, 2, 3, 4)]
    model.gate.set()
    for answer in answers:
        answer.result(10)
    batcher.close()
    assert model.orders[1:3] == [[1, 2], [3, 4]]


def test_a_batch_holds_inputs_of_one_size() -> None:
    """Images of models of tiles make inputs of their own sizes; nobody waits for ever."""
    model = _Model(blocked=True)
    batcher = Batcher(model, batch_size=4)
    first = batcher.submit(_inputs(1, 0))
    assert model.entered.wait(10)
    large = np.full((3, 5, 7, 1), 9, np.uint8)
    answers = [first, batcher.submit(_inputs(6, 1)), batcher.submit(large)]
    answers += [batcher.submit(_inputs(1, 2))]
    model.gate.set()
    assert answers[2].result(10).shape == (3, 5, 7)
    for answer in answers:
        answer.result(10)
    batcher.close()
    assert model.orders == [[0], [1, 1, 1, 2], [9, 9, 9], [1, 1, 1]]


def test_large_images_share_no_batch_with_small_ones() -> None:
    """A small one waits for one batch of large ones at most, and computes none of theirs."""
    model = _Model(blocked=True)
    batcher = Batcher(model, batch_size=2)
    answers = [batcher.submit(_inputs(1, 0))]
    assert model.entered.wait(10)
    answers += [batcher.submit(_inputs(1, value), is_large=True) for value in (1, 1, 1)]
    answers += [batcher.submit(_inputs(1, 2))]
    model.gate.set()
    for answer in answers:
        answer.result(10)
    batcher.close()
    assert model.orders[1:] == [[1, 1], [2], [1]]


def test_one_failure_is_that_of_its_batch_alone() -> None:
    """Who shared the batch hears of it, and the thread goes on."""
    model = _Model()
    batcher = Batcher(model, batch_size=8)
    with pytest.raises(ValueError, match="can't be computed"):
        batcher.submit(_inputs(20, 255)).result(10)
    assert batcher.submit(_inputs(1, 7)).result(10)[0, 0, 0] == 7
    batcher.close()


def test_cancelled_work_is_left_out() -> None:
    """A client that went away costs no further batch."""
    model = _Model(blocked=True)
    batcher = Batcher(model, batch_size=1)
    first = batcher.submit(_inputs(1, 0))
    assert model.entered.wait(10)
    gone: Future[np.ndarray] = batcher.submit(_inputs(50, 1))
    last = batcher.submit(_inputs(1, 2))
    assert gone.cancel()
    model.gate.set()
    first.result(10)
    last.result(10)
    batcher.close()
    assert model.orders == [[0], [2]]


def test_the_end_finishes_what_was_taken() -> None:
    """`close` returns when everything that was submitted is answered."""
    model = _Model()
    batcher = Batcher(model, batch_size=2)
    answers = [batcher.submit(_inputs(1, value)) for value in range(20)]
    batcher.close()
    assert all(answer.done() for answer in answers)


def test_it_waits_only_for_those_who_are_coming() -> None:
    """A lone image is computed at once; with one more announced, both share a batch."""
    model = _Model()
    coming = [1]
    batcher = Batcher(model, batch_size=4, expected=lambda: coming[0], wait=5.0)
    start = time.monotonic()
    batcher.submit(_inputs(1, 0)).result(10)
    assert time.monotonic() - start < 4.5, "nobody else was expected"
    coming[0] = 5
    answers = [batcher.submit(_inputs(1, value)) for value in range(4)]
    for answer in answers:
        answer.result(10)
    batcher.close()
    assert model.sizes == [1, 4]


def test_one_that_gave_way_keeps_nobody_waiting() -> None:
    """A batch for a job, whose thread has low priority, is computed with the usual one."""
    seen = []

    class Looking:
        """Notes the priority of the thread that computes."""

        name, precision = "looking", "fp32"

        def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
            """Answer with the first channel."""
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return inputs_NCHW[:, 0]

    def ask() -> None:
        give_way()
        shared.logits(np.zeros((1, 1, 2, 2), np.float32))

    shared = SharedBackend(Looking())
    shared.open()
    job = threading.Thread(target=ask)
    job.start()
    job.join()
    shared.close()
    assert seen == [os.getpriority(os.PRIO_PROCESS, 0)]
