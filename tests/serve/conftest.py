"""A small model behind HTTP: in this process without a socket, and on a socket of its own."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import binseg
from binseg.imageio.cage import Cage
from binseg.inference import ModelPredictor
from binseg.serve import refusals
from binseg.serve.app import Access, create_app
from binseg.serve.limits import Limits
from binseg.serve.server import Server
from binseg.serve.service import Service

Open = Callable[..., AbstractContextManager[TestClient]]
Listen = Callable[..., AbstractContextManager[Server]]


def png(image: np.ndarray) -> bytes:
    """An image as PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG")
    return out.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """An image's pixels, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(autouse=True)
def refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of unreadable images are sent here; `test_limits` tests that they are spaced out."""
    monkeypatch.setattr(refusals, "_BETWEEN_S", 0.0)


@pytest.fixture(scope="session")
def predictor(trained: Path) -> ModelPredictor:
    """The model that is served."""
    return binseg.load(trained)


@pytest.fixture
def cage() -> Iterator[Cage]:
    """Decoders of a test's own."""
    opened = Cage()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def image(discs: Path) -> bytes:
    """An image's file, with something to find in it."""
    return (discs / "images" / "disc003.png").read_bytes()


@pytest.fixture
def open_client(predictor: ModelPredictor, tmp_path: Path) -> Open:
    """Makes clients of servers without a socket: `open_client(access=..., max_bytes=...)`."""

    @contextmanager
    def opened(*, access: Access | None = None, **limits: float) -> Iterator[TestClient]:
        state = tmp_path / "state"
        service = Service([predictor], state=state, limits=Limits(**limits))  # type: ignore[arg-type]
        app = create_app(service, access=access)
        with TestClient(app, raise_server_exceptions=False) as client:
            client.app_state["service"] = service
            yield client

    return opened


@pytest.fixture(scope="module")
def client(
    predictor: ModelPredictor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """A client of a server with the usual limits, shared by the tests of a module."""
    state = tmp_path_factory.mktemp("state")
    app = create_app(Service([predictor], state=state, limits=Limits()))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def listen(predictor: ModelPredictor, tmp_path: Path) -> Listen:
    """Makes servers on a free port of this machine, in a thread: `listen(head_seconds=0.5)`."""

    @contextmanager
    def listening(*, access: Access | None = None, **limits: float) -> Iterator[Server]:
        service = Service([predictor], state=tmp_path / "state", limits=Limits(**limits))  # type: ignore[arg-type]
        ready = threading.Event()
        server = Server(service, access=access, started=lambda _: ready.set())
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            assert ready.wait(30), "the server starts"
            yield server
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive(), "the server ends"

    return listening
