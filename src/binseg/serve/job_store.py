"""Jobs on disk: a SQLite table, and a folder for each one's image and result."""

import contextlib
import json
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from binseg.errors import OutputError, UsageError

__all__ = ["Job", "JobStore", "State"]

State = Literal["queued", "running", "done", "failed"]
_TABLE = """
create table if not exists jobs (
    id text primary key,
    state text not null,
    created real not null,
    ended real,
    model text not null,
    name text not null,
    query text not null,
    num_bytes integer not null,
    starts integer not null default 0,
    result text,
    media text,
    headers text not null default '{}',
    code text,
    message text
)
"""
IMAGE = "image"
_INCOMING = "incoming-"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One line of the table."""

    id: str
    state: State
    created: float
    """Seconds since 1970, as is `ended`."""
    ended: float | None
    model: str
    name: str
    query: dict[str, Any]
    num_bytes: int
    """Of the image and the result."""
    starts: int
    """How often its work began without being put back in order."""
    result: str | None
    """File name of the result in the job's folder."""
    media: str | None
    headers: dict[str, str]
    """Of the result's answer."""
    code: str | None
    """Why it failed, as refusals say it, with `message`."""
    message: str | None


class JobStore:
    """All jobs of a state folder, which belongs to one server at a time.

    What is in the table survives the process: a job is known before its client hears of it, and its
    result is whole before the table says so.

    Args:
        folder: made if absent.

    Raises:
        OutputError: it can't be written.
        UsageError: another server uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._coming: dict[str, int] = {}
        try:
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            self._owner = filelock.FileLock(folder / "server.lock", thread_local=False)
            self._owner.acquire(timeout=0)
            self._base = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False)
            self._base.row_factory = sqlite3.Row
            self._base.execute("pragma journal_mode = wal")
            self._base.execute("pragma synchronous = full")
            self._base.execute(_TABLE)
            self._base.commit()
        except filelock.Timeout:
            raise UsageError(
                f"{folder} belongs to a server that runs; give this one another --state folder"
            ) from None
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"{folder}: the jobs can't be kept there: {error}") from None
        self._go_on()

    def _go_on(self) -> None:
        """Put what a stopped server worked on back in line, and remove what has no line."""
        with self._writing() as base:
            base.execute("update jobs set state = 'queued' where state = 'running'")
        known = {one.id for one in self.list()}
        for path in (self.folder / "jobs").iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._base:
            yield self._base

    def new_folder(self) -> Path:
        """A folder for an image that is coming; without `add` it is gone at the next start."""
        path = self.folder / "jobs" / f"{_INCOMING}{secrets.token_hex(8)}"
        try:
            path.mkdir()
        except OSError as error:
            raise OutputError(f"can't keep jobs in {self.folder}: {error.strerror}") from None
        return path

    def reserve(self, incoming: Path, num_bytes: int) -> None:
        """Count so many bytes for an image that is coming, until `release`."""
        self._coming[incoming.name] = num_bytes

    def release(self, incoming: Path) -> None:
        """Count nothing any more for an image that was coming, and remove what came of it."""
        self._coming.pop(incoming.name, None)
        shutil.rmtree(incoming, ignore_errors=True)

    def add(
        self, incoming: Path, *, model: str, name: str, query: dict[str, Any], num_bytes: int
    ) -> Job:
        """Take a job whose image lies in a folder of `new_folder`."""
        id_ = secrets.token_urlsafe(16)  # nobody guesses it: whoever knows it may see the job
        incoming.rename(self.path(id_))
        with self._writing() as base:
            base.execute(
                "insert into jobs (id, state, created, model, name, query, num_bytes)"
                " values (?, 'queued', ?, ?, ?, ?, ?)",
                (id_, time.time(), model, name, json.dumps(query), num_bytes),
            )
        job = self.find(id_)
        assert job is not None
        return job

    def path(self, id_: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / id_

    def find(self, id_: str) -> Job | None:
        """A job by its id."""
        with self._lock:
            row = self._base.execute("select * from jobs where id = ?", (id_,)).fetchone()
        return None if row is None else _job(row)

    def list(self) -> list[Job]:
        """All jobs, the oldest first."""
        with self._lock:
            rows = self._base.execute("select * from jobs order by created, rowid").fetchall()
        return [_job(row) for row in rows]

    def num_in(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._lock:
            rows = self._base.execute("select state, count(*) from jobs group by state").fetchall()
        return {"queued": 0, "running": 0, "done": 0, "failed": 0} | {
            row[0]: row[1] for row in rows
        }

    def num_bytes(self) -> int:
        """What all jobs have on disk, and what is coming."""
        with self._lock:
            row = self._base.execute("select coalesce(sum(num_bytes), 0) from jobs").fetchone()
        return int(row[0]) + sum(self._coming.copy().values())

    def begin(self) -> Job | None:
        """The next job, now running; None where none waits.

        One that is said to run already was left by a store that failed: there is one worker.
        """
        with self._writing() as base:
            row = base.execute(
                "update jobs set state = 'running', starts = starts + 1 where id = (select id from"
                " jobs where state in ('queued', 'running') order by created, rowid limit 1)"
                " returning *"
            ).fetchone()
        return None if row is None else _job(row)

    def put_back(self, id_: str) -> None:
        """Put a running job back to the front: the server ends in order, and goes on later."""
        with self._writing() as base:
            base.execute(
                "update jobs set state = 'queued', starts = starts - 1 where id = ?", (id_,)
            )

    def finish(
        self, id_: str, *, result: str, media: str, headers: dict[str, str], num_bytes: int
    ) -> None:
        """Say that the result lies in the job's folder, and remove the image."""
        with self._writing() as base:
            base.execute(
                "update jobs set state = 'done', ended = ?, result = ?, media = ?, headers = ?,"
                " num_bytes = ? where id = ?",
                (time.time(), result, media, json.dumps(headers), num_bytes, id_),
            )
        (self.path(id_) / IMAGE).unlink(missing_ok=True)

    def fail(self, id_: str, *, code: str, message: str) -> None:
        """Say why a job came to nothing, and remove its files."""
        with self._writing() as base:
            base.execute(
                "update jobs set state = 'failed', ended = ?, code = ?, message = ?, num_bytes = 0"
                " where id = ?",
                (time.time(), code, message, id_),
            )
        shutil.rmtree(self.path(id_), ignore_errors=True)

    def remove(self, id_: str) -> None:
        """Forget a job, with its files."""
        with self._writing() as base:
            base.execute("delete from jobs where id = ?", (id_,))
        shutil.rmtree(self.path(id_), ignore_errors=True)

    def remove_old(self, *, hours: float) -> None:
        """Forget jobs that ended so long ago."""
        before = time.time() - hours * 3600
        for job in self.list():
            if job.ended is not None and job.ended < before:
                self.remove(job.id)

    def close(self) -> None:
        """Give the folder free."""
        with contextlib.suppress(sqlite3.Error), self._lock:
            self._base.close()
        self._owner.release()


def _job(row: sqlite3.Row) -> Job:
    facts = dict(row)
    return Job(**(facts | {name: json.loads(facts[name]) for name in ("query", "headers")}))
