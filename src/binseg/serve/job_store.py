"""Jobs on disk: a folder for each one, with its facts, its image, and later its result."""

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

import filelock

from binseg.errors import OutputError, UsageError
from binseg.storage import sync, write_json

State = Literal["queued", "running", "done", "failed"]
STATES: tuple[State, ...] = get_args(State)
IMAGE, FACTS = "image", "facts.json"
PRIVATE = 0o600  # Mode of all files: jobs hold other people's images
_INCOMING = "incoming-"


@dataclass(frozen=True, kw_only=True)
class Job:
    """The facts of one job."""

    id: str
    number: int  # Its place in line
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
    """All jobs of a state folder, which belongs to one server; what it tells is on disk already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._incoming: set[str] = set()
        self._readers: Counter[str] = Counter()
        self._counted = time.monotonic()
        try:
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            for path in (folder, folder / "jobs"):
                path.chmod(0o700)  # other people's images
            lock = folder / "server.lock"
            self._owner = filelock.FileLock(lock, thread_local=False, mode=PRIVATE)
            self._owner.acquire(timeout=0)
            found = [job for path in (folder / "jobs").iterdir() if (job := _read(path))]
        except filelock.Timeout:
            raise UsageError(
                f"{folder} belongs to a server that runs; give this one another --state folder"
            ) from None
        except (OSError, TypeError, ValueError) as error:
            raise OutputError(f"{folder}: the jobs can't be kept there: {error}") from None
        self._jobs = {job.id: job for job in sorted(found, key=lambda job: job.number)}
        self._numbers = count(max([0, *(job.number for job in found)]) + 1)
        for job in found:
            if job.state == "running":  # what a stopped server worked on goes back in line
                self._change(job.id, state="queued")

    def _change(self, id_: str, **changes: Any) -> Job | None:
        """Change the facts of a job, on disk first; None where it was removed meanwhile."""
        with self._lock:
            job = self._jobs.get(id_)
            if job is not None:
                job = self._jobs[id_] = _noted(replace(job, **changes), self.path(id_))
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
        facts: dict[str, Any] = {"model": model, "name": name, "query": query}
        size, number = _disk_use(incoming), next(self._numbers)
        job = _noted(Job(id=id_, number=number, num_bytes=size, **facts), incoming)
        incoming.rename(self.path(id_))
        sync(self.path(id_).parent)
        with self._lock:
            self._jobs[id_] = job
        return job

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
        """The next job, now running; one that ran already is left by facts that weren't written."""
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
        """Forget a job, with its files, which needs no room on a full disk."""
        with self._lock:
            self._jobs.pop(id_, None)
        with contextlib.suppress(OSError):
            (self.path(id_) / FACTS).unlink()  # the next start removes what has none
        self._remove_files(id_)

    def _remove_files(self, id_: str) -> None:
        """Remove the files of a job, or all but its facts; not while a reader has them."""
        if self._readers[id_]:
            return
        for path in [self.path(id_)] if id_ not in self._jobs else [*self.path(id_).iterdir()]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != FACTS:
                path.unlink(missing_ok=True)

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
        self._owner.release()


def _read(folder: Path) -> Job | None:
    """Read a job's facts; what has none was never a job, or was removed, and goes."""
    if folder.name.startswith(_INCOMING) or not (folder / FACTS).exists():
        shutil.rmtree(folder, ignore_errors=True)
        return None
    job = Job(**json.loads((folder / FACTS).read_text("utf-8")))
    if job.id != folder.name:
        raise ValueError(f"{folder.name} holds another job")
    return job


def _noted(job: Job, folder: Path) -> Job:
    """Write a job's facts into its folder, or raise OutputError."""
    write_json(folder / FACTS, asdict(job))
    (folder / FACTS).chmod(PRIVATE)
    return job


def _disk_use(folder: Path) -> int:
    """Count the bytes of a folder on disk."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return _blocks(folder) + sum(map(_blocks, files))


def _blocks(path: Path) -> int:
    try:
        return 512 * path.lstat().st_blocks
    except OSError:  # removed meanwhile
        return 0
