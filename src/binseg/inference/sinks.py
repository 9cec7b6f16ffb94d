"""Predictions are taken in: by files beside each other in a folder, or bytes for a client."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from binseg.errors import ImageError, UsageError
from binseg.inference.outputs import (
    candidates,
    difference,
    files_of,
    hash_of,
    join_outputs,
    refuse_other,
)
from binseg.inference.predict_options import PredictOptions
from binseg.inference.prediction import FILES, Prediction
from binseg.inference.predictor import Predictor
from binseg.inference.quality import UNLIKE, Flag, Quality
from binseg.inference.sources import Failure, InputImage, Places, Round
from binseg.inference.tiling import ProbabilityType
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress
from binseg.report.rendering import Entry, write_predictions_page
from binseg.shards import Shard
from binseg.storage import remove_scraps


@dataclass(frozen=True, kw_only=True)
class Written:
    """One image's outputs on disk."""

    source: Path
    page: int | None = None  # The page of a multi-page file, from 0
    mask: Path
    others: tuple[Path, ...] = ()  # Files beside the mask, as asked
    foreground: float  # Share of the pixels that are foreground
    quality: Quality | None = None  # None: can't be judged (huge images, videos)


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The images that were written, and those that were not."""

    written: tuple[Written, ...] = ()
    failures: tuple[Failure, ...] = ()
    num_skipped: int = 0  # Images whose outputs an earlier run had written (resume)
    left_out: tuple[Path, ...] = ()  # Files of the folders that are text, and so no images

    def __add__(self, other: "PredictResult") -> "PredictResult":
        return PredictResult(**{key: one + vars(other)[key] for key, one in vars(self).items()})

    @property
    def num_inputs(self) -> int:
        """Images (and inputs that are none) in all."""
        return len(self.written) + len(self.failures) + self.num_skipped

    @property
    def unlike(self) -> tuple[Written, ...]:
        """Images that are unlike the training data."""
        return self._flagged(UNLIKE)

    @property
    def doubtful(self) -> tuple[Written, ...]:
        """Images like the training data, whose masks are probably poor all the same."""
        return self._flagged("look")

    def _flagged(self, flag: Flag) -> tuple[Written, ...]:
        return tuple(x for x in self.written if x.quality is not None and x.quality.flag == flag)

    def as_dict(self) -> dict[str, object]:
        """Give the facts as plain data."""
        return {
            "written": [
                vars(one)
                | {"source": str(one.source), "mask": str(one.mask)}
                | {"others": [*map(str, one.others)]}
                | {"quality": one.quality.as_dict() if one.quality else None}
                for one in self.written
            ],
            "failures": [vars(one) for one in self.failures],
            "skipped": self.num_skipped,
            "left_out": [*map(str, self.left_out)],
        }


class Sink(ABC):
    """A receiver of predictions; as it stands, of one image's result in the folder `out`."""

    replaces = True  # True lets outputs that are there be replaced
    large_probability: ProbabilityType = "uint8"  # Type of huge images' stored probabilities

    def __init__(self, out: Path) -> None:
        self.out = out  # The folder of the outputs; what lies in there is no input

    @property
    def is_free(self) -> bool:
        """Tell whether no earlier file can be in an output's way."""
        return False

    def stems(
        self,
        images: Sequence[InputImage],
        predictor: Predictor,
        options: PredictOptions,
        progress: Progress,
    ) -> list[Path | None]:
        """Name each image's outputs, without endings; None where all are there. UsageError."""
        assert len(images) == 1, "one result is of one image"
        return [self.out / "result"]

    def share(self, found: Round, options: PredictOptions) -> Round:
        """Choose what is to be answered into this sink: everything."""
        return found

    def finish(self, options: PredictOptions, result: "PredictResult") -> None:
        """Do what is left when all predictions are there."""
        del options, result

    @abstractmethod
    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Take in a prediction, in any of several threads; raises OutputError."""


class FolderSink(Sink):
    """A folder of masks, and of what else was asked for; inputs are never replaced.

    `overwrite` replaces earlier files, `resume` leaves out images whose outputs are there, whole
    and of these images, model and settings, `report` keeps small images for `write_report`, `shard`
    takes in its share alone, as `resume` does.
    """

    large_probability: ProbabilityType = "float32"

    def __init__(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        report: bool = False,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(Path(out))
        resume = resume or shard is not None
        self.replaces = overwrite or resume
        self.replaces_others = overwrite  # False refuses, with `resume`, another model's or image's
        self._resume = resume
        self._shard = shard
        self._masks: list[tuple[str, str]] = []  # Each image of the shard with its mask
        self.entries: dict[Path, Entry] | None = {} if report else None  # For the page
        self._owners: dict[str, str] = {}  # The image behind each output of earlier rounds

    @property
    def is_free(self) -> bool:
        """Tell whether no earlier file can be in an output's way."""
        return self.replaces or not (self.out.is_dir() and any(self.out.iterdir()))

    def stems(
        self,
        images: Sequence[InputImage],
        predictor: Predictor,
        options: PredictOptions,
        progress: Progress,
    ) -> list[Path | None]:
        """Give each image a stem of its own: `a.jpg` and `a.png` must not share a mask."""
        done: list[Path | None] = [None] * len(images)
        if self._resume:
            find = partial(self._done, predictor, options=options)
            done = list(map_ordered(find, images, num_threads=4, ahead=64))
            for image, stem in zip(images, done, strict=True):
                if stem is not None:
                    self._owners.update(_owned(files_of(image, stem, options), image))
        left = [image for image, stem in zip(images, done, strict=True) if stem is None]
        named = dict(zip(left, self._named(left, options, progress), strict=True))
        files: list[Path] = []
        for image, stem in named.items():
            files += files_of(image, stem, options)
            if self._resume and not self.replaces_others:
                refuse_other(predictor, image, stem, options)
        self._refuse_replacing(images, files)
        for image, kept in zip(images, done, strict=True) if self._shard else ():
            mask = files_of(image, kept or named[image], options)[0]
            self._masks.append((image.name, mask.relative_to(self.out).as_posix()))
        return [named.get(image) for image in images]

    def settled(self, found: Round, options: PredictOptions) -> Round:
        """Settle the names of all outputs, for others to write them; UsageError as for `stems`."""
        named = list(self._shares(found.images, Shard(number=1, of=1), options))
        files = [files_of(one, self.out / one.relative.parent / one.stem, options) for one in named]
        self._refuse_replacing(named, [file for one in files for file in one])
        return replace(found, images=named)

    def share(self, found: Round, options: PredictOptions) -> Round:
        """Choose the images of the shard; all are looked at for the names of their outputs."""
        if self._shard is None:
            return found
        own = list(self._shares(found.images, self._shard, options))
        failures = [one for one in found.failures if self._shard.holds(one.source)]
        texts = [one for one in found.left_out if self._shard.holds(str(one))]
        return Round(images=own, failures=failures, left_out=texts)

    def _shares(
        self, images: Sequence[InputImage], shard: Shard, options: PredictOptions
    ) -> Iterator[InputImage]:
        named = self._named(images, options, SILENT)
        for image, stem in zip(images, named, strict=True):
            if shard.holds(image.relative.as_posix()):
                yield replace(image, stem=stem.name)

    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Write all files of an image, each whole or not there; last the mask, which knows them."""
        paths = files_of(image, stem, options)
        for path, kind in zip(paths[1:], options.outputs, strict=True):
            FILES[kind].write(prediction, path, options)
        quality = prediction.quality
        if self.entries is not None:
            self.entries[paths[0]] = prediction.entry()
        if prediction.origin:
            others = {path.name: hash_of(path) for path in paths[1:]}
            prediction = copy(prediction)  # with the mask that was computed, which `replace` drops
            vars(prediction)["origin"] = {**prediction.origin, "others": others}
        FILES["mask"].write(prediction, paths[0], options)
        written = partial(Written, source=image.path, mask=paths[0], others=tuple(paths[1:]))
        return written(page=image.page, foreground=prediction.foreground, quality=quality)

    def finish(self, options: PredictOptions, result: "PredictResult") -> None:
        """Join the COCO files and tables of all images in the folder; a shard notes its own."""
        if self._shard is None:
            if self._resume:
                remove_scraps(one.mask.parent for one in result.written)
            join_outputs(self.out, options.outputs)
            return
        known = self._shard.read(self.out) or {"entries": []}
        entries = {one["name"]: one for one in known["entries"]}  # of masks that were kept
        for path, one in (self.entries or {}).items():
            name = path.relative_to(self.out).as_posix()
            entries[name] = vars(replace(one, name=name))
        found = {"masks": self._masks, "failures": [vars(one) for one in result.failures]}
        found |= {"outputs": options.outputs, "entries": [*entries.values()]}
        self._shard.write(self.out, {"verb": "predict", **found})

    def write_report(self, result: "PredictResult", *, model: str) -> Path:
        """Write page and table of this run, and return the page's path; raises OutputError."""
        assert self.entries is not None, "ask for a report first"
        entries = [
            replace(
                self.entries.get(one.mask) or Entry(name="", foreground=one.foreground),
                name=one.mask.relative_to(self.out).as_posix(),
            )
            for one in result.written
        ]
        return write_predictions_page(self.out, entries, model=model)

    def _done(
        self, predictor: Predictor, image: InputImage, *, options: PredictOptions
    ) -> Path | None:
        """Find the outputs of an image that are there as they would be made now."""
        with suppress(ImageError):  # reading the image will say so
            for stem in islice(candidates(image, self.out), 2):
                if difference(predictor, image, stem, options) == "":
                    return stem
        return None

    def _named(
        self, images: Sequence[InputImage], options: PredictOptions, progress: Progress
    ) -> Iterator[Path]:
        taken: set[Path] = set()
        for image in images:
            for stem in candidates(image, self.out):
                files = files_of(image, stem, options)
                owner = str(image.path)
                own = all(self._owners.get(str(one), owner) == owner for one in files)
                if own and taken.isdisjoint(files):
                    break
            if stem != next(candidates(image, self.out)):
                progress.say(
                    f"{image.path}: written as {files[0].name}, since another has its name"
                )
            taken.update(files)
            self._owners.update(_owned(files, image))
            yield stem

    def _refuse_replacing(self, images: Sequence[InputImage], files: Sequence[Path]) -> None:
        """Stop before the first input rather than replace a file that can't be had again."""
        places = Places()
        real = {places.real(image.path) for image in images}
        for file in files:
            if places.real(file) in real:
                raise UsageError(f"{file} is one of the inputs; choose another folder with --out")
            if os.path.exists(file) and not self.replaces:  # noqa: PTH110 - names may be too long
                raise UsageError(
                    f"{file} exists; choose another folder with --out, replace the files of an "
                    "earlier run with --overwrite, or go on with a stopped one with --resume"
                )


def _owned(files: Sequence[Path], image: InputImage) -> dict[str, str]:
    return dict.fromkeys(map(str, files), str(image.path))


class BytesSink(Sink):
    """One output of `ENCODED` in memory: `data` of type `media`; `out` takes what is too large."""

    def __init__(self, kind: str, out: Path = Path("-")) -> None:
        super().__init__(out)
        self.kind = kind
        self.data, self.media = b"", ""
        self.size: tuple[int, int] | None = None  # Height and width of the image, once it was there

    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Encode the output."""
        self.data, self.media = prediction.encode(self.kind, options)
        self.size = prediction.mask.shape
        share, quality = prediction.foreground, prediction.quality
        return Written(source=image.path, mask=stem, foreground=share, quality=quality)
