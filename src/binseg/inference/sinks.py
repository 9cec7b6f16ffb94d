"""Predictions are taken in: by files beside each other in a folder, or bytes for a client."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b, file_digest
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from binseg.errors import ImageError, UsageError
from binseg.holding import Shard
from binseg.imageio import is_whole, read_facts
from binseg.inference.image_like import facts_of_file
from binseg.inference.joined import join_outputs
from binseg.inference.large import ProbabilityType
from binseg.inference.predict_options import PredictOptions
from binseg.inference.prediction import FILES, Prediction
from binseg.inference.predictor import Predictor
from binseg.inference.quality import UNLIKE, Quality
from binseg.inference.sources import Failure, InputImage, Places, Round
from binseg.inference.video import facts_of_video
from binseg.parallel import map_ordered
from binseg.progress import Progress
from binseg.report.predictions_page import Entry, write_predictions_page


@dataclass(frozen=True, kw_only=True)
class Written:
    """One image's outputs on disk."""

    source: Path
    page: int | None = None
    """The page of a multi-page file, from 0."""
    mask: Path
    others: tuple[Path, ...] = ()
    """Files beside the mask, as asked."""
    foreground: float
    """Share of the pixels that are foreground."""
    quality: Quality | None = None
    """None where the model can't judge it, and for huge images and videos."""


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The images that were written, and those that were not."""

    written: tuple[Written, ...] = ()
    failures: tuple[Failure, ...] = ()
    num_skipped: int = 0
    """Images whose outputs an earlier run had written (resume)."""
    left_out: tuple[Path, ...] = ()
    """Files of the folders that are text, and so no images."""

    def __add__(self, other: "PredictResult") -> "PredictResult":
        return PredictResult(
            written=self.written + other.written,
            failures=self.failures + other.failures,
            num_skipped=self.num_skipped + other.num_skipped,
            left_out=self.left_out + other.left_out,
        )

    @property
    def num_inputs(self) -> int:
        """Images (and inputs that are none) in all."""
        return len(self.written) + len(self.failures) + self.num_skipped

    @property
    def unlike(self) -> tuple[Written, ...]:
        """Images that are unlike the training data."""
        return tuple(x for x in self.written if x.quality is not None and x.quality.flag == UNLIKE)

    def as_dict(self) -> dict[str, object]:
        """Give the facts as plain data."""
        paths = [
            {
                "source": str(one.source),
                "mask": str(one.mask),
                "others": [*map(str, one.others)],
                "quality": one.quality.as_dict() if one.quality else None,
            }
            for one in self.written
        ]
        return {
            "written": [vars(one) | text for one, text in zip(self.written, paths, strict=True)],
            "failures": [vars(one) for one in self.failures],
            "skipped": self.num_skipped,
            "left_out": [*map(str, self.left_out)],
        }


class Sink(ABC):
    """A receiver of predictions; as it stands, of one image's result in the folder `out`."""

    replaces = True
    """True lets outputs that are there be replaced."""
    large_probability: ProbabilityType = "uint8"
    """The type in which probabilities of huge images are stored."""

    def __init__(self, out: Path) -> None:
        self.out = out
        """The folder of the outputs; what lies in there is no input."""

    def stems(
        self,
        images: Sequence[InputImage],
        predictor: Predictor,
        options: PredictOptions,
        progress: Progress,
    ) -> list[Path | None]:
        """Name each image's outputs, without their endings; None where all are there already.

        Raises:
            UsageError: an output would replace what must stay.
        """
        del predictor, options, progress
        assert len(images) == 1, "one result is of one image"
        return [self.out / "result"]

    def share(self, found: Round, options: PredictOptions) -> Round:
        """Choose what is to be answered into this sink: everything."""
        del options
        return found

    def finish(self, options: PredictOptions, result: "PredictResult") -> None:
        """Do what is left when all predictions are there."""
        del options, result

    @abstractmethod
    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Take in a prediction; called from several threads.

        Raises:
            OutputError: the disk refused.
        """


class FolderSink(Sink):
    """A folder of masks, and of what else was asked for.

    Args:
        out: the folder; made when it is needed.
        overwrite: replace files of an earlier run; inputs are never replaced.
        resume: leave out images whose outputs are there already, whole, and of these images, this
            model and these settings; with `overwrite` all others are replaced.
        report: keep a small image of each prediction, for `write_report`.
        shard: take in this share alone, as `resume` does; `pipelines.gather` joins all shares.
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
        self._resume, self._replaces_others = resume, overwrite
        self._shard = shard
        self._masks: list[tuple[str, str]] = []
        """Each image of the shard with its mask."""
        self._entries: dict[Path, Entry] | None = {} if report else None
        self._owners: dict[Path, Path] = {}
        """The image behind each output of earlier rounds."""

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
                    self._owners.update(dict.fromkeys(files_of(image, stem, options), image.path))
        left = [image for image, stem in zip(images, done, strict=True) if stem is None]
        named = list(self._named(left, options, progress))
        both = list(zip(left, named, strict=True))
        if self._resume and not self._replaces_others:
            for image, stem in both:
                _refuse_other(predictor, image, stem, options)
        self._refuse_replacing(images, [file for one in both for file in files_of(*one, options)])
        stems = iter(named)
        if self._shard is not None:
            rest = iter(named)
            for image, stem in zip(images, done, strict=True):
                mask = files_of(image, stem or next(rest), options)[0]
                self._masks.append((image.name, mask.relative_to(self.out).as_posix()))
        return [next(stems) if stem is None else None for stem in done]

    def share(self, found: Round, options: PredictOptions) -> Round:
        """Choose the images of the shard; all are looked at for the names of their outputs."""
        if self._shard is None:
            return found
        own, taken = [], set[Path]()
        for image in found.images:
            for stem in _candidates(image, self.out):
                files = files_of(image, stem, options)
                if taken.isdisjoint(files):
                    break
            taken.update(files)
            if self._shard.holds(image.relative.as_posix()):
                own.append(replace(image, stem=stem.name))
        failures = [one for one in found.failures if self._shard.holds(one.source)]
        texts = [one for one in found.left_out if self._shard.holds(str(one))]
        return Round(images=own, failures=failures, left_out=texts)

    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Write all files of an image, each whole or not there; last the mask, which knows them."""
        paths = files_of(image, stem, options)
        for path, kind in zip(paths[1:], options.outputs, strict=True):
            FILES[kind].write(prediction, path, options.tolerance)
        quality = prediction.quality
        if self._entries is not None:
            self._entries[paths[0]] = prediction.entry()
        if prediction.origin:
            others = {path.name: _hash_of(path) for path in paths[1:]}
            prediction = copy(prediction)  # with the mask that was computed, which `replace` drops
            vars(prediction)["origin"] = {**prediction.origin, "others": others}
        FILES["mask"].write(prediction, paths[0], options.tolerance)
        return Written(
            source=image.path,
            page=image.page,
            mask=paths[0],
            others=tuple(paths[1:]),
            foreground=prediction.foreground,
            quality=quality,
        )

    def finish(self, options: PredictOptions, result: "PredictResult") -> None:
        """Join the COCO files and tables of all images in the folder; a shard notes its own."""
        if self._shard is None:
            join_outputs(self.out, options.outputs)
            return
        entries = self._entries or {}
        self._shard.write(
            self.out,
            {
                "verb": "predict",
                "masks": self._masks,
                "failures": [vars(one) for one in result.failures],
                "outputs": options.outputs,
                "entries": [
                    vars(replace(one, name=path.relative_to(self.out).as_posix()))
                    for path, one in entries.items()
                ],
            },
        )

    def write_report(self, result: "PredictResult", *, model: str) -> Path:
        """Write the page and the table of what this run wrote, and return the page's path.

        Raises:
            OutputError: a file can't be written.
        """
        assert self._entries is not None, "ask for a report first"
        entries = [
            replace(
                self._entries.get(one.mask) or Entry(name="", foreground=one.foreground),
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
            for stem in islice(_candidates(image, self.out), 2):
                if _difference(predictor, image, stem, options) == "":
                    return stem
        return None

    def _named(
        self, images: Sequence[InputImage], options: PredictOptions, progress: Progress
    ) -> Iterator[Path]:
        taken: set[Path] = set()
        for image in images:
            for stem in _candidates(image, self.out):
                files = files_of(image, stem, options)
                own = all(self._owners.get(one, image.path) == image.path for one in files)
                if own and taken.isdisjoint(files):
                    break
            if stem != next(_candidates(image, self.out)):
                progress.say(
                    f"{image.path}: written as {files[0].name}, since another has its name"
                )
            taken.update(files)
            self._owners.update(dict.fromkeys(files, image.path))
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


class BytesSink(Sink):
    """One output of one image, in memory: `data` of type `media`.

    Args:
        kind: mask, probability, overlay, cutout or json.
        out: the folder of what doesn't fit into memory.
    """

    def __init__(self, kind: str, out: Path = Path("-")) -> None:
        super().__init__(out)
        self.kind = kind
        self.data, self.media = b"", ""
        self.size: tuple[int, int] | None = None
        """Height and width of the image, once it was there."""

    def write(
        self, image: InputImage, prediction: Prediction, stem: Path, options: PredictOptions
    ) -> Written:
        """Encode the output."""
        self.data, self.media = prediction.encode(self.kind, tolerance=options.tolerance)
        self.size = prediction.mask.shape
        return Written(source=image.path, mask=stem, foreground=prediction.foreground)


def files_of(image: InputImage, stem: Path, options: PredictOptions) -> list[Path]:
    """List the files that an image gets, the mask's first."""
    outputs = options.outputs
    if image.kind == "video":
        endings = [".mkv", *(["_overlay.mp4"] if "overlay" in outputs else [])]
    elif image.kind == "large":
        endings = [".tif", *(["_probability.tif"] if "probability" in outputs else [])]
    else:
        endings = [f".{options.mask_format}", *(FILES[one].ending for one in outputs)]
    return [stem.with_name(stem.name + ending) for ending in endings]


def facts_of(image: InputImage, predictor: Predictor, options: PredictOptions) -> dict[str, Any]:
    """Read what outputs say of an image beside its pixels, as fields of a Prediction."""
    if image.data is not None:
        return {"name": image.name}
    asked = set(options.outputs)
    facts = facts_of_file(
        image.path,
        place=options.mask_format == "tif" or bool(asked & {"geojson", "probability"}),
    )
    name = image.title or image.path.name
    return {**facts, "name": name, "origin": origin_of(image, predictor, options)}


def origin_of(
    image: InputImage, predictor: Predictor, options: PredictOptions
) -> dict[str, object]:
    """Tell the content and place of an image and all settings, without naming anybody's folders."""
    settings = [(repr(one.preprocessing), one.tta, one.temperature) for one in predictor.members]
    place = f"{os.path.realpath(image.path)}#{image.page}".encode("utf-8", "surrogateescape")
    return {
        "image": f"{_hash_of(image.path)}#{image.page}",
        "place": blake2b(place, digest_size=8).hexdigest(),
        "settings": blake2b(
            repr((settings, options.tolerance, options.pixel_size)).encode(), digest_size=8
        ).hexdigest(),
    }


def _hash_of(path: Path) -> str:
    """Hash the content of a file, or of all files of a folder."""
    whole = blake2b(digest_size=16)
    try:
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as handle:
                digest = file_digest(handle, partial(blake2b, digest_size=16))
            whole.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape"))
            whole.update(digest.digest())
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror or error})") from error
    return whole.hexdigest()


def _difference(
    predictor: Predictor, image: InputImage, stem: Path, options: PredictOptions
) -> str | None:
    """Say what tells the outputs at a stem from those that would be made now.

    Returns:
        "" where nothing does, None where they aren't all there and whole, else of another what.
    """
    files = files_of(image, stem, options)
    if not is_whole(files[0]):
        return None
    made = facts_of_video(files[0]) if image.kind == "video" else read_facts(files[0])
    if "model" not in made:
        return "program"
    origin = origin_of(image, predictor, options)
    if made.get("image") != origin["image"]:
        return None if made.get("place") == origin["place"] else "image"
    expected = {
        "model": ("model", predictor.bundle_id),
        "threshold": ("threshold", predictor.threshold),
        "post-processing": ("postprocess", predictor.postprocessing.as_dict()),
        "setting (test-time augmentation, tiles, scale, tolerance)": (
            "settings", origin["settings"],
        ),
    }  # fmt: skip
    for noun, (key, value) in expected.items():
        if made.get(key) != value:
            return noun
    known = made.get("others")
    for file in files[1:]:
        if not is_whole(file):
            return None
        if isinstance(known, dict) and known.get(file.name) != _hash_of(file):
            return None
    return ""


def _refuse_other(
    predictor: Predictor, image: InputImage, stem: Path, options: PredictOptions
) -> None:
    try:
        noun = _difference(predictor, image, stem, options)
    except ImageError:  # reading the image will say so
        return
    if noun:
        raise UsageError(
            f"{files_of(image, stem, options)[0]} is of another {noun}; choose another folder with "
            "--out, or replace what is there with --overwrite"
        )


def _candidates(image: InputImage, out: Path) -> Iterator[Path]:
    """Give stems from the plainest on; the list has no end."""
    folder, name = out / image.relative.parent, image.relative
    if image.stem:
        yield folder / image.stem
    page = "" if image.page is None else f"-page{image.page:04d}"
    numbered = (f"{name.stem}{page}-{number}" for number in count(2))
    plain = (f"{name.stem}{page}", f"{name.name}{page}")
    yield from (folder / text for text in chain(plain, numbered))
