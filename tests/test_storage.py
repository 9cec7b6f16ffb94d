import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from binseg import downloads
from binseg.downloads import download
from binseg.errors import DataError, OutputError
from binseg.progress import Task
from binseg.storage import (
    atomic_path,
    cache_dir,
    locked,
    parse_json,
    remove_scraps,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)

BODY = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    """Missing folders are made, an old file is replaced, no temporary file stays."""
    path = tmp_path / "a" / "b" / "file.json"
    write_text(path, "old")
    write_json(path, {"name": "Äpfel", "n": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Äpfel", "n": [1, 2]}
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    """As if opened directly: others may read what the umask lets them read."""
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failing_block_leaves_the_old_file(tmp_path: Path) -> None:
    """Half-written answers are never seen, whatever went wrong."""
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == path.parent
            assert temporary.suffix == ".txt"
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "may write"),
        (errno.EIO, "nothing was changed"),
    ],
)
def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, number: int, advice: str
) -> None:
    """The system's refusal names the file and what to do; the old file stays."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match=advice) as caught, atomic_path(path):
        raise OSError(number, os.strerror(number))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_at_the_very_end_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some systems report a full disk only when the bytes are forced out."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, f"No space left on device {descriptor}")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_text(tmp_path / "file.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_places_that_take_no_file(tmp_path: Path) -> None:
    """A folder, a device, a path through a file: refused, and still what they were."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a folder"):
        write_text(tmp_path, "text")
    with pytest.raises(OutputError, match="is a file"):
        write_text(tmp_path / "file" / "below", "text")
    with pytest.raises(OutputError, match="shorter name"):
        write_text(tmp_path / ("n" * 300), "text")
    with pytest.raises(OutputError, match="plain file"):
        write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


def test_links_stay_links(tmp_path: Path) -> None:
    """Writing to a link changes the file that it names."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_json_has_no_nan(tmp_path: Path) -> None:
    """Other readers would refuse such a file, so we don't write it."""
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "key 'c' twice"),
        ('[{"a": NaN}]', "NaN"),
        ("-Infinity", "Infinity"),
        ("9" * 5000, "digits"),
        ("[" * 100_000, "too deep"),
        ("{", "Expecting"),
        (b"\xff", "decode"),
    ],
)
def test_json_of_strangers_has_one_meaning(text: str | bytes, told: str) -> None:
    """What two readers could understand in two ways is an error; the rest is json's."""
    with pytest.raises(ValueError, match=told):
        parse_json(text)
    sound = '{"a": [1, 2.5, null, "x"], "b": {"a": true}}'
    assert parse_json(sound) == parse_json(sound.encode()) == json.loads(sound)


def test_sha256_is_hashlibs(tmp_path: Path) -> None:
    """The hash of a file is the hash of its bytes; a missing one is one line."""
    (tmp_path / "a").write_bytes(BODY)
    assert sha256_of(tmp_path / "a") == SHA256
    with pytest.raises(DataError, match="can't read"):
        sha256_of(tmp_path / "b")


def test_cache_dir_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$BINSEG_CACHE wins over the system's place."""
    monkeypatch.setenv("BINSEG_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("BINSEG_CACHE")
    assert cache_dir().name == "binseg"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second holder waits, and gives up with one line; the lock is free afterwards."""
    path = tmp_path / "new" / "thing"
    with (
        locked(path),
        pytest.raises(OutputError, match="another process") as caught,
        locked(path, timeout=0.05),
    ):
        pass
    assert "\n" not in str(caught.value)
    with locked(path, timeout=0.05):
        pass


class Told:
    """A progress listener that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.num = 0
        self.totals: list[int | None] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, num: int = 1, /, **figures: float) -> None:
        assert not figures
        self.num += num

    def task(self, label: str, *, total: int | None) -> AbstractContextManager[Task]:
        @contextmanager
        def told() -> Iterator[Task]:
            assert "file" in label
            self.totals.append(total)
            yield self

        return told()


class Server(ThreadingHTTPServer):
    """Serves BODY on 127.0.0.1 with the manners that a test asks for."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.takes_ranges = True
        self.breaks_off_after: list[int] = []
        """For each coming request, after how many bytes the line is cut."""
        self.status: list[int] = []
        """For each coming request, a status that is sent instead."""
        self.asked: list[str | None] = []
        """The Range header of each request that came."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status:
            self.send_error(server.status.pop(0))
            return
        start = 0
        if wanted and server.takes_ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match
            start = int(match[1])
            if start >= len(server.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            last = len(server.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.body)}")
        else:
            self.send_response(200)
        piece = server.body[start:]
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        if server.breaks_off_after:
            piece = piece[: server.breaks_off_after.pop(0)]
        self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "_RETRY_WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_download_fetches_checks_and_tells(server: Server, tmp_path: Path) -> None:
    """The file gets its name when whole and right; every byte is told; twice costs nothing."""
    path, told = tmp_path / "deep" / "file.bin", Told()
    assert download(server.url, path, sha256=SHA256.upper(), progress=told) == path
    assert path.read_bytes() == BODY
    assert told.num == len(BODY)
    assert told.totals == [len(BODY)]
    assert list(path.parent.iterdir()) == [path], "neither a part nor a lock stays"
    download(server.url, path, md5=MD5)
    assert len(server.asked) == 1


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, takes_ranges: bool
) -> None:
    """A broken line is taken up again, and a server that can't do that sends the whole."""
    server.takes_ranges = takes_ranges
    server.breaks_off_after = [300_000, 200_000]
    download(server.url, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked[0] is None
    assert server.asked[1] is not None
    assert len(server.asked) == 3


def test_download_resumes_what_an_earlier_run_left(server: Server, tmp_path: Path) -> None:
    """Only the missing bytes travel, and the progress starts at what is there."""
    (tmp_path / "file.part").write_bytes(BODY[:500_000])
    told = Told()
    download(server.url, tmp_path / "file", sha256=SHA256, progress=told)
    assert server.asked == ["bytes=500000-"]
    assert (tmp_path / "file").read_bytes() == BODY
    assert told.num == len(BODY)


def test_download_without_a_checksum_starts_afresh(server: Server, tmp_path: Path) -> None:
    """Nothing could prove that an old half belongs to the new one."""
    (tmp_path / "file.part").write_bytes(b"something else")
    download(server.url, tmp_path / "file")
    assert server.asked == [None]
    assert (tmp_path / "file").read_bytes() == BODY


def test_download_finds_a_whole_part_complete(server: Server, tmp_path: Path) -> None:
    """Everything had come, only the renaming was missing."""
    (tmp_path / "file.part").write_bytes(BODY)
    download(server.url, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("stale", [b"x" * 1000, b"x" * (len(BODY) + 5), b"x" * len(BODY)])
def test_a_stale_part_is_fetched_again(server: Server, tmp_path: Path, stale: bytes) -> None:
    """The left-over of another version doesn't spoil the file for ever."""
    (tmp_path / "file.part").write_bytes(stale)
    download(server.url, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    """The file never gets its name; the message has both hashes."""
    for sha256, md5 in (("0" * 64, None), (None, "0" * 32)):
        with pytest.raises(DataError, match=r"expected (md5:)?000.*but got \w+") as caught:
            download(server.url, tmp_path / "file", sha256=sha256, md5=md5)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "file").exists()
        assert not (tmp_path / "file.part").exists()


def test_a_wrong_file_in_place_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    """It may be the user's; the message says what to do."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="move it away"):
        download(server.url, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_text() == "mine"
    assert server.asked == []


def test_servers_that_refuse(server: Server, tmp_path: Path) -> None:
    """404 is final; 503 is tried again."""
    server.status = [404]
    with pytest.raises(DataError, match="404"):
        download(server.url, tmp_path / "file", sha256=SHA256)
    assert len(server.asked) == 1
    server.status = [503, 500]
    download(server.url, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == BODY


def test_servers_that_stay_ill(server: Server, tmp_path: Path) -> None:
    """After a few tries without a new byte the last reason is told, and what came is kept."""
    (tmp_path / "file.part").write_bytes(BODY[:10])
    server.status = [503] * 50
    with pytest.raises(DataError, match=r"503.*run again to go on"):
        download(server.url, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file.part").read_bytes() == BODY[:10]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/file", "ftp://127.0.0.1/file", "nonsense"])
def test_addresses_that_lead_nowhere(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the address."""
    monkeypatch.setattr(downloads, "_RETRY_WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match=re.escape(url)) as caught:
        download(url, tmp_path / "file", sha256=SHA256)
    assert "\n" not in str(caught.value)
    assert ".part" not in str(caught.value), "nothing has come"
    assert "object at" not in str(caught.value)


def test_a_full_disk_while_downloading_keeps_what_came(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the disk's error, not the line's, and isn't tried again."""
    sent = requests.Response.iter_content

    def full(self: requests.Response, size: int) -> Iterator[bytes]:
        yield next(sent(self, size))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(requests.Response, "iter_content", full)
    with pytest.raises(OutputError, match="No space left"):
        download(server.url, tmp_path / "file", sha256=SHA256)
    assert len(server.asked) == 1
    assert (tmp_path / "file.part").stat().st_size > 0


def test_names_that_are_no_text_are_written_as_they_are(tmp_path: Path) -> None:
    """Python reads odd bytes of a file's name as surrogates; text gives them back, JSON escapes."""
    name = os.fsdecode(b"bl\xe4tt")
    write_text(tmp_path / "a.csv", name)
    assert (tmp_path / "a.csv").read_bytes() == b"bl\xe4tt"
    write_json(tmp_path / "a.json", {"id": name})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"id": name}


def test_a_slow_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over a network: a reader sees the old file or the new one, however long syncing takes."""
    path = tmp_path / "a.txt"
    write_text(path, "old")
    real, seen = os.fsync, []

    def slow(handle: int) -> None:
        seen.append(path.read_text())
        time.sleep(0.05)
        real(handle)

    monkeypatch.setattr(os, "fsync", slow)
    write_text(path, "new")
    assert seen[0] == "old"
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_scraps_of_killed_processes_go_and_nothing_else(tmp_path: Path) -> None:
    """Only names that `atomic_path` gives are removed: the folder may be anybody's."""
    with atomic_path(tmp_path / "mask.png") as half_written:
        scrap = tmp_path / half_written.name
        half_written.write_bytes(b"whole")
    kept = [".tmp-of mine.png", ".tmp-0123.png", "mask.png", "deep/.tmp-0123456789ab.png"]
    (tmp_path / "deep").mkdir()
    for name in kept:
        (tmp_path / name).touch()
    scrap.touch()
    remove_scraps([tmp_path, tmp_path])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == sorted(
        kept
    )
