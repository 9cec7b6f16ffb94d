"""The thread that does the jobs, one after the other, and tells how far it is."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from binseg import storage
from binseg.errors import BinsegError, UsageError
from binseg.imageio.cage import Cage
from binseg.inference import Predictor
from binseg.inference.large import predict_large
from binseg.inference.outputs import Answer, encode_output
from binseg.inference.runtimes import Backend
from binseg.progress import Task
from binseg.serve.job_store import IMAGE, Job, JobStore
from binseg.serve.limits import Limits
from binseg.serve.model_registry import ModelRegistry
from binseg.serve.pipeline import check_outline
from binseg.serve.queries import Wanted
from binseg.serve.refusals import Refusal, refusal_of
from binseg.transforms.geometry import plan
from binseg.types import TTA_PASSES

__all__ = ["JobWorker", "check_job", "facts_of"]

_MOST_STARTS = 3
"""A job that took the server down with it so often isn't tried again."""
_LARGE_OUTPUTS = ("mask", "probability")
_IDLE_SECONDS = 60.0
_AGAIN_SECONDS = 0.1
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


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a job asks for."""

    name: str
    output: str
    wanted: Wanted

    @classmethod
    def of(cls, job: Job) -> "_Order":
        """Read a job's line."""
        query = dict(job.query)
        output = query.pop("output")
        return cls(name=job.name, output=output, wanted=Wanted.model_validate(query))


class JobWorker:
    """A thread that does the jobs of a store.

    Args:
        store: the jobs.
        registry: the models.
        limits: how long results are kept.
        cage: decodes the images that are read whole.
    """

    def __init__(
        self, store: JobStore, registry: ModelRegistry, limits: Limits, cage: Cage
    ) -> None:
        self._store = store
        self._registry = registry
        self._limits = limits
        self._cage = cage
        self._changed = threading.Condition()
        self._stopping = False
        self._is_woken = False
        self._current: _Current | None = None
        self._thread = threading.Thread(target=self._work, name="binseg-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for new jobs."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def progress(self, job: Job) -> float:
        """How far a job is, from 0 to 1."""
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
            self._stopping = True
            self._changed.notify()
        while self._thread.is_alive():
            self._cage.stop(self._thread.ident or 0)
            self._thread.join(_AGAIN_SECONDS)

    def _work(self) -> None:
        while True:
            try:
                if not self._take_turn():
                    return
            except (OSError, sqlite3.Error):  # a full disk, say, which may have room again
                import logging

                logging.getLogger("uvicorn.error").exception("the store of jobs can't be used")
                with self._changed:
                    if self._stopping:
                        return
                    self._changed.wait(_TROUBLE_SECONDS)

    def _take_turn(self) -> bool:
        """Do the next job, or wait for one; False where the server ends."""
        with self._changed:
            if self._stopping:
                return False
            self._is_woken = False
        job = self._store.begin()  # it may wait for the disk, and nobody else may then
        if job is not None:
            self._do(job)
            return True
        with self._changed:
            if not self._is_woken and not self._stopping:
                self._changed.wait(_IDLE_SECONDS)
        self._store.remove_old(hours=self._limits.keep_hours)
        return True

    def _do(self, job: Job) -> None:
        """Do a job to its end, whatever that is."""
        current = self._current = _Current(id=job.id)
        try:
            _check_starts(job)
            self._compute(job, current)
        except _StoppedError:
            if not current.removed:
                self._store.put_back(job)
        except (Refusal, BinsegError) as error:
            if self._stopping or current.removed:  # its decoder was stopped
                self._store.put_back(job)
                return
            why = refusal_of(error) if isinstance(error, BinsegError) else error
            message = _without_places(why.message, self._store.path(job.id), job.name)
            self._store.fail(job.id, code=why.code, message=message)
        except Exception:
            import logging

            logging.getLogger("uvicorn.error").exception("a job failed by a bug")
            self._store.fail(job.id, code="internal", message="A bug of the server.")
        finally:
            self._current = None
            if current.removed:
                self._store.remove(job.id)

    def _compute(self, job: Job, current: _Current) -> None:
        folder = self._store.path(job.id)
        model = self._registry.find(job.model)
        order = _Order.of(job)
        predictor = model.predictor
        if order.wanted.threshold is not None:
            predictor = predictor.with_threshold(order.wanted.threshold)
        predictor = predictor.with_postprocessing(
            order.wanted.postprocessing_for(predictor.postprocessing)
        )
        teller = _Teller(self, current)
        if self._cage.survey(folder / IMAGE, name=order.name).needs_windows:
            path, size = _large(predictor, folder, order, teller)
            media = "image/tiff"
        else:
            path, media, size = _whole(predictor, folder, order, teller, self._cage)
        teller.check()
        headers = {
            "X-Binseg-Model": model.id,
            "X-Binseg-Threshold": repr(predictor.threshold),
            "X-Binseg-Size": f"{size[1]}x{size[0]}",
        }
        self._store.finish(
            job.id, result=path.name, media=media, headers=headers, num_bytes=path.stat().st_size
        )

    @property
    def is_stopping(self) -> bool:
        """Whether the server ends."""
        return self._stopping


def _without_places(text: str, folder: Path, name: str) -> str:
    """A sentence that names the image as its client does, and not where it lies here."""
    return text.replace(str(folder / IMAGE), name).replace(str(folder), "the job's folder")


def _check_starts(job: Job) -> None:
    if job.starts > _MOST_STARTS:
        times = f"{_MOST_STARTS} times"
        raise Refusal(500, "job_lost", f"The server stopped {times} while it worked on this image.")


class _Teller:
    """Hears how far the work is; ends it where nobody wants it now."""

    def __init__(self, worker: JobWorker, current: _Current) -> None:
        self._worker = worker
        self._current = current
        self._done = 0
        self._total = 1

    def say(self, line: str) -> None:
        """Nobody listens to words."""

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


class _Counted:
    """A backend that tells of each input."""

    def __init__(self, backend: Backend, task: Task) -> None:
        self._backend = backend
        self._task = task
        self.name = backend.name
        self.precision = backend.precision

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """The logits of a batch."""
        logits_NHW = self._backend.logits(inputs_NCHW)
        self._task.advance(len(inputs_NCHW))
        return logits_NHW


def _whole(
    predictor: Predictor, folder: Path, order: "_Order", teller: _Teller, cage: Cage
) -> tuple[Path, str, tuple[int, int]]:
    """An image that fits into memory."""
    with cage.open(folder / IMAGE, name=order.name) as opened:
        image_HWC = opened.read()
    height, width = image_HWC.shape[:2]
    counting = copy(predictor)
    total = len(plan(height, width, predictor.preprocessing)) * TTA_PASSES[predictor.tta]
    with teller.task(order.name, total=total) as task:
        counting.backend = _Counted(predictor.backend, task)
        answer = Answer(
            prediction=counting.predict(image_HWC),
            image_HWC=image_HWC,
            name=order.name,
        )
    if order.output == "json":
        check_outline(answer.mask_HW)
    data, media = encode_output(order.output, answer)
    path = folder / ("result.json" if media == "application/json" else "result.png")
    storage.write_bytes(path, data)
    return path, media, (height, width)


def _large(
    predictor: Predictor, folder: Path, order: "_Order", teller: _Teller
) -> tuple[Path, tuple[int, int]]:
    """An image of any size, band by band; what an earlier start has finished is kept."""
    result = predict_large(
        predictor,
        folder / IMAGE,
        out=folder / "result.tif",
        probability="uint8" if order.output == "probability" else None,
        overwrite=True,
        progress=teller,
    )
    path = result.probability if order.output == "probability" else result.mask
    assert path is not None
    return path, (result.height, result.width)


def check_job(cage: Cage, path: Path, output: str, *, name: str, limits: Limits) -> None:
    """Look at the header of a job's image, and refuse what would only fail later.

    Raises:
        Refusal: too many pixels, or an output that huge images don't have.
        BinsegError: no image; the text names it by `name`, not by its place here.
    """
    try:
        survey = cage.survey(path, name=name)
    except BinsegError as error:
        raise type(error)(_without_places(str(error), path.parent, name)) from None
    if survey.needs_windows and output not in _LARGE_OUTPUTS:
        raise UsageError(
            f"{name}: images above 64 megapixels and stacks come as mask or probability"
        )
    if survey.num_pixels > limits.max_job_pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name}: {survey.num_pixels / 1e6:,.0f} megapixels on {survey.num_pages} pages; jobs "
            f"may have up to {limits.max_job_pixels / 1e6:,.0f}.",
        )


def facts_of(job: Job, worker: JobWorker) -> dict[str, Any]:
    """A job as clients see it."""
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
