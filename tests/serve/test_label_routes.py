"""The routes of `binseg label`: what is answered is on the disk, what is wrong is one sentence."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from binseg.labeling.cold_engine import ColdEngine
from binseg.labeling.label_log import MOST_POINTS
from binseg.labeling.project import Project
from binseg.labeling.session import Session
from binseg.serve.app import Access, create_app
from binseg.serve.label_routes import LabelService, router

TOKEN = "a-token-that-is-long-enough"


def features(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, bright at the left."""
    folder = tmp_path / "home" / "photos"
    folder.mkdir(parents=True)
    rgb = np.full((40, 60, 3), 60, np.uint8)
    rgb[:, :30] = 200
    for name in ("a", "b", "sub/c"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rgb).save(folder / f"{name}.png")
    return folder


sessions: list[Session] = []  # as they were opened


def client_of(photos: Path, access: Access | None = None) -> TestClient:
    sessions.append(Session(Project(photos), engine=ColdEngine({"colour": features})))
    app = create_app(LabelService(sessions[-1]), access=access, routers=[router])
    return TestClient(app, raise_server_exceptions=False, base_url="http://127.0.0.1")


@pytest.fixture
def client(photos: Path) -> Iterator[TestClient]:
    """A client of a server on the photos."""
    with client_of(photos) as opened:
        yield opened


def stroke(page: TestClient, **change: Any) -> Any:
    body: dict[str, Any] = {
        "name": "a",
        "tool": "brush",
        "value": 1,
        "points": [[10, 10], [12, 30]],
        "radius": 3,
    }
    return page.post("/v1/label/stroke", json={**body, **change})


def mask(client: TestClient, **change: Any) -> Any:
    query: dict[str, Any] = {"name": "a", "top": 0, "left": 0, "bottom": 40, "right": 60}
    return client.get("/v1/label/mask", params={**query, **change})


def pixels(answer: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_a_stroke_is_on_the_disk_when_it_is_answered(client: TestClient, photos: Path) -> None:
    """The answer names the line of the log, and another reader of the file finds it."""
    import sqlite3

    line = stroke(client).json()["line"]
    other = sqlite3.connect(photos.parent / "labels.sqlite")
    assert other.execute("select kind, value from log where id = ?", (line,)).fetchone() == (
        "stroke",
        1,
    )
    other.close()


def test_strokes_accept_and_next(client: TestClient, photos: Path) -> None:
    """Two strokes give a mask, accept keeps it as it was seen, and another image follows."""
    stroke(client)
    line = stroke(client, value=0, points=[[45, 5], [45, 35]]).json()["line"]
    for _ in range(10):  # on a busy machine an answer may not wait for the engine to its end
        answer = mask(client, after=line, fine=True)
        if answer.headers["X-Binseg-Fine"] == "1":
            break
    assert answer.headers["X-Binseg-Engine"] == "cold"
    codes = pixels(answer)
    assert ((codes & 1)[:, :30] == 1).all()
    assert ((codes & 1)[:, 30:] == 0).all()
    seen = {
        "seen": int(answer.headers["X-Binseg-Line"]),
        "version": int(answer.headers["X-Binseg-Version"]),
    }
    assert client.post("/v1/label/accept", json={"name": "a", **seen}).status_code == 200
    kept = np.asarray(Image.open(photos.parent / "masks" / "a.png"))
    assert np.array_equal(kept > 0, (codes & 1) == 1)
    assert client.get("/v1/label/next", params={"after": "a"}).json()["name"] in {"b", "sub/c"}
    assert client.get("/v1/label/status").json()["done"] == 1


def test_two_windows_do_not_lose_each_others_work(client: TestClient) -> None:
    """An accept of what another window has drawn over is refused with 409; both strokes stay."""
    first = stroke(client, client="one").json()["line"]
    stroke(client, client="two", value=0, points=[[50, 20]])
    answer = client.post("/v1/label/accept", json={"name": "a", "seen": first, "empty": True})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "changed"
    assert "another window" in answer.json()["error"]["message"]
    assert stroke(client, client="one").json()["line"] == first, "sent again, it counts once"


def test_a_full_disk_is_one_sentence(client: TestClient, photos: Path) -> None:
    """What the disk refuses is told, with what to do; what was answered is there still."""
    line = stroke(client).json()["line"]
    project = sessions[-1].project
    (pages,) = project._db.execute("pragma page_count").fetchone()
    project._db.execute(f"pragma max_page_count = {pages}")
    points = [[i % 60, i % 40] for i in range(MOST_POINTS)]
    for _ in range(20):
        answer = stroke(client, points=points)
        if answer.status_code != 200:
            break
    assert answer.status_code == 507
    assert answer.json()["error"]["message"].endswith("make room on it, and draw on.")
    assert project.lines("a")[0].id == line


def test_undo_and_redo(client: TestClient) -> None:
    """Undo tells a line; where nothing is left it tells null."""
    stroke(client)
    undone = client.post("/v1/label/undo", json={"name": "a"}).json()["line"]
    assert (pixels(mask(client, after=undone)) < 2).all()
    assert client.post("/v1/label/undo", json={"name": "a"}).json()["line"] is None
    redone = client.post("/v1/label/undo", json={"name": "a", "redo": True}).json()["line"]
    assert (pixels(mask(client, after=redone)) == 3).any()


def test_tiles_show_the_image(client: TestClient, photos: Path) -> None:
    """Tiles are the image's pixels, also of names with folders in them."""
    answer = client.get("/v1/label/tile", params={"name": "sub/c", "row": 0, "column": 0})
    assert np.array_equal(pixels(answer), np.asarray(Image.open(photos / "sub" / "c.png")))
    half = client.get("/v1/label/tile", params={"name": "a", "row": 0, "column": 0, "level": 1})
    assert pixels(half).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (
            "stroke",
            {"name": "a", "tool": "brush", "value": 9, "points": [[1, 1]], "radius": 2},
            422,
        ),
        ("stroke", {"name": "a", "tool": "labels", "value": 0, "points": [[1, 1]]}, 422),
        ("stroke", {"name": "a", "tool": "brush", "value": 1, "points": [[1, "x"]]}, 422),
        ("stroke", {"name": "a", "tool": "brush", "value": 1, "points": [[1, 1e300]]}, 422),
        ("stroke", {"name": "a", "tool": "polygon", "value": 1, "points": [[1, 1], [2, 2]]}, 422),
        ("fill", {"name": "a", "x": 10**400, "y": 1, "value": 1}, 422),
        ("box", {"name": "a", "top": 0, "left": 0, "bottom": 10**30, "right": 9, "value": 1}, 422),
        ("skip", {"name": "a\0/../b"}, 422),
        (
            "stroke",
            {"name": "../x", "tool": "brush", "value": 1, "points": [[1, 1]], "radius": 1},
            422,
        ),
        ("fill", {"name": "a", "x": 500, "y": 1, "value": 1}, 422),
        ("box", {"name": "a", "top": 1, "left": 1, "bottom": 2, "right": 2, "value": 1}, 422),
        ("accept", {"name": "a"}, 422),
        ("train", {"minutes": 5}, 422),
        ("train", {"minutes": -5}, 422),
        ("skip", {"name": "a", "extra": 1}, 422),
    ],
)
def test_what_is_wrong_is_one_sentence(
    client: TestClient, path: str, body: dict[str, Any], status: int
) -> None:
    """Every refusal has a code and a sentence, and leaves the project as it was."""
    answer = client.post(f"/v1/label/{path}", json=body)
    assert answer.status_code == status
    told = answer.json()["error"]
    assert told["code"] in {"bad_parameter", "unreadable_image"}
    assert told["message"].endswith(".")
    assert client.get("/v1/label/status").json()["strokes"] == 0


@pytest.mark.parametrize("tool", ["brush", "polygon"])
def test_a_stroke_costs_what_its_image_has(client: TestClient, tool: str) -> None:
    """The most points and the widest brush that are taken are drawn soon; NaN is no place."""
    points = [[i % 60, (i * 7919) % 40] for i in range(MOST_POINTS)]
    start = time.process_time()
    answer = stroke(client, tool=tool, points=points, radius=2000)
    assert answer.status_code == 200, answer.text
    assert time.process_time() - start < 20
    for text in ("NaN", "Infinity", "1e999"):
        body = '{"name": "a", "tool": "brush", "value": 1, "points": [[%s, 1]], "radius": 1}'
        answer = client.post("/v1/label/stroke", content=body % text)
        assert answer.status_code == 422, text


@pytest.mark.parametrize(
    "part",
    [
        {"top": 30, "bottom": 10},
        {"top": -5},
        {"left": 60, "right": 60},
        {"bottom": 10**30},
        {"after": 10**40},
        {"top": 39_000, "bottom": 39_001},
    ],
)
def test_parts_that_are_none_are_refused(client: TestClient, part: dict[str, int]) -> None:
    """Turned, empty and endless parts are one sentence."""
    answer = mask(client, **part)
    assert answer.status_code in (413, 422), answer.text
    assert answer.json()["error"]["message"]


def test_a_requests_name_is_that_of_one_image(client: TestClient) -> None:
    """What was sent for an image is never drawn on another one, and never lost without a word."""
    assert stroke(client, client="once").status_code == 200
    answer = stroke(client, client="once", name="b")
    assert answer.status_code == 422
    assert client.get("/v1/label/status").json()["strokes"] == 1


def test_a_body_without_end_is_refused(client: TestClient) -> None:
    """A stroke has a largest size."""
    answer = client.post("/v1/label/stroke", content=b"x" * 3_000_000)
    assert answer.status_code == 413


def test_the_door_is_that_of_serve(photos: Path) -> None:
    """Other pages and other names are refused, and a token is asked for where there is one."""
    access = Access(token=TOKEN, own_names=("127.0.0.1",))
    with client_of(photos, access) as client:
        assert client.get("/").status_code == 200, "the page must be there to ask for the token"
        assert client.get("/static/label/main.js").status_code == 200
        assert client.get("/v1/label/status").status_code == 401
        assert stroke(client).status_code == 401
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert client.get("/v1/label/status").status_code == 200
        evil = {"Origin": "https://evil.example"}
        body: dict[str, Any] = {
            "name": "a",
            "tool": "brush",
            "value": 1,
            "points": [[1, 1]],
            "radius": 2,
        }
        assert client.post("/v1/label/stroke", json=body, headers=evil).status_code == 403
        assert client.get("/", headers={"Host": "rebound.example"}).status_code == 403
        policy = client.get("/").headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
