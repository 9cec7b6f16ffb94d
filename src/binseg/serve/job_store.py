"""Jobs on disk: a SQLite table, and a folder for each one's image and result."""

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import filelock

from binseg.errors import OutputError, UsageError

State = Literal["queued", "running", "done", "failed"]
STATES: tuple[State, ...] = get_args(State)
IMAGE = "image"
_PATIENCE_S = 2.0  # Time to wait for another program that has locked the table
PRIVATE = 0o600  # Mode of all files: jobs hold other people's images
_INCOMING = "incoming-"
_TABLE = "create table if not exists jobs (id text primary key, facts text not null)"
# An upsert: the row keeps its place, which is the job's place in line.
_SAVE = "insert into jobs (id, facts) values (?, ?) on conflict (id) do update set facts = ?2"


@dataclass(frozen=True, kw_only=True)
class Job:
    """The facts of one job."""

    id: str
    model: str
    name: str
    query: dict[str, Any]
    num_bytes: int  # Bytes on disk of the image, later of the result
    state: State = "queued"
    starts: int = 0  # The times that its work began without being put back in order
    kept_seconds: float = 0.0  # Time since its end while a server ran: no set clock counts
    result: str | None = None  # File name of the result in the job's folder
    media: str | None = None
    headers: dict[str, str] = field(default_factory=dict)  # Headers of the result's response
    code: str | None = None  # Reason of a failure, as in refusals, with `message`
    message: str | None = None

    def __post_init__(self) -> None:
        for name in (self.id, self.result or "x"):
            if Path(name).name != name:
                raise ValueError(f"{name!r} is no name")


class JobStore:
    """All jobs of a state folder, which belongs to one server at a time.

    A job is in the table before its client hears of it, and its result is whole before the table
    says so; a copy in memory answers. Raises OutputError, and UsageError for another server's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._incoming: set[str] = set()
        self._readers: Counter[str] = Counter()
        self._unwritten: set[str] = set()
        self._counted = time.monotonic()
        try:
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            for path in (folder, folder / "jobs"):
                path.chmod(0o700)  # other people's images
            lock = folder / "server.lock"
            self._owner = filelock.FileLock(lock, thread_local=False, mode=PRIVATE)
            self._owner.acquire(timeout=0)
            base = folder / "jobs.sqlite"
            base.touch(PRIVATE)  # SQLite's other files get the same mode
            base.chmod(PRIVATE)
            self._base = sqlite3.connect(base, check_same_thread=False, timeout=_PATIENCE_S)
            self._base.execute("pragma journal_mode = wal")
            self._base.execute("pragma synchronous = full")
            self._base.execute(_TABLE)
            rows = self._base.execute("select facts from jobs order by rowid").fetchall()
            self._jobs = {job.id: job for job in (Job(**json.loads(facts)) for (facts,) in rows)}
            self._tidy()
        except filelock.Timeout:
            raise UsageError(
                f"{folder} belongs to a server that runs; give this one another --state folder"
            ) from None
        except (OSError, sqlite3.Error, TypeError, ValueError) as error:
            raise OutputError(f"{folder}: the jobs can't be kept there: {error}") from None

    def _tidy(self) -> None:
        """Bring table and folders in line after whatever ended the server before."""
        for job in list(self._jobs.values()):
            if job.state != "failed" and not self.path(job.id).exists():
                self.remove(job.id)  # its files went when the table couldn't be written
            elif job.state == "running":  # what a stopped server worked on goes back in line
                self._change(job.id, state="queued")
        for path in (self.folder / "jobs").iterdir():
            if path.name not in self._jobs:
                shutil.rmtree(path, ignore_errors=True)

    def _change(self, id_: str, **changes: Any) -> Job | None:
        """Change the facts of a job, on disk first; None where it was removed meanwhile."""
        with self._lock:
            job = self._jobs.get(id_)
            return None if job is None else self._save(replace(job, **changes))

    def _save(self, job: Job) -> Job:
        with self._base:
            self._base.execute(_SAVE, (job.id, json.dumps(asdict(job))))
        self._jobs[job.id] = job
        return job

    def new_folder(self) -> Path:
        """Make a folder for an image that is coming; without `add` the next start removes it."""
        path = self.folder / "jobs" / f"{_INCOMING}{secrets.token_hex(8)}"
        try:
            path.mkdir(0o700)
        except OSError as error:
            raise OutputError(f"can't keep jobs in {self.folder}: {error.strerror}") from None
        self._incoming.add(path.name)
        return path

    def release(self, incoming: Path) -> None:
        """Remove what came of an image that was coming, unless it became a job."""
        shutil.rmtree(incoming, ignore_errors=True)
        self._incoming.discard(incoming.name)

    def add(self, incoming: Path, *, model: str, name: str, query: dict[str, Any]) -> Job:
        """Accept a job whose image lies in a folder of `new_folder`."""
        id_ = secrets.token_urlsafe(16)  # nobody guesses it: whoever knows it may see the job
        incoming.rename(self.path(id_))
        num_bytes = _disk_use(self.path(id_))
        job = Job(id=id_, model=model, name=name, query=query, num_bytes=num_bytes)
        try:
            with self._lock:
                return self._save(job)
        except sqlite3.Error:
            shutil.rmtree(self.path(id_), ignore_errors=True)
            raise

    def path(self, id_: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / id_

    def find(self, id_: str) -> Job | None:
        """Find a job by its id."""
        return self._jobs.get(id_)

    def num_in(self) -> dict[str, int]:
        """Count the jobs in each state."""
        num = Counter(job.state for job in list(self._jobs.values()))
        return {state: num[state] for state in STATES}

    def num_bytes(self) -> int:
        """Count the bytes on disk: of all jobs, half-made results, and what comes or is sent."""
        jobs = {job.id: job for job in list(self._jobs.values()) if job.state != "running"}
        running = [one for one in list(self._jobs) if one not in jobs]
        sent = [one for one in list(self._readers) if one not in self._jobs]
        growing = (*running, *sent, *list(self._incoming))
        kept = sum(job.num_bytes for job in jobs.values())
        return kept + sum(_disk_use(self.path(one)) for one in growing)

    def __len__(self) -> int:
        return len(self._jobs)

    def begin(self) -> Job | None:
        """The next job, now running; one that ran already is left by an unwritten table."""
        for job in list(self._jobs.values()):
            if job.state in ("queued", "running"):
                starts = job.starts + (job.state == "queued")
                return self._change(job.id, state="running", starts=starts)
        return None

    def put_back(self, job: Job) -> None:
        """Put a running job back to the front: the server ends in order, and goes on later."""
        self._change(job.id, state="queued", starts=job.starts - 1)

    def finish(self, id_: str, *, result: str, media: str, headers: dict[str, str]) -> None:
        """Record that the result lies in the job's folder, and remove the image."""
        folder = self.path(id_)
        (folder / result).chmod(PRIVATE)
        image = _blocks(folder / IMAGE)
        num_bytes = max(0, _disk_use(folder) - image)
        facts = {"result": result, "media": media, "headers": headers, "num_bytes": num_bytes}
        self._change(id_, state="done", **facts)
        (folder / IMAGE).unlink(missing_ok=True)

    def fail(self, id_: str, *, code: str, message: str) -> None:
        """Record why a job came to nothing, and remove its files."""
        self._change(id_, state="failed", code=code, message=message, num_bytes=0)
        self._remove_files(id_)

    def remove(self, id_: str) -> None:
        """Forget a job, with its files: they go first, and a full disk has room for the rest."""
        with self._lock:
            self._jobs.pop(id_, None)
            self._unwritten.add(id_)
        self._remove_files(id_)
        with self._lock, contextlib.suppress(sqlite3.Error):  # it is tried again later
            for removed in list(self._unwritten):
                with self._base:
                    self._base.execute("delete from jobs where id = ?", (removed,))
                self._unwritten.remove(removed)

    def _remove_files(self, id_: str) -> None:
        if not self._readers[id_]:  # else the last one does it
            shutil.rmtree(self.path(id_), ignore_errors=True)

    @contextmanager
    def reading(self, id_: str) -> Iterator[None]:
        """Keep a job's files until the block ends, even if the job is removed meanwhile."""
        self._readers[id_] += 1
        try:
            yield
        finally:
            self._readers[id_] -= 1
            if not self._readers[id_]:
                del self._readers[id_]
                if id_ not in self._jobs:
                    self._remove_files(id_)

    def remove_old(self, *, hours: float) -> None:
        """Forget jobs that ended so long ago; call it often, as it counts the time between."""
        now = time.monotonic()
        passed, self._counted = now - self._counted, now
        for job in list(self._jobs.values()):
            if job.state not in ("done", "failed"):
                continue
            kept = job.kept_seconds + passed
            if kept > hours * 3600:
                self.remove(job.id)
            elif kept // 3600 > job.kept_seconds // 3600:
                self._change(job.id, kept_seconds=kept)
            else:
                self._jobs[job.id] = replace(job, kept_seconds=kept)

    def close(self) -> None:
        """Release the folder."""
        with contextlib.suppress(sqlite3.Error), self._lock:
            self._base.close()
        self._owner.release()


def _disk_use(folder: Path) -> int:
    """Count the bytes of a folder on disk."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return _blocks(folder) + sum(map(_blocks, files))


def _blocks(path: Path) -> int:
    try:
        return 512 * path.lstat().st_blocks
    except OSError:  # removed meanwhile
        return 0
