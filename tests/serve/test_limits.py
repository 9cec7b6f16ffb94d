"""What is too much is refused before it costs anything."""

import asyncio
import os
import resource
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from binseg.errors import UsageError
from binseg.imageio.cage import Cage
from binseg.serve import refusals
from binseg.serve.limits import Capacity, Limits
from binseg.serve.pipeline import Pipeline
from binseg.serve.refusals import Refusal

from ..bombs import (  # noqa: TID252 - tests are no package of their own
    imagej_stack,
    jpeg_in_tiff,
    jpeg_of_scans,
    ome_stack,
)
from .conftest import Open, png

URL = "/v1/predict"


def _bomb(width: int, height: int) -> bytes:
    """A PNG that claims this size in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def test_a_body_is_refused_by_its_declared_length(open_client: Open) -> None:
    """413 before a byte of it is read."""
    with open_client(max_bytes=1000) as client:
        for path in ("/v1/predict", "/v1/preview"):
            answer = client.post(path, content=bytes(1001))
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "too_large"


def test_a_body_of_unknown_length_is_refused_on_the_way(open_client: Open) -> None:
    """An endless body is read only until it is too long, and nothing of it stays."""
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    with open_client(max_bytes=10_000) as client:
        status = asyncio.run(_post(client.app, receive))
        assert status == 413
        assert taken == 11
        assert client.app_state["service"].capacity.held_bytes == 0


async def _post(app: Any, receive: Any, headers: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    statuses = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": URL,
        "raw_path": URL.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), *headers],
    }
    await app(scope, receive, send)
    return int(statuses[0])


def test_forms_have_the_same_limit(open_client: Open) -> None:
    """A file in a form, many files, and a form that is mostly not file."""
    with open_client(max_bytes=1000, max_files=3) as client:
        large = client.post(URL, files={"file": ("a.png", bytes(1500))})
        assert large.status_code == 413
        many = client.post("/v1/batch", files=[("files", ("a.png", b"x"))] * 4)
        assert many.status_code == 400
        padded = client.post(URL, files={"comment": (None, "x" * 2000)})
        assert padded.status_code == 400
        wide = client.post(URL, files={"file": ("a" * 90_000, b"x")})
        assert wide.status_code in (400, 422)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/preview", "/v1/batch"])
def test_bombs_are_refused_by_their_header(
    open_client: Open, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A few bytes that claim 20,000 x 20,000 pixels are never unpacked."""

    def unpack(*_: object, **__: object) -> None:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr("binseg.imageio.cage.CagedImage.image", unpack)
    bomb = _bomb(20_000, 20_000)
    with open_client() as client:
        if path == "/v1/batch":
            answer = client.post(path, files=[("files", ("a.png", bomb))])
        else:
            answer = client.post(path, content=bomb)
    assert answer.status_code == 413, answer.text
    assert answer.json()["error"]["code"] == "too_many_pixels"
    assert "20000 x 20000" in answer.json()["error"]["message"]


def test_when_all_places_are_taken_it_is_429(
    open_client: Open, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seconds after which to come again; the ones in work are answered."""
    gate, entered = threading.Event(), threading.Semaphore(0)

    def slowly(*given: Any, **named: Any) -> Any:
        entered.release()
        assert gate.wait(30)
        return take_in(*given, **named)

    from binseg.serve.pipeline import take_in

    monkeypatch.setattr("binseg.serve.pipeline.take_in", slowly)
    statuses = []
    with open_client(queue=2, workers=2) as client:
        threads = [
            threading.Thread(
                target=lambda: statuses.append(client.post(URL, content=image).status_code)
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert entered.acquire(timeout=30)
        refused = client.post(URL, content=image)
        assert client.get("/v1/models").status_code == 200, "what costs nothing is answered"
        gate.set()
        for thread in threads:
            thread.join()
        again = client.post(URL, content=image)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "busy"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert statuses == [200, 200]
    assert again.status_code == 200


def _free(capacity: Capacity) -> None:
    """Wait until nothing is held any more."""
    until = time.monotonic() + 30
    while (capacity.num_slots, capacity.held_bytes) != (0, 0):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_takes_too_long_is_given_up(
    open_client: Open, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """422 with the advice to send a job; its slot is free when the work has really ended."""
    gate = threading.Event()

    def never(*_: Any, **__: Any) -> Any:
        assert gate.wait(30)
        raise UsageError("nobody hears this")

    monkeypatch.setattr("binseg.serve.pipeline.take_in", never)
    with open_client(max_seconds=0.2) as client:
        answer = client.post(URL, content=image)
        capacity: Capacity = client.app_state["service"].capacity
        assert (capacity.num_slots, capacity.held_bytes) == (1, len(image)), "it still works"
        gate.set()
        _free(capacity)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "timeout"


def test_a_bomb_is_killed_with_its_request(open_client: Open) -> None:
    """A decoder that would go on for seconds ends with its request, and gives all back."""
    bomb = jpeg_of_scans(side=6000, num_scans=34)
    with open_client(max_seconds=0.5) as client:
        client.post(URL, content=png(np.zeros((8, 8), np.uint8)))
        start = time.monotonic()
        answer = client.post(URL, content=bomb)
        assert answer.json()["error"]["code"] == "timeout"
        assert time.monotonic() - start < 1.5
        _free(client.app_state["service"].capacity)
        assert time.monotonic() - start < 2
        assert client.post(URL, content=png(np.zeros((8, 8), np.uint8))).status_code == 200


@pytest.mark.parametrize(
    "bomb", [ome_stack, imagej_stack, jpeg_in_tiff, jpeg_of_scans], ids=lambda one: one.__name__
)
def test_bombs_cost_no_memory(open_client: Open, bomb: Callable[[], bytes]) -> None:
    """A small file that would take gigabytes or minutes is answered in time and leaves nothing."""
    data = bomb()
    with open_client() as client:
        client.post(URL, content=png(np.zeros((8, 8), np.uint8)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        answer = client.post(URL, content=data)
        assert time.monotonic() - start < 8
        assert answer.status_code in (200, 413, 422)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 100_000, "kilobytes"
        _free(client.app_state["service"].capacity)


def test_a_client_that_goes_away_leaves_nothing(
    open_client: Open, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot and its bytes are free as soon as the work on its image has ended."""
    gate, entered = threading.Event(), threading.Event()

    def slowly(*given: Any, **named: Any) -> Any:
        entered.set()
        assert gate.wait(30)
        return take_in(*given, **named)

    from binseg.serve.pipeline import take_in

    monkeypatch.setattr("binseg.serve.pipeline.take_in", slowly)
    messages = iter([{"type": "http.request", "body": image, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        while not entered.is_set():
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    with open_client() as client:
        assert client.portal is not None
        client.portal.call(_post, client.app, receive)
        capacity: Capacity = client.app_state["service"].capacity
        assert (capacity.num_slots, capacity.held_bytes) == (1, len(image))
        gate.set()
        _free(capacity)


def test_memory_is_a_limit_too() -> None:
    """Two that fit are held, a third is told to come again, and whoever is alone always fits."""
    limits = Limits(max_bytes=1, max_pixels=1)  # 36 bytes in all
    capacity = Capacity(limits)
    with capacity.reservation() as alone:
        alone.grow(1000)
        with capacity.reservation() as other, pytest.raises(Refusal) as refused:
            other.grow(1)
        assert refused.value.status == 429
    assert capacity.held_bytes == 0
    with capacity.reservation() as one, capacity.reservation() as two:
        one.grow(18)
        two.grow(18)
        assert capacity.held_bytes == 36
    assert capacity.held_bytes == 0


def test_tiles_are_counted_before_they_are_made(cage: Cage) -> None:
    """A model of enlarged tiles would make gigabytes of an image that is allowed itself."""
    from binseg.inference import ModelPredictor
    from binseg.serve.incoming import Upload
    from binseg.serve.pipeline import take_in
    from binseg.types import Preprocessing

    shape = Preprocessing(resize="tile", height=64, width=64, scale=8.0)
    model = ModelPredictor(
        backend=Mock(),  # is never asked
        preprocessing=shape,
        threshold=0.5,
        bundle_id="x",
    )
    limits = Limits(max_pixels=10_000)
    sent = Upload(name="p", data=png(np.zeros((100, 100), np.uint8)))
    with Capacity(limits).reservation() as held, pytest.raises(Refusal) as refused:
        take_in(cage, sent, model, limits=limits, reserved=held, keeps=None)
    assert refused.value.status == 413
    assert "tiles" in refused.value.message


def test_limits_of_nothing_are_refused() -> None:
    """A server that takes nothing is a mistake."""
    with pytest.raises(UsageError, match="queue 0"):
        Limits(queue=0)


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """No thread of a test outlives it."""
    before = set(threading.enumerate())
    yield
    left = [one for one in threading.enumerate() if one not in before]
    for one in left:
        one.join(10)
    assert not [one for one in left if one.is_alive()], left


def test_a_part_gives_its_bytes_back_before_the_rest() -> None:
    """One image of a batch is answered: others have the room, and the batch is still alone."""
    limits = Limits(max_bytes=1000, max_pixels=1000)
    capacity = Capacity(limits)
    most = limits.max_memory
    with capacity.reservation() as batch:
        batch.grow(100)
        for _ in range(3):
            with batch.part() as image:
                image.grow(most)  # alone, it may have all there is and more
                assert capacity.held_bytes == most + 100
                with capacity.reservation() as other, pytest.raises(Refusal):
                    other.grow(1)
            assert (capacity.held_bytes, batch.num_bytes) == (100, 100)
        with capacity.reservation() as other:
            other.grow(1)
    assert capacity.held_bytes == 0


def test_large_images_give_way_to_others() -> None:
    """What takes long is done by threads of lower priority, and the others keep theirs."""

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def ask() -> tuple[int, int]:
        return await pipeline.aside(priority), await pipeline.in_thread(priority)

    pipeline = Pipeline(Limits(workers=1))
    try:
        assert asyncio.run(ask()) == (10, priority())
    finally:
        pipeline.close()


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"no image", "unreadable_image"),
        (png(np.zeros((300, 300), np.uint8)), "too_many_pixels"),
    ],
    ids=["unreadable", "too large"],
)
def test_unreadable_images_are_answered_one_after_the_other(
    bad: bytes, code: str, open_client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are answered at once; then a loop of them waits, while a good image does not."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(refusals, "_BETWEEN_S", 1.0)
    monkeypatch.setattr("binseg.serve.refusals.asyncio.sleep", sleep)
    with open_client(max_pixels=65_536) as client:
        for _ in range(25):
            assert client.post(URL, content=bad).json()["error"]["code"] == code
        told = [round(one) for one in waits if one > 0]
        assert told[:3] == [1, 2, 3], "two were free; nobody slept here, so the line grows"
        assert max(waits) <= 10.0
        num = len(waits)
        assert client.post(URL, content=png(np.zeros((32, 32, 3), np.uint8))).status_code == 200
        assert len(waits) == num
