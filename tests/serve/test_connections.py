"""A server on a socket, with clients that behave badly; the others do not notice."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from binseg.serve.limits import Limits
from binseg.serve.server import Server, _raise_descriptors

from .conftest import Listen

PATIENCE_S = 30


def _connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def _head(length: int, path: str = "/v1/predict") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode()


def _until_closed(connection: socket.socket) -> bytes:
    """All that still comes; ends when the server closes, and fails when it doesn't."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


@pytest.fixture
def hasty(listen: Listen) -> Iterator[Server]:
    """A server that waits for nobody for longer than half a second."""
    with listen(head_seconds=0.5, send_seconds=0.5, min_rate=1_000_000) as server:
        yield server


def test_a_head_that_dribbles_is_cut_off(hasty: Server, image: bytes) -> None:
    """A byte now and then keeps no connection; meanwhile others are answered."""
    with _connect(hasty) as slow:
        start = time.monotonic()
        try:
            for byte in _head(10):
                slow.sendall(bytes([byte]))
                time.sleep(0.05)
                assert time.monotonic() - start < PATIENCE_S
        except OSError:
            pass
        assert _until_closed(slow) == b""
    assert requests.post(f"{hasty.url}v1/predict", data=image, timeout=PATIENCE_S).ok


def test_a_body_that_dribbles_is_cut_off(hasty: Server, image: bytes) -> None:
    """408, and its bytes are forgotten; an image sent at once goes through meanwhile."""
    with _connect(hasty) as slow:
        slow.sendall(_head(len(image)) + image[:10])
        answer = requests.post(f"{hasty.url}v1/predict", data=image, timeout=PATIENCE_S)
        assert answer.status_code == 200
        received = b""
        for byte in image[10:]:
            try:
                slow.sendall(bytes([byte]))
            except OSError:
                break
            slow.settimeout(0.05)
            try:
                while not received.endswith(b"}}"):
                    received += slow.recv(65536)
            except TimeoutError:
                continue
            break
        assert b" 408 " in received
        assert b'"too_slow"' in received


def test_silence_is_cut_off(hasty: Server) -> None:
    """A connection without a request, and one that is idle after its answer."""
    with _connect(hasty) as silent:
        assert _until_closed(silent) == b""


def test_a_client_that_does_not_read_is_cut_off(listen: Listen) -> None:
    """Its answers aren't kept in memory for ever; the connection ends."""
    import numpy as np

    from .conftest import png

    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3)).astype(np.uint8)
    image = png(noise)
    with listen(send_seconds=0.5) as server, _connect(server) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = _head(len(image), "/v1/predict?output=cutout")
        try:
            for _ in range(4):
                lazy.sendall(request + image)
            time.sleep(1.5)  # it reads nothing, for longer than it may
            while lazy.recv(65536):
                pass
        except TimeoutError:
            pytest.fail("the server waits for ever")
        except OSError:
            pass  # the other way in which an ended connection shows itself


def test_a_client_that_reads_slowly_gets_its_answer(listen: Listen) -> None:
    """The time is that without a byte read, not that of the whole answer."""
    import numpy as np

    from .conftest import png

    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3)).astype(np.uint8)
    image = png(noise)
    with listen(send_seconds=1.5) as server, _connect(server) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(_head(len(image), "/v1/predict?output=cutout") + image)
        slow.settimeout(PATIENCE_S)
        start, got, total = time.monotonic(), 0, None
        while total is None or got < total:
            part = slow.recv(65536)
            assert part, "it was cut off"
            got += len(part)
            if total is None:
                head = part.partition(b"\r\n\r\n")[0]
                length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                total = len(head) + 4 + int(length)
            time.sleep(0.02)
        assert time.monotonic() - start > 1.6


def test_a_client_that_hangs_up_costs_nothing(hasty: Server, image: bytes) -> None:
    """In the middle of its body, or before its answer: the next one is served."""
    for part in (len(image) // 2, len(image)):
        for _ in range(5):
            with _connect(hasty) as gone:
                gone.sendall(_head(len(image)) + image[:part])
    answer = requests.post(f"{hasty.url}v1/predict", data=image, timeout=PATIENCE_S)
    assert answer.status_code == 200
    until = time.monotonic() + PATIENCE_S
    while "binseg_held_bytes 0.0" not in requests.get(f"{hasty.url}metrics", timeout=9).text:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / HTTP/99\r\n\r\n",
        b"\r\n" * 10 + b"\x00\xff" * 50 + b"\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 4000 + b"\r\n",
    ],
    ids=[
        "TLS",
        "HTTP 9.9",
        "noise",
        "zero byte",
        "negative length",
        "two lengths",
        "bad chunk",
        "long header",
        "long path",
        "many headers",
    ],
)
def test_what_is_no_http_is_refused(hasty: Server, garbage: bytes) -> None:
    """400 and the end of the connection: garbage, oversize heads, doubtful lengths."""
    with _connect(hasty) as connection:
        try:
            connection.sendall(garbage)
        except OSError:
            return
        assert connection.recv(65536).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert requests.get(f"{hasty.url}healthz", timeout=PATIENCE_S).ok


def test_a_body_that_is_too_large_is_refused_and_not_waited_for(listen: Listen) -> None:
    """The client hears 413 although it goes on sending; then the connection ends."""
    with listen(max_bytes=1000, head_seconds=1) as server, _connect(server) as large:
        large.sendall(_head(10**9) + bytes(5000))
        received = b""
        while not received.endswith(b"}}"):
            received += large.recv(65536)
        assert b" 413 " in received
        assert b'"too_large"' in received
        start = time.monotonic()
        try:
            while time.monotonic() - start < PATIENCE_S:
                large.sendall(bytes(1000))
                time.sleep(0.02)
        except OSError:
            pass
        assert time.monotonic() - start < PATIENCE_S, "nobody waits for a gigabyte"


def test_expect_100_continue_spares_the_upload(listen: Listen) -> None:
    """A client that asks first (as curl does) is refused before it has sent a byte."""
    with listen(max_bytes=1000) as server, _connect(server) as polite:
        head = _head(10**9).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        polite.sendall(head)
        assert polite.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_the_end_finishes_what_was_taken(
    listen: Listen, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to end in the middle of requests, the server answers them all, and takes no more."""
    from binseg.serve.pipeline import take_in

    gate, entered = threading.Event(), threading.Semaphore(0)

    def slowly(*given: Any, **named: Any) -> Any:
        entered.release()
        assert gate.wait(PATIENCE_S)
        return take_in(*given, **named)

    monkeypatch.setattr("binseg.serve.pipeline.take_in", slowly)
    answers = []
    with listen(workers=4) as server:

        def ask() -> None:
            answers.append(requests.post(f"{server.url}v1/predict", data=image, timeout=PATIENCE_S))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert entered.acquire(timeout=PATIENCE_S)
        server.stop()
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                requests.get(f"{server.url}healthz", timeout=5)
                time.sleep(0.05)
            except requests.ConnectionError:
                break
        gate.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert [answer.status_code for answer in answers] == [200] * 4


def test_64_clients_at_once_get_their_own_answers(listen: Listen, discs: Any) -> None:
    """Nothing but 200 and 429, and no mask goes to another one's image."""
    images = [path.read_bytes() for path in sorted((discs / "images").iterdir())]
    with listen(queue=16) as server:
        url = f"{server.url}v1/predict?output=probability"
        alone = [requests.post(url, data=one, timeout=PATIENCE_S).content for one in images]
        wrong: list[int] = []

        def ask(number: int) -> None:
            with requests.Session() as session:
                for turn in range(4):
                    place = (number + turn) % len(images)
                    answer = session.post(url, data=images[place], timeout=PATIENCE_S)
                    if answer.status_code == 429 and "Retry-After" in answer.headers:
                        continue
                    if answer.status_code != 200 or not _alike(answer.content, alone[place]):
                        wrong.append(answer.status_code)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert wrong == []


def _alike(one: bytes, other: bytes) -> bool:
    """Batches of another size may round the last bits of a float otherwise: one step of 255."""
    from .conftest import decoded

    return bool((abs(decoded(one).astype(int) - decoded(other)) <= 1).all())


def test_the_usual_limits_bear_a_telephone() -> None:
    """A photo over a slow mobile connection isn't cut off as one that dribbles."""
    limits = Limits()
    photo, rate = 5_000_000, 20_000  # bytes, and bytes a second: a poor 3G connection
    assert photo / rate < limits.head_seconds + photo / limits.min_rate


def test_idle_connections_keep_nobody_out(listen: Listen, image: bytes) -> None:
    """Three times as many as there may be: the longest waiting ones go, an honest client is in."""
    with listen(connections=20, head_seconds=30) as server:
        idle = [_connect(server) for _ in range(60)]
        try:
            start = time.monotonic()
            answer = requests.post(f"{server.url}v1/predict", data=image, timeout=PATIENCE_S)
            assert answer.status_code == 200
            assert time.monotonic() - start < 5
            for connection in idle[:30]:
                connection.settimeout(PATIENCE_S / 3)  # less than a head may take
                assert _until_closed(connection) == b"", "closed, as others came"
        finally:
            for connection in idle:
                connection.close()


def test_where_all_connections_work_health_is_still_answered(
    listen: Listen, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surplus hears that the server is busy, and a probe that it lives."""
    from binseg.serve.pipeline import take_in

    gate, entered = threading.Event(), threading.Semaphore(0)

    def slowly(*given: Any, **named: Any) -> Any:
        entered.release()
        assert gate.wait(PATIENCE_S)
        return take_in(*given, **named)

    monkeypatch.setattr("binseg.serve.pipeline.take_in", slowly)
    statuses = []
    with listen(connections=2, workers=4) as server:

        def ask() -> None:
            answer = requests.post(f"{server.url}v1/predict", data=image, timeout=PATIENCE_S)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert entered.acquire(timeout=PATIENCE_S)
        assert requests.get(f"{server.url}healthz", timeout=PATIENCE_S).status_code == 200
        refused = requests.post(f"{server.url}v1/predict", data=image, timeout=PATIENCE_S)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "busy"
        gate.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert statuses == [200, 200]


def test_descriptors_are_raised_to_what_connections_need() -> None:
    """A soft limit below is raised; where the system allows no more, fewer connections are held."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        assert _raise_descriptors(Limits(connections=1000)) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1200
        assert _raise_descriptors(Limits(connections=hard)) < hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
