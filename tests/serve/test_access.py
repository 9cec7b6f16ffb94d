"""Who is let in, and what every answer bears."""

import logging
import socket
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
from starlette.testclient import TestClient

from binseg.errors import UsageError
from binseg.inference import ModelPredictor
from binseg.serve.app import Access
from binseg.serve.limits import Limits
from binseg.serve.server import Server, bind
from binseg.serve.service import Service

from .conftest import Open

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        "Bearer \udcff",
    ],
)
def test_without_the_token_nothing_is_answered(
    open_client: Open, header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """401 for every route that works or tells anything, whatever is wrong with the token."""
    monkeypatch.setattr("binseg.serve.app._LONGEST_DELAY_S", 0.0)
    value = None if header is None else header.encode("utf-8", "surrogateescape")
    headers = {} if value is None else {b"Authorization": value}
    with open_client(access=Access(token=TOKEN)) as client:
        for path in ("/v1/models", "/v1/examples", "/metrics", "/openapi.json", "/v1/jobs/x"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "token"
        for path in ("/v1/predict", "/v1/batch", "/v1/jobs", "/v1/preview"):
            assert client.post(path, headers=headers, content=b"x").status_code == 401


def test_with_the_token_all_is_answered(open_client: Open, image: bytes) -> None:
    """The scheme's name in any case, as RFC 9110 says."""
    with open_client(access=Access(token=TOKEN)) as client:
        for scheme in ("Bearer", "bearer", "BEARER"):
            headers = {"Authorization": f"{scheme} {TOKEN}"}
            assert client.get("/v1/models", headers=headers).status_code == 200
            answer = client.post("/v1/predict", content=image, headers=headers)
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "blank"),
        ("   ", "blank"),
        ("two words of it", "spaces"),
        ("p\u00e4ssw\u00f6rter-sind-lang", "ASCII"),
        ("fifteen-letters", "15 characters"),
    ],
)
def test_a_blank_or_short_token_is_a_mistake(token: str, said: str) -> None:
    """Whoever sets a token wants a door: an empty one must not open it."""
    with pytest.raises(UsageError, match=said):
        Access(token=token)
    assert Access(token=None).token is None


def test_wrong_tokens_are_slowed_and_logged(
    open_client: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each waits twice as long as the one before; the right one, and none at all, never wait."""
    monkeypatch.setattr("binseg.serve.app._FIRST_DELAY_S", 0.1)
    right, wrong = ({"Authorization": f"Bearer {one}"} for one in (TOKEN, "guess"))
    times = []
    with open_client(access=Access(token=TOKEN)) as client, caplog.at_level(logging.WARNING):
        for headers in (wrong, wrong, wrong, {}, right):
            start = time.monotonic()
            client.get("/v1/models", headers=headers)
            times.append(time.monotonic() - start)
    assert times[0] >= 0.1
    assert times[1] >= 0.2
    assert times[2] >= 0.4
    assert max(times[3:]) < 0.4
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" from ")[0] for line in lines] == [
        "binseg serve: 1 wrong token(s)",
        "binseg serve: 2 wrong token(s)",
    ]
    assert not any(TOKEN in line or "guess" in line for line in lines)


def test_the_page_and_the_probes_need_no_token(open_client: Open) -> None:
    """The page must be there to ask for it; what watches the process has none."""
    with open_client(access=Access(token=TOKEN)) as client:
        for path in ("/", "/healthz", "/readyz", "/static/style.css"):
            assert client.get(path).status_code == 200, path
        assert client.post("/healthz").status_code == 401


def test_every_answer_bears_the_policy(client: TestClient, image: bytes) -> None:
    """Page, answers and refusals alike: no scripts but our own, nothing sniffed or framed."""
    answers = [
        client.get("/"),
        client.get("/static/main.js"),
        client.post("/v1/predict", content=image),
        client.post("/v1/predict", content=b"?"),
        client.get("/none"),
    ]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert answers[2].headers["Cache-Control"] == "no-store"


def test_a_name_that_the_server_has_not_is_refused(open_client: Open) -> None:
    """A web page whose name was made to mean 127.0.0.1 gets nothing (DNS rebinding)."""
    with open_client(access=Access(hosts=("localhost", "127.0.0.1", "[::1]"))) as client:
        for host in ("localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"):
            assert client.get("/healthz", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.nip.io:8000"):
            answer = client.get("/healthz", headers={"Host": host})
            assert answer.status_code == 403, host
            assert answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize(("token", "stranger"), [(None, 403), (TOKEN, 200)])
def test_open_to_the_network_it_has_names_too(
    predictor: ModelPredictor, tmp_path: Path, token: str | None, stranger: int
) -> None:
    """On 0.0.0.0 a web page with a name of its own gets nothing, unless a token guards the rest."""
    service = Service([predictor], state=tmp_path, limits=Limits())
    ready = threading.Event()
    server = Server(
        service, listener=bind("0.0.0.0", 0), access=Access(token=token),
        started=lambda _: ready.set(),
    )  # fmt: skip
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(30)
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    try:
        for host, status in (
            ("evil.example", stranger),
            (socket.gethostname(), 200),
            ("192.168.1.7", 200),
            ("localhost", 200),
        ):
            answer = requests.get(f"{url}healthz", headers={"Host": host}, timeout=30)
            assert answer.status_code == status, host
    finally:
        server.stop()
        thread.join(60)


def test_own_origin_is_scheme_host_and_port(open_client: Open) -> None:
    """A page of another port or scheme is another page, also on this machine."""
    with open_client(access=Access(own_names=("localhost", "box"))) as client:
        for host, origin, status in (
            ("localhost:8000", "http://localhost:8000", 200),
            ("localhost:8000", "https://localhost:8000", 403),
            ("localhost:8000", "http://localhost:3000", 403),
            ("localhost:8000", "http://localhost", 403),
            ("localhost", "http://localhost:80", 200),
            ("box:8000", "http://box", 403),
            ("box:8000", "http://localhost:8000", 403),
        ):
            headers = {"Host": host, "Origin": origin}
            assert client.get("/v1/models", headers=headers).status_code == status, origin


def test_a_number_is_no_stolen_name(open_client: Open) -> None:
    """Behind a proxy a container's own check still asks 127.0.0.1, and a neighbour its address."""
    with open_client(access=Access(hosts=("masks.example.org",))) as client:
        for host, status in (
            ("masks.example.org", 200),
            ("127.0.0.1:8000", 200),
            ("192.168.1.7:8000", 200),
            ("[fe80::1]:8000", 200),
            ("other.example.org", 403),
        ):
            assert client.get("/healthz", headers={"Host": host}).status_code == status, host


def test_any_page_may_use_a_server_that_says_so(open_client: Open, image: bytes) -> None:
    """`--cors *` holds for the answer as well as for the question before it."""
    with open_client(access=Access(origins=("*",))) as client:
        headers = {"Origin": "https://anyone.example"}
        assert client.post("/v1/predict", content=image, headers=headers).status_code == 200


def test_other_pages_may_use_it_where_listed(open_client: Open, image: bytes) -> None:
    """CORS for the listed origin alone; others aren't even computed for."""
    friend = "https://friend.example"
    with open_client(access=Access(origins=(friend,))) as client:
        asked = {"Origin": friend, "Access-Control-Request-Method": "POST"}
        preflight = client.options("/v1/predict", headers=asked)
        assert preflight.headers["Access-Control-Allow-Origin"] == friend
        answer = client.post("/v1/predict", content=image, headers={"Origin": friend})
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == friend
        assert "X-Binseg-Size" in answer.headers["Access-Control-Expose-Headers"]
        for stranger in ("https://evil.example", "null", "http://[broken"):
            refused = client.post("/v1/predict", content=image, headers={"Origin": stranger})
            assert refused.status_code == 403
            assert "Access-Control-Allow-Origin" not in refused.headers
        own = {"Origin": "http://testserver"}
        assert client.post("/v1/predict", content=image, headers=own).status_code == 200


def test_behind_a_proxy_the_page_may_use_its_server(open_client: Open) -> None:
    """Visitors call it by a listed name, the proxy by another one; other local pages stay out."""
    with open_client(access=Access(hosts=("localhost", "masks.example.org"))) as client:
        for origin, status in (
            ("https://masks.example.org", 200),
            ("http://localhost:8000", 200),
            ("http://localhost:3000", 403),
            ("https://other.example.org", 403),
            ("https://masks.example.org:9999", 403),
        ):
            headers = {"Host": "localhost:8000", "Origin": origin}
            assert client.get("/v1/models", headers=headers).status_code == status, origin


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/static//etc/passwd",
        "/static/..\\app.py",
        "/static/main.js%00.png",
        "/v1/examples/..%2f..%2fapp.py",
        "/v1/examples/%2fetc%2fpasswd",
        "/v1/jobs/..%2f..%2fjobs.sqlite",
        "/v1/jobs/../../etc/passwd",
        "/v1/models/..%2f..%2fcard.json",
    ],
)
def test_no_path_leads_out(open_client: Open, path: str) -> None:
    """404, as the raw path of a request that no client library has tidied up."""
    import asyncio

    with open_client() as client:
        status, body = asyncio.run(_raw_get(client.app, path))
    assert status == 404, (path, body[:200])
    assert b"root:" not in body
    assert b"import" not in body


async def _raw_get(app: object, path: str) -> tuple[int, bytes]:
    """Ask as uvicorn does: the path unquoted, and not normalised."""
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 9),
    }
    await app(scope, receive, send)  # type: ignore[operator]
    status = sent[0]["status"]
    assert isinstance(status, int)
    return status, b"".join(part.get("body", b"") for part in sent[1:])  # type: ignore[misc]


def test_metrics_count_what_was_answered(open_client: Open, image: bytes) -> None:
    """By route, not by path: whatever is asked for, the number of lines stays."""
    with open_client() as client:
        client.post("/v1/predict", content=image)
        client.post("/v1/predict", content=b"?")
        for number in range(20):
            client.get(f"/none/{number}")
            client.get(f"/v1/jobs/none{number}")
        client.request("BREW", "/")
        text = client.get("/metrics").text
    assert 'binseg_requests_total{method="POST",route="/v1/predict",status="200"} 1.0' in text
    assert 'binseg_requests_total{method="POST",route="/v1/predict",status="422"} 1.0' in text
    assert 'binseg_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"} 20.0' in text
    assert 'binseg_requests_total{method="GET",route="other",status="404"} 20.0' in text
    assert "none1" not in text
    assert "BREW" not in text
    assert "binseg_batch_inputs_count 1.0" in text
    assert "binseg_predictions 0.0" in text
    assert 'binseg_jobs{state="queued"} 0.0' in text


def test_health_and_readiness_differ(open_client: Open) -> None:
    """A server that ends is alive, but not ready."""
    with open_client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        client.app_state["service"].is_ready = False
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
