"""The thread that does the jobs, one after the other, and tells how far it is."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Num

from binseg import storage
from binseg.errors import BinsegError, ImageError, OutputError, UsageError
from binseg.imageio import Windows
from binseg.imageio.cage import Cage
from binseg.imageio.decoding import Valid
from binseg.inference import Prediction, PredictOptions
from binseg.inference.engine import run
from binseg.inference.sinks import BytesSink, Written
from binseg.inference.sources import InputImage, ListedSource
from binseg.parallel import give_back_memory, give_way
from binseg.progress import Silent, Task
from binseg.serve.incoming import JobQuery, Output
from binseg.serve.job_store import IMAGE, Job, JobStore
from binseg.serve.limits import Limits
from binseg.serve.model_registry import ModelRegistry
from binseg.serve.pipeline import check_outline, quality_header
from binseg.serve.refusals import LOG, Refusal, refusal_of
from binseg.transforms.preprocess import reduction
from binseg.types import Preprocessing

_MOST_STARTS = 3  # A job that took the server down with it so often isn't tried again
_LARGE_OUTPUTS = ("mask", "probability")
_IDLE_SECONDS = 10.0
_AGAIN_SECONDS = 0.1
_TROUBLE_SECONDS = 5.0  # Until a store that failed is tried again


class _StoppedError(Exception):
    """The server ends, or the job was removed."""


class _Work(Silent):
    """The job in work: it hears how far it is, and ends where nobody wants it now."""

    def __init__(self, id_: str, worker: "JobWorker") -> None:
        self.id = id_
        self.progress = 0.0
        self.removed = False
        self._worker = worker
        self._done, self._total = 0, 1

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator[Task]:
        """Begin to count up to `total`."""
        self._done, self._total = 0, total or 1
        yield self

    def advance(self, num: int = 1, /, **figures: float) -> None:
        """Count."""
        self._done += num
        self.progress = min(1.0, self._done / self._total)
        self.check()

    def check(self) -> None:
        """End the work here, by _StoppedError, where it should end."""
        if self._worker.is_stopping or self.removed:
            raise _StoppedError


class JobWorker:
    """A thread that does the jobs of a store; the cage decodes the images that are read whole."""

    def __init__(
        self, store: JobStore, registry: ModelRegistry, limits: Limits, cage: Cage
    ) -> None:
        self._store, self._registry, self._limits, self._cage = store, registry, limits, cage
        self._changed = threading.Condition()
        self.is_stopping = False  # True once the server ends
        self._is_woken = False
        self._current: _Work | None = None
        self._thread = threading.Thread(target=self._work, name="binseg-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for new jobs."""
        with self._changed:
            self._is_woken = True
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
        while self._thread.is_alive():
            self._cage.stop(self._thread.ident or 0)
            self._thread.join(_AGAIN_SECONDS)

    def _work(self) -> None:
        give_way()  # to whoever waits for an answer
        while True:
            try:
                if not self._take_turn():
                    return
            except (OSError, OutputError):  # a full disk, say, which may have room again
                LOG.exception("the store of jobs can't be used")
                with self._changed:
                    if self.is_stopping:
                        return
                    self._changed.wait(_TROUBLE_SECONDS)

    def _take_turn(self) -> bool:
        """Do the next job, or wait for one; False where the server ends."""
        with self._changed:
            if self.is_stopping:
                return False
            self._is_woken = False
        job = self._store.begin()  # it may wait for the disk, and nobody else may then
        if job is not None:
            self._do(job)
            return True
        with self._changed:
            if not self._is_woken and not self.is_stopping:
                self._changed.wait(_IDLE_SECONDS)
        self._store.remove_old(hours=self._limits.keep_hours)
        give_back_memory()
        return True

    def _do(self, job: Job) -> None:
        """Do a job to its end, in success, failure or a stop."""
        current = self._current = _Work(job.id, self)
        try:
            result = self._compute(job, current)
        except _StoppedError:
            if not current.removed:
                self._store.put_back(job)
        except (Refusal, BinsegError) as error:
            if self.is_stopping or current.removed:  # its decoder was stopped
                self._store.put_back(job)
                return
            refusal = refusal_of(error)
            message = _without_places(refusal.message, self._store.path(job.id), job.name)
            self._store.fail(job.id, code=refusal.code, message=message)
        except Exception:  # noqa: BLE001 - told in the log and to the client; the thread goes on
            LOG.exception("a job failed by a bug")
            self._store.fail(job.id, code="internal", message="A bug of the server.")
        else:  # what the disk refuses here is tried again
            self._store.finish(job.id, **result)
        finally:
            self._current = None
            if current.removed:
                self._store.remove(job.id)

    def _compute(self, job: Job, current: _Work) -> dict[str, Any]:
        """Write the result into the job's folder, and give what `JobStore.finish` notes."""
        if job.starts > _MOST_STARTS:
            message = f"The server stopped {_MOST_STARTS} times while it worked on this image."
            raise Refusal(500, "job_lost", message)
        folder = self._store.path(job.id)
        model = self._registry.find(job.model)
        query = JobQuery.model_validate(job.query)
        options = query.options()
        survey = self._cage.survey(folder / IMAGE, name=job.name)
        is_large = survey.needs_windows
        if is_large and query.output == "probability":
            options = replace(options, outputs=("probability",))
        place: Any = {"path": folder / IMAGE, "relative": Path(IMAGE), "title": job.name}
        kind: Literal["image", "large"] = "large" if is_large else "image"
        image = _JobImage(**place, kind=kind, cage=self._cage)
        sink = _JobSink(query.output, folder)
        done = run(ListedSource([image]), model.predictor, sink, options, progress=current)
        if done.failures:
            raise ImageError(done.failures[0].reason)
        current.check()
        (written,) = done.written
        path = [written.mask, *written.others][-1]
        height, width = sink.size or (survey.height, survey.width)
        threshold = model.predictor.with_options(options).threshold
        headers = {
            "X-Binseg-Model": model.id,
            "X-Binseg-Threshold": repr(threshold),
            "X-Binseg-Size": f"{width}x{height}",
            **quality_header(written.quality),
        }
        return {"result": path.name, "media": sink.media or "image/tiff", "headers": headers}


@dataclass(frozen=True, kw_only=True)
class _JobImage(InputImage):
    """An input that is decoded in the cage."""

    cage: Cage

    def reduced(
        self, shape: Preprocessing | None
    ) -> tuple[Num[np.ndarray, "H W C"], Valid, tuple[int, int]]:
        """Decode its pixels as a model takes them, and tell its own size."""
        with self.cage.open(self.path, name=self.name) as opened:
            size = (opened.facts.height, opened.facts.width)
            return opened.reduced(reduction(size, shape)), opened.valid(), size

    def windows(self, path: Path) -> AbstractContextManager[Windows]:
        """Read parts of a huge one."""
        return self.cage.windows(path)


class _JobSink(BytesSink):
    """The result of a job, in its folder; a huge image's is the TIFF that the engine writes."""

    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Encode the output and write it."""
        if self.kind == "json":
            check_outline(prediction.mask)
        written = super().write(image, prediction, stem, options)
        path = stem.with_suffix(".json" if self.kind == "json" else ".png")
        storage.write_bytes(path, self.data)
        return replace(written, mask=path)


def _without_places(text: str, folder: Path, name: str) -> str:
    """Name the image as its client does, and not where it lies here."""
    return text.replace(str(folder / IMAGE), name).replace(str(folder), "the job's folder")


def check_job(cage: Cage, path: Path, output: Output, *, name: str, limits: Limits) -> None:
    """Refuse by its header an image that would only fail later; errors call it `name`."""
    try:
        survey = cage.survey(path, name=name)
    except BinsegError as error:
        raise type(error)(_without_places(str(error), path.parent, name)) from None
    if survey.needs_windows and output not in _LARGE_OUTPUTS:
        raise UsageError(
            f"{name}: images above 64 megapixels and stacks come as mask or probability"
        )
    if survey.num_pixels > limits.max_job_pixels:
        told = f"{survey.num_pixels / 1e6:,.0f} megapixels on {survey.num_pages} pages"
        most = f"jobs may have up to {limits.max_job_pixels / 1e6:,.0f}"
        raise Refusal(413, "too_many_pixels", f"{name}: {told}; {most}.")


def facts_of(job: Job, worker: JobWorker) -> dict[str, Any]:
    """Show a job as clients see it."""
    shown, place = ("id", "state", "model", "name"), f"/v1/jobs/{job.id}"
    facts: dict[str, Any] = {name: getattr(job, name) for name in shown}
    facts |= {"progress": round(worker.progress(job), 4), "location": place}
    if job.state == "done":
        facts["result"] = f"{place}/result"
    if job.state == "failed":
        facts["error"] = {"code": job.code, "message": job.message}
    return facts
