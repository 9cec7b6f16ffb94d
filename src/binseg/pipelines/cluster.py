"""Dask drives what shards promise: images, and bands of huge ones, are answered by many processes.

    images -> batches -> workers (each loads the model once) -> files, whole or absent
    huge image -> runs of bands -> workers -> its journal -> one file, put together here

Every piece of work may be done twice: a batch leaves out what is there already, a band is the same
bytes whoever computes it. So a worker that is lost costs its batch alone, and a batch that ends
several workers is halved until the one image that does it is named.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from binseg.errors import OutputError, UsageError, needing
from binseg.imageio import caged_windows
from binseg.imageio.windows import declared
from binseg.inference import PredictOptions, Predictor, load
from binseg.inference.engine import by_parts, fitted, run
from binseg.inference.journal import write_band
from binseg.inference.sinks import FolderSink, PredictResult
from binseg.inference.sources import Failure, InputImage, ListedSource, Source
from binseg.inference.tiling import Bands, packed_bands
from binseg.progress import SILENT, Progress
from binseg.storage import remove_scraps

BATCH_IMAGES, BATCH_BYTES = 32, 32_000_000  # Most that a worker is given
_RUNS = 4  # Runs of bands for each worker: more even out, but each computes its first tiles twice
_TRIES = 3  # Workers that may end during a batch before it is halved
_RECONNECT_S = 60
_NO_FAULT = "scheduler-connection-lost"  # of a batch, nor of its worker


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Models by their files, which each worker must see and loads once, with `load`'s settings."""

    paths: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    @cache  # noqa: B019 - a worker keeps its one model as long as it lives
    def load(self) -> Predictor:
        """Load it, or give what this process has loaded before."""
        return load(list(self.paths), **dict(self.settings))


class _BatchSink(FolderSink):
    """A batch's share of a folder; the driver joins the tables."""

    def finish(self, options: PredictOptions, result: PredictResult) -> None:
        """Leave the tables to the driver."""


@contextmanager
def cluster(*, workers: int = 0, scheduler: str = "", progress: Progress = SILENT) -> Iterator[Any]:
    """Start `workers` here, or join a trusted scheduler; gives Dask's client, or UsageError."""
    with needing("distributed", extra="dask", purpose="--workers"):
        import distributed
    if scheduler:
        try:
            client = distributed.Client(scheduler, timeout="30s")
        except (OSError, ValueError) as error:
            raise UsageError(f"{scheduler}: no Dask scheduler answers there ({error})") from None
        with client:
            yield client
        return
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as local,
        distributed.Client(local) as client,
    ):
        with suppress(ModuleNotFoundError):
            import bokeh  # noqa: F401 - without it there is no page

            progress.say(f"dashboard: {client.dashboard_link}")
        yield client


def predict_on(
    client: Any,
    source: Source,
    files: ModelFiles,
    sink: FolderSink,
    options: PredictOptions,
    *,
    progress: Progress = SILENT,
) -> PredictResult:
    """Predict on a cluster as `engine.run` does; its workers see all files under the same names."""
    driver = _Driver(client, files, sink, options, progress)
    everything = PredictResult()
    for round_ in source.rounds(sink, options):
        found = sink.settled(round_, options)
        everything += PredictResult(failures=tuple(found.failures), left_out=tuple(found.left_out))
        reports, renews = sink.entries is not None, sink.replaces_others
        work = partial(_predict, files, sink.out, options, report=reports, overwrite=renews)
        plain = [one for one in found.images if one.kind == "image"]
        with progress.task("predicting", total=len(plain)) as task:
            for result, entries in driver.results(work, _batched(plain)):
                everything += result
                task.advance(result.num_inputs)
                if sink.entries is not None:
                    sink.entries |= entries
        for image in found.images:
            if image.kind == "large":
                everything += driver.huge(image)
            elif image.kind == "video":
                everything += work([image])[0]
    remove_scraps(sink.out)
    sink.finish(options, everything)
    return everything


def _predict(
    files: ModelFiles,
    out: Path,
    options: PredictOptions,
    images: Sequence[InputImage],
    *,
    report: bool,
    overwrite: bool,
) -> tuple[PredictResult, Mapping[Path, Any]]:
    """Predict a batch, on a worker; what an earlier try has written stays."""
    sink = _BatchSink(out, overwrite=overwrite, resume=True, report=report)
    return run(ListedSource(images), files.load(), sink, options), sink.entries or {}


def _compute(files: ModelFiles, options: PredictOptions, runs: Sequence[Bands]) -> int:
    """Compute and keep runs of bands of an image, on a worker; count them."""
    image = InputImage(path=runs[0].path, relative=Path())
    predictor = fitted(files.load().with_options(options), image, options)
    with caged_windows(image.path) as windows:
        known = declared(windows, predictor.nodata)
        for bands in runs:
            with closing(packed_bands(predictor, known, bands)) as found:
                for index, band in zip(bands.numbers, found, strict=True):
                    write_band(bands.folder, bands.page, index, band)
    return sum(len(one.numbers) for one in runs)


def _runs(pages: Sequence[Bands], most: int) -> Iterator[list[Bands]]:
    """Cut bands into runs of neighbours, of `most` bands; each is a batch."""
    for page in pages:
        starts = [
            index
            for index, number in enumerate(page.numbers)
            if index == 0 or number != page.numbers[index - 1] + 1
        ]
        for start, end in pairwise([*starts, len(page.numbers)]):
            for first in range(start, end, most):
                yield [replace(page, numbers=page.numbers[first : min(first + most, end)])]


def _batched(images: Sequence[InputImage]) -> Iterator[list[InputImage]]:
    """Gather images until a batch is full; a file's bytes stand for its pixels."""
    batch: list[InputImage] = []
    num_bytes = 0
    for image in images:
        with suppress(OSError):  # the worker says what is wrong with it
            num_bytes += image.path.stat().st_size
        batch.append(image)
        if len(batch) >= BATCH_IMAGES or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class _Driver:
    """Work on a cluster with back-pressure: two batches a worker are on their way at most."""

    client: Any
    files: ModelFiles
    sink: FolderSink
    options: PredictOptions
    progress: Progress

    @property
    def num_workers(self) -> int:
        """Count the workers, once there is a scheduler: a lost one may be started again."""
        until = time.monotonic() + _RECONNECT_S
        while time.monotonic() < until and self.client.status != "closed":
            if self.client.status == "running":
                with suppress(OSError):  # it went this very moment
                    return max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
            time.sleep(0.2)
        raise OutputError(
            f"the Dask scheduler went away and did not come back within {_RECONNECT_S} s; start it "
            "and run the command again with --resume"
        )

    def huge(self, image: InputImage) -> PredictResult:
        stem = self.sink.out / image.relative.parent / image.stem
        predictor = self.files.load().with_options(self.options)
        work = partial(_compute, self.files, self.options)

        def elsewhere(pages: Sequence[Bands]) -> None:
            num = sum(len(one.numbers) for one in pages)
            runs = _runs(pages, -(-num // (_RUNS * self.num_workers)))
            with self.progress.task(f"predicting {image.path.name}", total=num) as task:
                for computed in self.results(work, runs):
                    task.advance(computed)

        how: Any = {"progress": self.progress, "elsewhere": elsewhere}
        found = by_parts(image, stem, predictor, self.sink, self.options, **how)
        if isinstance(found, Failure):
            return PredictResult(failures=(found,))
        return PredictResult(written=(found,))

    def results(self, work: Callable[[Any], Any], batches: Iterable[Any]) -> Iterator[Any]:
        """Give the results as they come; raises what the work does, and drops the rest then."""
        from distributed import wait
        from distributed.client import FutureCancelledError, FuturesCancelledError
        from distributed.scheduler import KilledWorker

        todo: list[tuple[Any, int]] = []
        order = iter(batches)
        running: dict[Any, tuple[Any, int]] = {}
        try:
            while True:
                room = 2 * self.num_workers - len(running)
                todo += [(batch, 0) for batch in islice(order, max(0, room - len(todo)))]
                for batch, tried in [todo.pop(0) for _ in range(min(room, len(todo)))]:
                    running[self.client.submit(work, batch, pure=False)] = batch, tried
                if not running:
                    return
                with suppress(FuturesCancelledError):  # each says why itself
                    wait(list(running), return_when="FIRST_COMPLETED")
                for future in [one for one in running if one.done()]:
                    batch, tried = running.pop(future)
                    try:
                        yield future.result()
                    except (KilledWorker, FutureCancelledError) as lost:
                        if getattr(lost, "reason", "") == _NO_FAULT:
                            todo.append((batch, tried))
                            continue
                        if len(batch) == 1 and tried >= _TRIES:
                            yield _given_up(batch[0])
                        middle = len(batch) // 2
                        parts = [batch] if not middle else [batch[:middle], batch[middle:]]
                        todo += [(one, tried + 1) for one in parts if tried < _TRIES or middle]
        finally:
            self.client.cancel(list(running))


def _given_up(piece: InputImage | Bands) -> tuple[PredictResult, dict[Path, Any]]:
    """Name the image that ends every worker; without its bands there is no huge image at all."""
    if isinstance(piece, Bands):
        raise OutputError(f"{piece.path}: its bands end every worker; give them more memory")
    reason = f"{piece.name}: ends every worker that reads it; leave it out"
    return PredictResult(failures=(Failure(source=piece.name, reason=reason),)), {}
