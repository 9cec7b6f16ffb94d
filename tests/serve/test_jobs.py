"""Jobs: work that outlives its request, and the server."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile
from starlette.testclient import TestClient

from binseg.errors import OutputError, UsageError
from binseg.imageio.cage import Cage
from binseg.inference import ModelPredictor
from binseg.serve.job_routes import _check_room
from binseg.serve.job_store import FACTS, IMAGE, JobStore
from binseg.serve.job_worker import JobWorker
from binseg.serve.limits import Limits
from binseg.serve.model_registry import ModelRegistry
from binseg.serve.refusals import Refusal

from .conftest import Open, decoded

PATIENCE_S = 60


def _done(ask: Callable[[str], Any], location: str, state: str = "done") -> dict[str, Any]:
    """Ask until the job has ended; how far it is never shrinks."""
    until, before = time.monotonic() + PATIENCE_S, 0.0
    while time.monotonic() < until:
        answer = ask(location)
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        if job["state"] in ("done", "failed"):
            assert job["state"] == state, job
            return job
        assert job["progress"] >= before
        before = job["progress"]
        time.sleep(0.02)
    raise AssertionError("the job doesn't end")


@pytest.mark.parametrize("output", ["mask", "probability", "overlay", "cutout", "json"])
def test_a_job_gives_what_predict_gives(open_client: Open, image: bytes, output: str) -> None:
    """The same parameters, the same answer, byte for byte."""
    query: dict[str, str | int] = {"output": output, "threshold": "0.4", "min_area": 3}
    with open_client() as client:
        taken = client.post("/v1/jobs", content=image, params=query)
        assert taken.status_code == 202, taken.text
        assert taken.headers["Location"] == taken.json()["location"]
        job = _done(client.get, taken.json()["location"])
        assert job["progress"] == 1.0
        result = client.get(job["result"])
        plain = client.post("/v1/predict", content=image, params=query)
        assert result.content == plain.content
        for name in ("content-type", "X-Binseg-Model", "X-Binseg-Threshold", "X-Binseg-Size"):
            assert result.headers[name] == plain.headers[name]


def test_a_stack_comes_back_as_a_stack(open_client: Open, image: bytes) -> None:
    """What /v1/predict refuses, pages and all, is a job; its mask is a TIFF of as many pages."""
    page = decoded(image)
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([page, page[::-1]]), photometric="rgb")
    with open_client() as client:
        refused = client.post("/v1/predict", content=out.getvalue())
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "stack"
        taken = client.post("/v1/jobs", content=out.getvalue(), params={"output": "probability"})
        job = _done(client.get, taken.json()["location"])
        result = client.get(job["result"])
        one = client.post("/v1/predict", content=image, params={"output": "probability"})
    assert result.headers["content-type"] == "image/tiff"
    pages = tifffile.imread(io.BytesIO(result.content))
    assert pages.shape == (2, 36, 44)
    assert np.array_equal(pages[0], decoded(one.content))


def test_what_can_only_fail_is_refused_at_once(open_client: Open) -> None:
    """No image, an unknown model, outlines of a stack: no job, and nothing left on the disk."""
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    with open_client() as client:
        for body, query, status in (
            (b"nonsense", {}, 422),
            (b"", {}, 422),
            (out.getvalue(), {"output": "json"}, 422),
            (out.getvalue(), {"model": "none"}, 404),
        ):
            answer = client.post("/v1/jobs", content=body, params=query)
            assert answer.status_code == status
            assert "/" not in answer.json()["error"]["message"], "no folder of ours is named"
        folder = client.app_state["service"].store.folder / "jobs"
        assert list(folder.iterdir()) == []


def test_a_job_is_too_large_or_the_disk_too_small(open_client: Open, image: bytes) -> None:
    """413 for one that may never come, 429 for one that may come later."""
    with open_client(max_job_bytes=100) as client:
        assert client.post("/v1/jobs", content=image).status_code == 413
    with open_client(max_job_pixels=100) as client:
        answer = client.post("/v1/jobs", content=image)
        assert answer.json()["error"]["code"] == "too_many_pixels"
    with open_client(max_jobs_bytes=100) as client:
        answer = client.post("/v1/jobs", content=image)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "jobs_full"
    with open_client(max_jobs_bytes=100_000) as client:
        store = client.app_state["service"].store
        slow = store.new_folder()  # somebody else's image, still on its way
        (slow / IMAGE).write_bytes(bytes(100_000))
        assert store.num_bytes() >= 100_000
        assert client.post("/v1/jobs", content=image).status_code == 429
        store.release(slow)
        assert store.num_bytes() == 0
        assert client.post("/v1/jobs", content=image).status_code == 202
    with open_client(max_jobs=1) as client:
        client.post("/v1/jobs", content=image)
        answer = client.post("/v1/jobs", content=image)
        assert answer.json()["error"]["code"] == "jobs_full"


def test_disk_use_is_counted_as_it_is(predictor: ModelPredictor, tmp_path: Path) -> None:
    """Half-made results and removed ones that are still sent count; a sparse file's holes don't."""
    store = JobStore(tmp_path)
    id_ = _put(store, bytes(50_000), predictor.bundle_id)
    before = store.num_bytes()
    assert 50_000 <= before < 70_000
    assert store.begin() is not None
    (store.path(id_) / "bands").mkdir()
    (store.path(id_) / "bands" / "0").write_bytes(bytes(200_000))
    assert store.num_bytes() >= before + 200_000
    (store.path(id_) / "bands" / "0").unlink()
    (store.path(id_) / "result.png").write_bytes(bytes(80_000))
    store.finish(id_, result="result.png", media="image/png", headers={})
    after = store.num_bytes()
    assert 80_000 <= after < 100_000
    with store.reading(id_):
        store.remove(id_)
        assert store.num_bytes() >= 80_000
    assert store.num_bytes() == 0
    store.close()


def test_facts_that_cannot_be_written_are_no_start_of_a_job(
    predictor: ModelPredictor, image: bytes, tmp_path: Path
) -> None:
    """However often a result can't be noted, the job isn't one that takes the server down."""
    store = JobStore(tmp_path)
    id_ = _put(store, image, predictor.bundle_id)
    for _ in range(5):
        begun = store.begin()  # each time the result is made, and the disk refuses it then
        assert begun is not None
        assert begun.starts == 1
    store.close()
    facts = tmp_path / "jobs" / id_ / FACTS
    facts.unlink()
    facts.mkdir()
    with pytest.raises(OutputError, match="can't be kept"):
        JobStore(tmp_path)


@pytest.mark.parametrize("facts", ["[]", "{", '{"id": "../../x"}', '{"more": 1}'])
def test_facts_of_others_are_one_line(tmp_path: Path, facts: str) -> None:
    """What is no job, or leads elsewhere, ends the start; nothing is removed or sent."""
    JobStore(tmp_path).close()
    whole = {
        "id": "a",
        "number": 1,
        "model": "m",
        "name": "n",
        "query": {},
        "num_bytes": 1,
        "state": "failed",
    }
    with contextlib.suppress(ValueError, TypeError):
        facts = json.dumps({**whole, **json.loads(facts)})
    (tmp_path / "jobs" / "a").mkdir()
    (tmp_path / "jobs" / "a" / FACTS).write_text(facts, "utf-8")
    with pytest.raises(OutputError, match="can't be kept"):
        JobStore(tmp_path)


def test_a_removed_job_is_gone(open_client: Open, image: bytes) -> None:
    """With its files, finished or not."""
    with open_client() as client:
        location = client.post("/v1/jobs", content=image).json()["location"]
        _done(client.get, location)
        assert client.delete(location).status_code == 204
        for answer in (client.get(location), client.get(f"{location}/result")):
            assert answer.status_code == 404
        assert client.delete(location).status_code == 404
        assert list((client.app_state["service"].store.folder / "jobs").iterdir()) == []


def test_a_result_is_not_there_too_early(open_client: Open, image: bytes) -> None:
    """409 while the job waits or runs."""
    with open_client() as client:
        service = client.app_state["service"]
        with service.worker._changed:
            folder = service.store.new_folder()
            (folder / IMAGE).write_bytes(image)
            job = service.store.add(
                folder, model=service.registry.default.id, name="p", query={"output": "mask"}
            )
            answer = client.get(f"/v1/jobs/{job.id}/result")
            assert answer.status_code == 409
            assert answer.headers["Retry-After"] == "1"
            assert client.get(f"/v1/jobs/{job.id}").json()["state"] == "queued"
        service.worker.wake()
        _done(client.get, f"/v1/jobs/{job.id}")


class _Stuck:
    """A backend that waits until it may go on."""

    name, precision = "stuck", "fp32"

    def __init__(self, predictor: ModelPredictor) -> None:
        self._backend = predictor.backend
        self.gate, self.entered = threading.Event(), threading.Event()

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return self._backend.logits(inputs_NCHW)


def _put(store: JobStore, image: bytes, model: str) -> str:
    folder = store.new_folder()
    (folder / IMAGE).write_bytes(image)
    query = {"output": "mask"}
    return store.add(folder, model=model, name="p", query=query).id


def test_an_orderly_end_puts_the_job_back(
    predictor: ModelPredictor, image: bytes, tmp_path: Path, cage: Cage
) -> None:
    """The server ends in the middle of a job, without waiting for it; the next start does it."""
    from copy import copy

    slow = copy(predictor)
    slow.backend = stuck = _Stuck(predictor)
    store = JobStore(tmp_path / "state")
    worker = JobWorker(store, ModelRegistry([slow]), Limits(), cage)
    ids = [_put(store, image, predictor.bundle_id) for _ in range(3)]
    worker.wake()
    assert stuck.entered.wait(PATIENCE_S)
    ending = threading.Thread(target=worker.stop)
    ending.start()
    while not worker.is_stopping:
        time.sleep(0.01)
    stuck.gate.set()
    ending.join(PATIENCE_S)
    assert store.num_in() == {"queued": 3, "running": 0, "done": 0, "failed": 0}
    store.close()

    store = JobStore(tmp_path / "state")
    worker = JobWorker(store, ModelRegistry([predictor]), Limits(), cage)
    until = time.monotonic() + PATIENCE_S
    while store.num_in()["done"] < 3 and time.monotonic() < until:
        time.sleep(0.02)
    assert [store.find(one).state for one in ids] == ["done"] * 3  # type: ignore[union-attr]
    worker.stop()
    store.close()


def test_a_job_that_takes_the_server_down_is_not_tried_for_ever(
    predictor: ModelPredictor, image: bytes, tmp_path: Path, cage: Cage
) -> None:
    """After three starts that never came to an end it has failed, and says so."""
    store = JobStore(tmp_path / "state")
    id_ = _put(store, image, predictor.bundle_id)
    for _ in range(3):
        begun = store.begin()
        assert begun is not None
        assert begun.id == id_
        store.close()  # as by a crash: nothing is put back
        store = JobStore(tmp_path / "state")
    worker = JobWorker(store, ModelRegistry([predictor]), Limits(), cage)
    until = time.monotonic() + PATIENCE_S
    while store.num_in()["failed"] == 0 and time.monotonic() < until:
        time.sleep(0.02)
    job = store.find(id_)
    assert job is not None
    assert job.code == "job_lost"
    worker.stop()
    store.close()


def test_two_servers_share_no_state(tmp_path: Path) -> None:
    """The second one is told so in a line."""
    store = JobStore(tmp_path)
    with pytest.raises(UsageError, match="another --state"):
        JobStore(tmp_path)
    store.close()
    JobStore(tmp_path).close()


def test_what_came_half_is_swept_away(tmp_path: Path) -> None:
    """Images whose request never ended, and files without a line, go at the next start."""
    store = JobStore(tmp_path)
    (store.new_folder() / IMAGE).write_bytes(b"half")
    (store.path("unknown")).mkdir()
    store.close()
    store = JobStore(tmp_path)
    assert list((tmp_path / "jobs").iterdir()) == []
    store.close()


def test_old_results_are_removed(predictor: ModelPredictor, image: bytes, tmp_path: Path) -> None:
    """A finished job stays for its hours, a waiting one for as long as it takes."""
    store = JobStore(tmp_path)
    done, waiting = (_put(store, image, predictor.bundle_id) for _ in range(2))
    assert store.begin() is not None
    store.fail(done, code="x", message="X.")
    store.remove_old(hours=1)
    assert store.find(done) is not None
    store.remove_old(hours=-1)
    assert store.find(done) is None
    assert store.find(waiting) is not None
    store.close()


@contextmanager
def _process(bundle: Path, port: int, state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server as people start it; one that answers."""
    command = [sys.executable, "-m", "binseg", "serve", str(bundle), "--port", str(port)]
    command += ["--state", str(state), "--batch-size", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            until = time.monotonic() + PATIENCE_S
            while True:
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
                assert time.monotonic() < until
                try:
                    if requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    time.sleep(0.05)
            yield process
        finally:
            process.kill()


def test_killed_in_the_middle_the_next_start_finishes(
    trained: Path, image: bytes, tmp_path: Path
) -> None:
    """Kill -9 during a job: after a start with the same state no job is lost, and all are right."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    page = decoded(image)
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([page] * 150), photometric="rgb")  # seconds of work
    stack = out.getvalue()
    state = tmp_path / "state"
    with _process(trained, port, state) as process:
        with requests.Session() as session:
            bodies = (stack, image, image)
            jobs = [session.post(f"{url}/v1/jobs", data=body).json() for body in bodies]
            first = jobs[0]["location"]
            until = time.monotonic() + PATIENCE_S
            while (job := session.get(url + first).json())["progress"] < 0.02:
                assert time.monotonic() < until
                assert job["state"] in ("queued", "running"), job
                time.sleep(0.01)
            assert job["state"] == "running"
            os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
    with _process(trained, port, state) as process, requests.Session() as session:
        for job in jobs:
            _done(lambda path: session.get(url + path), job["location"])
        pages = tifffile.imread(io.BytesIO(session.get(f"{url}{first}/result").content))
        alone = session.post(f"{url}/v1/predict", data=image).content
        assert pages.shape == (150, 36, 44)
        assert (pages == decoded(alone)).all()
        last = session.get(f"{url}{jobs[2]['location']}/result")
        assert last.content == alone
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_clients_see_no_folder(client: TestClient, image: bytes) -> None:
    """What a job says of itself names addresses, never places on the server's disk."""
    job = client.post("/v1/jobs", files={"file": ("../../x.png", image)}).json()
    assert job["name"] == "x.png"
    assert job["location"] == f"/v1/jobs/{job['id']}"
    assert len(job["id"]) >= 20
    assert set(job) == {"id", "state", "progress", "location", "model", "name"}


def test_jobs_are_private(open_client: Open, image: bytes) -> None:
    """No file or folder of the store is readable for others, whatever the process's umask."""
    before = os.umask(0)
    try:
        with open_client() as client:
            location = client.post("/v1/jobs", content=image).json()["location"]
            _done(client.get, location)
            folder = client.app_state["service"].store.folder
            modes = {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    finally:
        os.umask(before)
    assert {path for path in modes if path.is_file()} >= {folder / "server.lock"}
    assert any(path.name == "result.png" for path in modes)
    assert set(modes.values()) == {0o600, 0o700}


def test_a_clock_that_is_set_forward_removes_nothing(
    predictor: ModelPredictor, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are kept by hours that a server ran, over its restarts too."""
    store = JobStore(tmp_path)
    id_ = _put(store, image, predictor.bundle_id)
    store.fail(id_, code="x", message="X.")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    store.remove_old(hours=24)
    assert store.find(id_) is not None
    passed = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: passed + 20 * 3600)
    store.remove_old(hours=24)
    store.close()
    store = JobStore(tmp_path)
    assert store.find(id_) is not None
    monkeypatch.setattr(time, "monotonic", lambda: passed + 25 * 3600)
    store.remove_old(hours=24)
    assert store.find(id_) is None
    store.close()


def test_a_disk_that_hangs_freezes_nobody(
    open_client: Open, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a new job waits for the disk all else is answered at once; then it is refused."""
    with open_client() as client:
        location = client.post("/v1/jobs", content=image).json()["location"]
        _done(client.get, location)
        refused: list[Any] = []
        entered, gate = threading.Event(), threading.Event()

        def hang(path: Path, facts: object) -> None:
            entered.set()
            assert gate.wait(PATIENCE_S)
            raise OutputError(f"can't write {path}: no space left")

        monkeypatch.setattr("binseg.serve.job_store.write_json", hang)
        asking = threading.Thread(
            target=lambda: refused.append(client.post("/v1/jobs", content=image))
        )
        asking.start()
        assert entered.wait(PATIENCE_S)
        for path in ("/healthz", "/metrics", location, f"{location}/result"):
            asked = time.monotonic()
            assert client.get(path).status_code == 200, path
            assert time.monotonic() - asked < 5, path
        assert client.delete(location).status_code == 204
        assert client.get(location).status_code == 404
        gate.set()
        asking.join(PATIENCE_S)
        assert refused[0].status_code == 507
        assert refused[0].json()["error"]["code"] == "storage"
        assert list((client.app_state["service"].store.folder / "jobs").iterdir()) == []
        monkeypatch.undo()
        again = client.post("/v1/jobs", content=image).json()["location"]
        _done(client.get, again)


def test_deleting_frees_a_full_disk(
    predictor: ModelPredictor, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files go although nothing can be written; the next start knows the job no more."""
    store = JobStore(tmp_path)
    id_, other, held = (_put(store, image, predictor.bundle_id) for _ in range(3))

    def refuse(path: Path, facts: object) -> None:
        raise OutputError(f"can't write {path}: no space left")

    monkeypatch.setattr("binseg.serve.job_store.write_json", refuse)
    with pytest.raises(OutputError):
        store.begin()
    store.remove(id_)
    assert not store.path(id_).exists()
    assert store.find(id_) is None
    with store.reading(held):  # and one that is removed in the middle of being sent
        store.remove(held)
        store.close()
        monkeypatch.undo()
        store = JobStore(tmp_path)
        assert store.find(id_) is None
        assert store.find(held) is None
        assert store.find(other) is not None
        store.close()


def test_a_result_that_is_removed_while_it_is_sent_comes_whole(
    open_client: Open, image: bytes
) -> None:
    """The job is gone at once, its file when the last one has it."""
    with open_client() as client:
        store = client.app_state["service"].store
        location = client.post("/v1/jobs", content=image).json()["location"]
        job = _done(client.get, location)
        expected = client.get(job["result"]).content
        with store.reading(job["id"]):
            assert client.delete(location).status_code == 204
            assert client.get(job["result"]).status_code == 404
            assert (store.path(job["id"]) / "result.png").read_bytes() == expected
        assert not store.path(job["id"]).exists()


def test_slow_uploads_hold_only_what_has_come(open_client: Open, image: bytes) -> None:
    """Five clients that announce all the room there is, and send a byte, keep nobody out."""
    with open_client(max_jobs_bytes=100_000) as client:
        service = client.app_state["service"]
        folders = [service.store.new_folder() for _ in range(5)]
        for folder in folders:
            (folder / IMAGE).write_bytes(b"1")
            _check_room(service, folder / IMAGE, coming=40_000)
        assert client.post("/v1/jobs", content=image).status_code == 202
        with pytest.raises(Refusal, match="no room"):
            _check_room(service, folders[0] / IMAGE, coming=110_000)
