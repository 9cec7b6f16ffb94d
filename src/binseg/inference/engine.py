"""From a source of images to a sink of predictions: the one engine of shell, Python and server.

    reader threads -> batches of equal inputs, computed in the calling thread -> writer threads

Reading, computing and writing happen at the same time, with few images in memory; images of many
sizes share batches.
"""

import errno
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from binseg.errors import DataError, ImageError, MissingExtraError, OutputError, UsageError
from binseg.imageio import read_pixel_size
from binseg.inference.large import predict_large
from binseg.inference.outputs import facts_of, files_of, origin_of
from binseg.inference.predict_options import Inputs, Maps, Pixels, PredictOptions, facts_of_file
from binseg.inference.prediction import FILES, Prediction
from binseg.inference.predictor import Predictor, Tell, untold
from binseg.inference.sinks import BytesSink, FolderSink, PredictResult, Sink, Written
from binseg.inference.sources import Failure, FileSource, InputImage, ListedSource, Source
from binseg.inference.tiling import Elsewhere
from binseg.inference.video import predict_video, require_av
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.shards import Shard
from binseg.storage import held
from binseg.transforms.preprocess import prepare

NUM_READERS = 2
NUM_WRITERS = 4  # More, since they mostly wait until the disk has what they wrote
AHEAD_BYTES = 256_000_000  # Decoded images that wait for the model, or a writer; one each at least

_OF_VIDEOS = "videos give masks and --overlay; take images of the frames for the rest"
_Todo = tuple[InputImage, Path]  # An image, and the stem of its outputs


def run(
    source: Source,
    predictor: Predictor,
    sink: Sink,
    options: PredictOptions | None = None,
    *,
    progress: Progress = SILENT,
    told: Callable[[PredictResult], None] | None = None,
) -> PredictResult:
    """Predict all images of a source into a sink, in bounded memory; inputs that fail stop nothing.

    `told` hears of each round that found something, whose results are then not kept here. Raises
    OutputError, and UsageError: an output would replace a file that is there, or one that was to be
    kept is of another image, model or setting; or options that the model or the images don't have.
    """
    options = options or PredictOptions()
    predictor = predictor.with_options(options)
    predictor.scaled_to(None, options)  # refuses a pixel size that says nothing to the model
    everything = PredictResult()
    for round_ in source.rounds(sink, options):
        if not (round_.images or round_.failures or round_.left_out):
            continue
        _check_videos(round_.images, options)
        found = sink.share(round_, options)
        stems = sink.stems(found.images, predictor, options, progress)
        todo = [(image, stem) for image, stem in zip(found.images, stems, strict=True) if stem]
        num_skipped = len(found.images) - len(todo)
        if num_skipped:
            progress.say(f"{num_skipped} of {len(found.images)} are there already")
        work = _Work(predictor=predictor, sink=sink, options=options, progress=progress)
        since = f", from image {round_.num_before + 1:,} on" if round_.num_before else ""
        results = list(work.results(todo, label=f"predicting{since}"))
        failures = [one for one in results if isinstance(one, Failure)]
        result = PredictResult(
            written=tuple(one for one in results if isinstance(one, Written)),
            failures=(*found.failures, *failures),
            num_skipped=num_skipped,
            left_out=tuple(found.left_out),
        )
        if told is None:
            everything += result
        else:
            told(result)
    sink.finish(options, everything)
    return everything


def predict_files(
    predictor: Predictor,
    inputs: Iterable[str | Path],
    *,
    out: str | Path,
    options: PredictOptions | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shard: Shard | None = None,
    progress: Progress = SILENT,
) -> PredictResult:
    """Write a mask for every image into a folder; see `FileSource`, `FolderSink` and `run`."""
    sink = FolderSink(out, overwrite=overwrite, resume=resume, shard=shard)
    with held(Path(out) if shard is None else shard.place(Path(out))):
        return run(FileSource(inputs), predictor, sink, options, progress=progress)


def predict_bytes(
    predictor: Predictor,
    data: bytes,
    *,
    output: str = "mask",
    options: PredictOptions | None = None,
    progress: Progress = SILENT,
) -> bytes:
    """Predict the image file on stdin; `output` is one of `ENCODED`. ImageError, UsageError."""
    name, sink = "the image on stdin", BytesSink(output)
    image = InputImage(path=Path("-"), relative=Path("-"), data=data, title=name)
    result = run(ListedSource([image]), predictor, sink, options)
    if result.failures:
        raise ImageError(result.failures[0].reason)
    for one in (*result.unlike, *result.doubtful):
        progress.say(f"{name}: {one.quality}; don't trust this mask unseen")
    return sink.data


def _check_videos(images: Sequence[InputImage], options: PredictOptions) -> None:
    """Refuse videos that can't be answered as asked, before any work."""
    if images and all(image.kind == "video" for image in images):
        require_av()
        if _too_much_of_a_video(options):
            raise UsageError(_OF_VIDEOS)


def _too_much_of_a_video(options: PredictOptions) -> bool:
    return bool(set(options.outputs) - {"overlay"}) or options.mask_format == "tif"


def fitted(
    predictor: Predictor, image: InputImage, options: PredictOptions, progress: Progress = SILENT
) -> Predictor:
    """Give the predictor for the pixel size of an image's file, and say where it differs."""
    judge, size = predictor.judge, None
    own = (judge.knowledge.pixel_um if judge else None) or 0.0
    if own:
        with suppress(ImageError):  # the one that reads its pixels says so
            size = (
                facts_of_file(image.path, place=False)["pixel_size"]
                if image.data is None
                else read_pixel_size(image.data)
            )
    fit = predictor.scaled_to(size, options)
    if fit is not predictor and judge is not None and fit.preprocessing is not None:
        factor = fit.preprocessing.scale / judge.preprocessing.scale
        progress.say(
            f"{image.name}: pixels of {factor * own:g} um, the model's are {own:g} um: resized "
            f"by {factor:g} for the network"
        )
    return fit


def by_parts(
    image: InputImage,
    stem: Path,
    predictor: Predictor,
    sink: Sink,
    options: PredictOptions,
    *,
    progress: Progress = SILENT,
    elsewhere: Elsewhere | None = None,
) -> Written | Failure:
    """Predict a huge image band by band (`elsewhere` perhaps), or a video frame by frame."""
    files = files_of(image, stem, options)
    try:
        if image.kind == "video":
            if _too_much_of_a_video(options):
                raise ImageError(_OF_VIDEOS)
            origin = origin_of(image, predictor, options)
            foreground = predict_video(
                predictor, image.path, files=files, facts=origin, progress=progress
            )
        else:
            predictor = fitted(predictor, image, options, progress)
            if set(options.outputs) - {"probability", "table"}:
                told = "too large for other outputs than mask, probability and table"
                progress.say(f"{image.path}: {told}")
            others = {path.name.removeprefix(stem.name): path for path in files[1:]}
            foreground = predict_large(
                predictor,
                image.path,
                out=files[0],
                probability=sink.large_probability if "_probability.tif" in others else None,
                overwrite=sink.replaces,
                progress=progress,
                origin=origin_of(image, predictor, options),
                opened=image.windows,
                elsewhere=elsewhere,
                table=others.get(FILES["table"].ending),
            ).foreground
    except (DataError, MissingExtraError) as error:
        return image.failed(error)
    return Written(source=image.path, mask=files[0], others=tuple(files[1:]), foreground=foreground)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """An image in memory, with its inputs where it can share a batch."""

    todo: _Todo
    image_HWC: Pixels
    predictor: Predictor  # The one for the size of its pixels
    inputs_NHWC: Inputs | None
    facts: dict[str, Any]  # Fields of its Prediction


_Computed = tuple[_Read, Maps | Prediction]  # With the maps of its inputs, or its prediction


@dataclass(kw_only=True)
class _Work:
    """Images, read, computed and written: many at the same time, or one by one."""

    predictor: Predictor
    sink: Sink
    options: PredictOptions
    progress: Progress = SILENT
    largest: int = 0  # Bytes of the largest image so far, with its probability; 0 before the first

    def results(self, todo: Sequence[_Todo], *, label: str) -> Iterator[Written | Failure]:
        """Predict images in memory first, then huge ones and videos."""
        plain, progress = [one for one in todo if one[0].kind == "image"], self.progress
        if len(plain) == 1:
            yield self._alone(plain[0])
        else:
            results = self._together(plain)
            yield from track(results, progress=progress, label=label, total=len(plain))
        for image, stem in todo:
            if image.kind != "image":
                how = (self.predictor, self.sink, self.options)
                yield by_parts(image, stem, *how, progress=progress)

    def _alone(self, todo: _Todo) -> Written | Failure:
        """Predict a single image, and tell how far its inputs are."""
        read = self._read(todo)
        if isinstance(read, Failure):
            return read
        num_inputs = read.predictor.num_inputs(*read.facts["size"])
        with self.progress.task("predicting", total=num_inputs) as task:
            (computed,) = self._computed([read], tell=task.advance)
            return self._finish(computed)

    def _together(self, todo: Sequence[_Todo]) -> Iterator[Written | Failure]:
        reads = map_ordered(
            self._read, todo, num_threads=NUM_READERS, ahead=lambda: self._num_ahead(reading=True)
        )
        with closing(reads):
            found = (one for batch in self._batches(reads) for one in self._computed(batch))
            yield from map_ordered(
                self._finish, found, num_threads=NUM_WRITERS, ahead=self._num_ahead
            )

    def _num_ahead(self, *, reading: bool = False) -> int:
        """Tell how many images may wait, by the largest that was seen; the first alone tells it."""
        if not self.largest:
            return 1
        most = 2 * self.predictor.batch_size if reading else 64
        return min(64, most, max(1, AHEAD_BYTES // self.largest))

    def _read(self, todo: _Todo) -> _Read | Failure:
        """Decode an image, and make its inputs where they can share a batch."""
        image, shape, inputs = todo[0], self.predictor.preprocessing, None
        try:
            facts = facts_of(image, self.predictor, self.options)
            fit = fitted(self.predictor, image, self.options, self.progress)
            image_HWC, facts["valid_HW"], facts["size"] = image.reduced(fit.preprocessing)
            size = facts["size"]
            if fit is self.predictor and shape is not None and fit.shares_batches(*size):
                inputs, _ = prepare(image_HWC, shape, name=image.name, size=size)
        except ImageError as error:
            return image.failed(error)
        return _Read(todo=todo, image_HWC=image_HWC, inputs_NHWC=inputs, predictor=fit, facts=facts)

    def _batches(self, reads: Iterable[_Read | Failure]) -> Iterator[list[_Read | Failure]]:
        """Gather images until their inputs fill a batch, or their pixels the allowance."""
        batch: list[_Read | Failure] = []
        num_bytes = num_inputs = 0
        for one in reads:
            batch.append(one)
            if isinstance(one, Failure):
                continue
            pixels = one.image_HWC
            self.largest = max(self.largest, pixels.nbytes + 4 * math.prod(one.facts["size"]))
            num_bytes += pixels.nbytes
            num_inputs += 0 if one.inputs_NHWC is None else len(one.inputs_NHWC)
            is_full = num_inputs >= self.predictor.batch_size or num_bytes > AHEAD_BYTES
            if is_full or one.inputs_NHWC is None:
                yield batch
                batch, num_bytes, num_inputs = [], 0, 0
        if batch:
            yield batch

    def _computed(
        self, batch: Sequence[_Read | Failure], *, tell: Tell = untold
    ) -> Iterator[_Computed | Failure]:
        """Compute a batch: the maps of images that share it, the predictions of the others."""
        inputs = [one.inputs_NHWC for one in batch if isinstance(one, _Read)]
        shared = [one for one in inputs if one is not None]
        maps = iter(self.predictor.probabilities_together(shared))
        for one in batch:
            if isinstance(one, Failure):
                yield one
                continue
            image, _ = one.todo
            if one.inputs_NHWC is not None:
                tell(len(one.inputs_NHWC))
                yield one, next(maps)
                continue
            how: dict[str, Any] = {"read_as": image.name, "tell": tell, **one.facts}
            try:
                yield one, one.predictor.predict_array(one.image_HWC, **how)
            except ImageError as error:
                yield image.failed(error)

    def _finish(self, computed: _Computed | Failure) -> Written | Failure:
        """Bring an image's maps to its own size, and write it."""
        if isinstance(computed, Failure):
            return computed
        one, found = computed
        image, stem = one.todo
        if isinstance(found, np.ndarray):
            found = self.predictor.prediction_of(one.image_HWC, found, **one.facts)
        try:
            return self.sink.write(image, found, stem, self.options)
        except (ImageError, OutputError) as error:
            # Of what the disk refuses only too long a name is the image's own.
            is_too_long = getattr(error.__cause__, "errno", None) == errno.ENAMETOOLONG
            if isinstance(error, OutputError) and not is_too_long:
                raise
            return image.failed(error)
