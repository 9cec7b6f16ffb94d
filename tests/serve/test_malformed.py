"""Damaged, foreign and hostile files: refused in words, and nothing of them stays."""

import gc
import io
import resource
import time
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from binseg.serve.job_store import FACTS

from .conftest import Open, decoded, png
from .damaged_images import damaged_files

FILES = list(damaged_files())
MEGABYTE = 1 << 20


def _resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize()


def test_more_than_500_bad_files_are_refused_and_leave_nothing(open_client: Open) -> None:
    """Each is a 4xx with one sentence; afterwards memory and disk are as before."""
    assert len({data for _, data in FILES}) >= 500
    with open_client() as client:
        service = client.app_state["service"]
        for _, data in FILES[::10]:  # what is made once (caches, arenas) is made now
            client.post("/v1/predict", content=data)
        gc.collect()
        before = _resident()
        wrong = []
        for name, data in FILES:
            answer = client.post("/v1/predict", content=data)
            if not 400 <= answer.status_code < 500:
                wrong.append((name, answer.status_code))
                continue
            message = answer.json()["error"]["message"]
            if "\n" in message or "Traceback" in message or len(message) > 400:
                wrong.append((name, message))
        assert not wrong
        gc.collect()
        assert _resident() - before < 64 * MEGABYTE
        assert service.capacity.held_bytes == 0
        assert service.capacity.num_slots == 0
        assert list((service.store.folder / "jobs").iterdir()) == []
        assert client.get("/readyz").status_code == 200


def test_jobs_previews_and_batches_refuse_them_too(open_client: Open) -> None:
    """A sample of them on the other routes; of a job, nothing but its facts stays behind.

    A job's image is looked at by its header first: what is broken further on fails later.
    """
    with open_client() as client:
        locations = []
        for name, data in FILES[::23]:
            taken = client.post("/v1/jobs", content=data)
            assert 400 <= taken.status_code < 500 or taken.status_code == 202, name
            locations += [taken.headers["Location"]] if taken.status_code == 202 else []
            assert 400 <= client.post("/v1/preview", content=data).status_code < 500, name
            batch = client.post("/v1/batch", files=[("files", ("a.png", data))])
            assert 400 <= batch.status_code < 500, name
        until = time.monotonic() + 60
        for location in locations:
            while (job := client.get(location).json())["state"] != "failed":
                assert job["state"] != "done"
                assert time.monotonic() < until
                time.sleep(0.01)
            assert job["error"]["code"] == "unreadable_image"
            assert "/" not in job["error"]["message"], "no folder of ours is named"
        assert locations
        folder = client.app_state["service"].store.folder / "jobs"
        # A job is said to have failed before its image is gone; the facts of why stay.
        while {path.name for path in folder.glob("*/*")} != {FACTS}:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_what_hides_behind_an_image_never_comes_back(client: TestClient, image: bytes) -> None:
    """A true image with a page behind its end is an image; only pixels are answered."""
    hidden = b"<script>alert(1)</script>PK\x03\x04"
    for output in ("mask", "probability", "overlay", "cutout", "json"):
        answer = client.post("/v1/predict", content=image + hidden, params={"output": output})
        assert answer.status_code == 200
        assert hidden not in answer.content
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_metadata_of_an_image_never_comes_back(client: TestClient) -> None:
    """A photo's place, its maker's notes and comments stay with the one who took it."""
    from PIL.PngImagePlugin import PngInfo

    notes, out = PngInfo(), io.BytesIO()
    notes.add_text("Comment", "taken at home")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(out, format="PNG", pnginfo=notes)
    for output in ("mask", "overlay", "cutout", "json"):
        answer = client.post("/v1/predict", content=out.getvalue(), params={"output": output})
        assert b"taken at home" not in answer.content


def test_names_of_files_are_harmless(client: TestClient) -> None:
    """Whatever a client calls its file, a sentence stays a sentence."""
    for name in ("a\r\nSet-Cookie: x=1", "\x1b[31mred", "<b>.png", "x" * 5000, "\u202egnp.exe"):
        answer = client.post("/v1/predict", files={"file": (name, b"nonsense")})
        assert answer.status_code in (400, 422)
        assert "set-cookie" not in answer.headers
        message = answer.json()["error"]["message"]
        assert message.isprintable()
        assert len(message) < 400
    good = png(np.zeros((8, 8, 3), np.uint8))
    answer = client.post("/v1/predict", files={"file": ("x\x00y.png", good)})
    assert decoded(answer.content).shape == (8, 8)
