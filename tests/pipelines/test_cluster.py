"""Dask as the engine: what many processes write is what one writes, whoever is killed meanwhile."""

import io
import os
import signal
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.inference import PredictOptions, load
from binseg.inference.engine import predict_files, run
from binseg.inference.pretrained import default_bundle_path
from binseg.inference.sinks import FolderSink
from binseg.inference.sources import FileSource, RemoteSource
from binseg.inference.tiling import Bands
from binseg.pipelines import cluster
from binseg.pipelines.cluster import ModelFiles, _runs, predict_on

FILES = ModelFiles(paths=(str(default_bundle_path()),), settings=(("backend", "torch"),))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, with one that is none."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "b.png", "deep/a.png", "deep/e.png"):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "bad.png").write_bytes(b"none")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Read all files under a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_runs_of_bands_are_neighbours_and_complete() -> None:
    """Bands that are there already split a run; none is lost, none twice."""
    rest = {"tile": 64, "probability": None, "whole_pixels": 1}
    page = Bands(path=Path("a"), folder=Path("b"), page=0, numbers=(0, 1, 2, 5, 6, 9), **rest)  # type: ignore[arg-type]
    runs = [one.numbers for (one,) in _runs([page], 2)]
    assert runs == [(0, 1), (2,), (5, 6), (9,)]


@pytest.mark.slow
def test_a_cluster_gives_the_bytes_of_one_process(images: Path, tmp_path: Path) -> None:
    """Masks, tables and a huge image's file are the same; a killed worker costs nothing."""
    pytest.importorskip("distributed")
    pixels = np.random.default_rng(1).integers(0, 256, (90, 95, 3), dtype=np.uint8)
    huge = np.asarray(Image.fromarray(pixels).resize((8200, 8000)))
    tifffile.imwrite(images / "huge.tif", huge, tile=(512, 512), compression="zlib")
    options = PredictOptions(outputs=("table",))
    whole = predict_files(FILES.load(), [images], out=tmp_path / "one", options=options)
    sink = FolderSink(tmp_path / "many")
    with cluster.cluster(workers=2) as client:
        killer = threading.Timer(2.0, _kill_one, [client])
        killer.start()
        result = predict_on(client, FileSource([images]), FILES, sink, options)
        killer.join()
    assert len(result.written) == len(whole.written)
    assert [one.reason for one in result.failures] == [one.reason for one in whole.failures]
    assert files(tmp_path / "many") == files(tmp_path / "one")


def _kill_one(client: object) -> None:
    pids = client.run(os.getpid)  # type: ignore[attr-defined]
    os.kill(next(iter(pids.values())), signal.SIGKILL)


def test_addresses_give_the_masks_of_files(images: Path, tmp_path: Path) -> None:
    """Images behind memory:// and http:// are predicted like files; what is absent is named."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    predictor = load(default_bundle_path(), backend="torch")
    (images / "a.jpg").unlink()
    predict_files(predictor, [images], out=tmp_path / "one")
    fsspec.filesystem("memory").put(str(images), "/bucket", recursive=True)
    given = ["memory://bucket/", "memory://nothing/"]
    result = run(RemoteSource(given), predictor, FolderSink(tmp_path / "two"))
    assert {name: _pixels(data) for name, data in files(tmp_path / "two").items()} == {
        name: _pixels(data) for name, data in files(tmp_path / "one").items()
    }
    told = sorted(one.reason for one in result.failures)
    assert len(told) == 2
    assert "memory://" in told[0]
    assert "bad.png" in told[0]
    assert "/binseg-" not in told[0]

    class Server(SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(images))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        given = [f"{home}deep/e.png", f"{home}absent.png"]
        found = run(RemoteSource(given), predictor, FolderSink(tmp_path / "three"))
        server.shutdown()
    assert len(found.written) == 1
    assert "absent.png" in found.failures[0].reason
    assert _pixels((tmp_path / "three" / "e.png").read_bytes()) == _pixels(
        (tmp_path / "one" / "deep" / "e.png").read_bytes()
    )


@pytest.mark.slow
def test_a_bucket_gives_the_masks_of_a_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3:// is read through fsspec; the store here is moto's, on this machine."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    (images / "a.jpg").unlink()
    predictor = load(default_bundle_path(), backend="torch")
    predict_files(predictor, [images], out=tmp_path / "one")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    store = s3fs.S3FileSystem()
    store.mkdir("bucket")
    store.put(f"{images}/", "bucket/photos/", recursive=True)
    result = run(RemoteSource(["s3://bucket/photos/"]), predictor, FolderSink(tmp_path / "two"))
    server.stop()
    assert [one.source.rpartition("/")[2] for one in result.failures] == ["bad.png"]
    assert {name: _pixels(data) for name, data in files(tmp_path / "two").items()} == {
        name: _pixels(data) for name, data in files(tmp_path / "one").items()
    }


def _pixels(data: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(data))).tobytes()
