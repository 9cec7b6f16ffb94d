"""Work in shares: Dask has many processes answer images or bands, and shards are gathered.

    images -> batches -> workers (each loads the model once) -> files, whole or absent
    huge image -> runs of bands -> workers -> its journal -> one file, put together here

Every piece of work may be done twice: a batch leaves out what is there already, a band is the same
bytes whoever computes it. So a worker that is lost costs its batch alone, and a batch that ends
several workers is halved until the one image that does it is named.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from binseg.config import DataConfig
from binseg.errors import OutputError, UsageError, needing
from binseg.evaluation.scoring import SavedMask
from binseg.imageio import caged_windows, is_whole
from binseg.imageio.windows import declared
from binseg.inference import PredictOptions, Predictor, load
from binseg.inference.engine import by_parts, fitted, run
from binseg.inference.journal import write_band
from binseg.inference.outputs import join_outputs
from binseg.inference.sinks import FolderSink, PredictResult
from binseg.inference.sources import Failure, InputImage, ListedSource, Source
from binseg.inference.tiling import Bands, packed_bands
from binseg.parallel import map_ordered
from binseg.pipelines.check_data import CheckResult, check
from binseg.pipelines.evaluate_model import evaluate
from binseg.progress import SILENT, Progress, track
from binseg.report.rendering import Entry, write_predictions_page
from binseg.shards import Shard, read_shards
from binseg.storage import held, remove_scraps
from binseg.types import Report

BATCH_IMAGES, BATCH_BYTES = 32, 32_000_000  # Most that a worker is given
_MOST_IMAGES = 256  # The same, where there are so many images that all workers get some
_RUNS = 4  # Runs of bands, or large batches, for each worker: more even out, but each begins anew
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
            for result, entries in driver.results(work, _batched(plain, driver.num_workers)):
                everything += result
                task.advance(result.num_inputs)
                if sink.entries is not None:
                    sink.entries |= entries
        for image in found.images:
            if image.kind == "large":
                everything += driver.huge(image)
            elif image.kind == "video":
                everything += work([image])[0]
    remove_scraps(one.mask.parent for one in everything.written)
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


def _batched(images: Sequence[InputImage], num_workers: int) -> Iterator[list[InputImage]]:
    """Gather images until a batch is full; a file's bytes stand for its pixels."""
    most = max(BATCH_IMAGES, min(_MOST_IMAGES, len(images) // (_RUNS * num_workers)))
    batch: list[InputImage] = []
    num_bytes = 0
    for image in images:
        with suppress(OSError):  # the worker says what is wrong with it
            num_bytes += image.path.stat().st_size
        batch.append(image)
        if len(batch) >= most or num_bytes >= BATCH_BYTES:
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

        parts = partial(by_parts, progress=self.progress, elsewhere=elsewhere)
        found = parts(image, stem, predictor, self.sink, self.options)
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


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The joined answer of all shards."""

    verb: str
    num_images: int
    written: tuple[Path, ...] = ()  # Files that join those of all shards
    failures: tuple[str, ...] = ()  # A line for each input that could not be answered
    missing_shards: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # Images of ended shards whose outputs are gone or cut off
    answer: Report | CheckResult | None = None  # Of `evaluate`, or of `check`

    @property
    def is_whole(self) -> bool:
        """True where nothing failed and nothing is missing."""
        return not (self.failures or self.missing_shards or self.missing)

    def as_dict(self) -> dict[str, Any]:
        """Give the facts as plain data."""
        facts = {name: one for name, one in vars(self).items() if name != "answer"}
        return {**facts, "written": [*map(str, self.written)], "is_whole": self.is_whole}


def gather(out: str | Path, *, progress: Progress = SILENT) -> Gathered:
    """Join what shards wrote into a folder; OutputError, and UsageError for absent ones."""
    out = Path(out)
    records, absent = read_shards(out)
    missing_shards = tuple(map(str, absent))
    with held(out):
        if records[0]["verb"] == "predict":
            return _predictions(out, records, missing_shards, progress)
        if absent:
            raise UsageError(
                f"{out}: shards {', '.join(missing_shards[:10])} of {absent[0].of} have not ended; "
                f"run them, then gather again: {records[0]['verb']} needs all images"
            )
        return _scored(out, records, progress)


def _predictions(
    out: Path, records: Sequence[dict[str, Any]], absent: tuple[str, ...], progress: Progress
) -> Gathered:
    """Look for every mask, and join the tables, COCO files and pages."""
    failures = {one["source"]: one["reason"] for record in records for one in record["failures"]}
    masks = [one for record in records for one in record["masks"] if one[0] not in failures]
    found = map_ordered(lambda one: is_whole(out / one[1]), masks, ahead=64)
    wholes = track(found, progress=progress, label="looking at masks", total=len(masks))
    missing = [name for (name, _), whole in zip(masks, wholes, strict=True) if not whole]
    written = join_outputs(out, {name for record in records for name in record["outputs"]})
    if entries := [Entry(**one) for record in records for one in record["entries"]]:
        written.append(write_predictions_page(out, entries, model=f"{len(records)} shards"))
    return Gathered(
        verb="predict",
        num_images=len(masks) + len(failures),
        written=tuple(written),
        failures=tuple(failures.values()),
        missing_shards=absent,
        missing=tuple(missing),
    )


def _scored(out: Path, records: Sequence[dict[str, Any]], progress: Progress) -> Gathered:
    """Run the verb once more, with what the shards found out of each image."""
    asked, verb = records[0]["asked"], records[0]["verb"]
    if any(one["asked"] != asked for one in records):
        raise UsageError(f"{out}: its shards were run with different options; run them alike")
    config = DataConfig(**asked.pop("data"))
    known = [one["found"] for one in records]
    if verb == "check":
        page = out / "check.html"
        checked = check(config, page=page, known=known, progress=progress)
        num = int(dict(checked.facts).get("images", 0))
        return Gathered(verb=verb, num_images=num, written=(page,), answer=checked)
    models, tta = asked.pop("models"), asked.pop("tta")
    masks = asked.pop("predicted")
    model = SavedMask(None, name=masks) if masks else load(models, tta=tta)
    report = evaluate(model, data=config, out=out, known=known, progress=progress, **asked)
    files = ("report.html", "report.json", "per_image.csv")
    written = tuple(out / name for name in files)
    return Gathered(verb=verb, num_images=len(report.images), written=written, answer=report)


def run_shard(
    verb: str,
    shard: Shard,
    out: Path,
    *,
    data: DataConfig,
    find: Callable[[Shard], Any],
    asked: Mapping[str, Any] | None = None,
) -> str:
    """Find out a shard's share, once, and say so in a line; raises UsageError and OutputError."""
    everything = {**(asked or {}), "data": data.model_dump(mode="json")}
    known = shard.read(out)
    if known is None:
        shard.write(out, {"verb": verb, "asked": everything, "found": find(shard)})
        return f"shard {shard} is in {out}; when all are: binseg gather {out}"
    if known.get("asked") != json.loads(json.dumps(everything)):
        raise UsageError(f"{out}: shard {shard} was run with other options; choose another folder")
    return f"shard {shard} is in {out} already"
