"""The thread that does the jobs, one after the other, and tells how far it is."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binseg import storage
from binseg.errors import BinsegError, ImageError, UsageError
from binseg.imageio import holds_tiff, needs_windows, open_windows, probe
from binseg.inference import Prediction, PredictOptions, Predictor
from binseg.inference.engine import run
from binseg.inference.large import ProbabilityType
from binseg.inference.sinks import Written
from binseg.inference.sources import InputImage, ListedSource
from binseg.progress import Progress, Task
from binseg.serve.job_store import IMAGE, Job, JobStore
from binseg.serve.limits import Limits
from binseg.serve.pipeline import check_outline
from binseg.serve.queries import JobQuery
from binseg.serve.refusals import Refusal, refusal_of
from binseg.serve.shelf import Shelf

if TYPE_CHECKING:
    import logging

__all__ = ["JobWorker", "check_job", "facts_of"]

_MOST_STARTS = 3
"""A job that took the server down with it so often isn't tried again."""
_LARGE_OUTPUTS = ("mask", "probability")
_IDLE_SECONDS = 60.0
_TROUBLE_SECONDS = 5.0
"""Until a store that failed is tried again."""


class _StoppedError(Exception):
    """The server ends, or the job was removed."""


@dataclass
class _Current:
    """The job in work."""

    id: str
    progress: float = 0.0
    removed: bool = False


class JobWorker:
    """A thread that does the jobs of a store.

    Args:
        store: the jobs.
        shelf: the models.
        limits: how long results are kept.
    """

    def __init__(self, store: JobStore, shelf: Shelf, limits: Limits) -> None:
        self._store = store
        self._shelf = shelf
        self._limits = limits
        self._changed = threading.Condition()
        self.is_stopping = False
        """Whether the server ends."""
        self._current: _Current | None = None
        self._thread = threading.Thread(target=self._work, name="binseg-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for new jobs."""
        with self._changed:
            self._changed.notify()

    def progress(self, job: Job) -> float:
        """Tell how far a job is, from 0 to 1."""
        current = self._current
        if job.state == "done":
            return 1.0
        return current.progress if current is not None and current.id == job.id else 0.0

    def remove(self, id_: str) -> None:
        """Forget a job, whatever its state; work on it ends soon."""
        current = self._current
        if current is not None and current.id == id_:
            current.removed = True  # its own thread removes the files once it is out of them
        self._store.remove(id_)

    def stop(self) -> None:
        """End soon; the job in work goes on at the next start from where it is."""
        with self._changed:
            self.is_stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                if not self._take_turn():
                    return
            except (OSError, sqlite3.Error):  # a full disk, say, which may have room again
                _log().exception("the store of jobs can't be used")
                with self._changed:
                    if self.is_stopping:
                        return
                    self._changed.wait(_TROUBLE_SECONDS)

    def _take_turn(self) -> bool:
        """Do the next job, or wait for one; False where the server ends."""
        with self._changed:
            if self.is_stopping:
                return False
            job = self._store.begin()
            if job is None:
                self._changed.wait(_IDLE_SECONDS)
        if job is None:
            self._store.remove_old(hours=self._limits.keep_hours)
        else:
            self._do(job)
        return True

    def _do(self, job: Job) -> None:
        """Do a job to its end, in success, failure or a stop."""
        current = self._current = _Current(id=job.id)
        try:
            self._compute(job, current)
        except _StoppedError:
            if not current.removed:
                self._store.put_back(job.id)
        except (Refusal, BinsegError) as error:
            refusal = refusal_of(error) if isinstance(error, BinsegError) else error
            message = _without_places(refusal.message, self._store.path(job.id), job.name)
            self._store.fail(job.id, code=refusal.code, message=message)
        except Exception:  # noqa: BLE001 - told in the log and to the client; the thread goes on
            _log().exception("a job failed by a bug")
            self._store.fail(job.id, code="internal", message="A bug of the server.")
        finally:
            self._current = None
            if current.removed:
                self._store.remove(job.id)

    def _compute(self, job: Job, current: _Current) -> None:
        if job.starts > _MOST_STARTS:
            times = f"{_MOST_STARTS} times"
            raise Refusal(
                500, "job_lost", f"The server stopped {times} while it worked on this image."
            )
        folder = self._store.path(job.id)
        model = self._shelf.find(job.model)
        query = JobQuery.model_validate(job.query)
        options = query.options()
        is_large = needs_windows(folder / IMAGE)
        if is_large and query.output == "probability":
            options = replace(options, outputs=("probability",))
        image = InputImage(
            path=folder / IMAGE,
            relative=Path(IMAGE),
            kind="large" if is_large else "image",
            title=job.name,
        )
        listener = _Listener(self, current)
        sink = _JobSink(folder, query.output)
        done = run(ListedSource([image]), model.predictor, sink, options, progress=listener)
        if done.failures:
            raise ImageError(done.failures[0].reason)
        listener.check()
        path = done.written[0].others[0] if done.written[0].others else done.written[0].mask
        info = sink.size or _size_of(folder / IMAGE)
        threshold = model.predictor.with_options(options).threshold
        self._store.finish(
            job.id,
            result=path.name,
            media=sink.media,
            headers={
                "X-Binseg-Model": model.id,
                "X-Binseg-Threshold": repr(threshold),
                "X-Binseg-Size": f"{info[1]}x{info[0]}",
            },
            num_bytes=path.stat().st_size,
        )


def _size_of(path: Path) -> tuple[int, int]:
    """Give height and width of the first page of a huge image."""
    with open_windows(path) as windows:
        info = windows.info(0)
    return info.height, info.width


class _JobSink:
    """The result of a job, in its folder; a huge image's is the TIFF that the engine writes."""

    replaces = True
    large_probability: ProbabilityType = "uint8"

    def __init__(self, folder: Path, output: str) -> None:
        self.out = folder
        self.media = "image/tiff"
        self.size: tuple[int, int] | None = None
        """Height and width of an image that was in memory."""
        self._output = output

    def claim(self, images: Sequence[InputImage], options: PredictOptions) -> None:
        """Keep nothing: the folder has one job."""

    def stems(
        self,
        images: Sequence[InputImage],
        predictor: Predictor,
        options: PredictOptions,
        progress: Progress,
    ) -> list[Path | None]:
        """Name the one result."""
        del predictor, options, progress
        return [self.out / "result" for _ in images]

    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Encode the output and write it."""
        del options
        height, width = prediction.mask.shape
        if self._output == "json":
            check_outline(prediction.mask)
        data, self.media = prediction.encode(self._output)
        self.size = (height, width)
        path = stem.with_suffix(".json" if self.media == "application/json" else ".png")
        storage.write_bytes(path, data)
        return Written(source=image.path, mask=path, foreground=float(prediction.mask.mean()))


class _Listener:
    """Hears how far the work is; ends it where nobody wants it now."""

    def __init__(self, worker: JobWorker, current: _Current) -> None:
        self._worker = worker
        self._current = current
        self._done = 0
        self._total = 1

    def say(self, line: str) -> None:
        """Pass it over: nobody reads it."""

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Begin to count up to `total`."""
        del label
        self._done, self._total = 0, total or 1
        yield self

    def advance(self, num: int = 1, /, **figures: float) -> None:
        """Count."""
        del figures
        self._done += num
        self._current.progress = min(1.0, self._done / self._total)
        self.check()

    def check(self) -> None:
        """End the work here where it should end.

        Raises:
            _StoppedError: the server ends, or the job was removed.
        """
        if self._worker.is_stopping or self._current.removed:
            raise _StoppedError


def _log() -> "logging.Logger":
    import logging

    return logging.getLogger("uvicorn.error")


def _without_places(text: str, folder: Path, name: str) -> str:
    """Name the image as its client does, and not where it lies here."""
    return text.replace(str(folder / IMAGE), name).replace(str(folder), "the job's folder")


def check_job(path: Path, output: str, *, name: str, limits: Limits) -> None:
    """Look at the header of a job's image, and refuse what would only fail later.

    Raises:
        Refusal: too many pixels, or an output that huge images don't have.
        BinsegError: no image; the text names it by `name`, not by its place here.
    """
    try:
        is_large = needs_windows(path)
        if is_large and holds_tiff(path):  # others would be unpacked for their size
            with open_windows(path) as windows:
                pages = windows.num_pages
                infos = [windows.info(page) for page in range(pages)]
        else:
            pages, infos = 1, [probe(path)]
        num_pixels = sum(one.height * one.width for one in infos)
        if is_large and output not in _LARGE_OUTPUTS:
            raise UsageError(
                f"{name}: images above 64 megapixels and stacks come as mask or probability"
            )
    except BinsegError as error:
        raise type(error)(_without_places(str(error), path.parent, name)) from None
    if num_pixels > limits.max_job_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name}: {num_pixels / 1e6:,.0f} megapixels on {pages} pages; jobs may have up to "
            f"{limits.max_job_pixels / 1e6:,.0f}.",
        )


def facts_of(job: Job, worker: JobWorker) -> dict[str, Any]:
    """Show a job as clients see it."""
    facts: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "progress": round(worker.progress(job), 4),
        "location": f"/v1/jobs/{job.id}",
        "model": job.model,
        "name": job.name,
    }
    if job.state == "done":
        facts["result"] = f"/v1/jobs/{job.id}/result"
    if job.state == "failed":
        facts["error"] = {"code": job.code, "message": job.message}
    return facts
