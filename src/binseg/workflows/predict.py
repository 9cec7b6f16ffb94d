"""Masks for files, folders and globs: as a stream, one bad picture stops nobody else's."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
from jaxtyping import Num

from binseg.errors import PictureError, UsageError
from binseg.imageio import (
    PICTURE_SUFFIXES,
    probe,
    read_image,
    write_mask,
    write_probability,
    write_rgb,
    write_rgba,
)
from binseg.predictor import Predictor
from binseg.progress import SILENT, Progress, track
from binseg.report import cutout as cut_out
from binseg.report import overlay as draw_over

__all__ = ["Failure", "PredictResult", "Written", "predict_files"]

TIFF_SUFFIXES = {".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Written:
    """One picture's answer on disk."""

    source: Path
    page: int | None
    """The page of a multi-page file, from 0."""
    mask: Path
    others: tuple[Path, ...]
    """Overlay, cut-out and probability, as asked."""
    foreground: float
    """Share of the pixels that are foreground."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that gave no mask."""

    source: str
    reason: str
    """One line that names the input."""


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """What was written and what was not."""

    written: tuple[Written, ...]
    failures: tuple[Failure, ...]

    @property
    def num_inputs(self) -> int:
        """Pictures (and inputs that are none) in all."""
        return len(self.written) + len(self.failures)

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "written": [
                {
                    "source": str(one.source),
                    "page": one.page,
                    "mask": str(one.mask),
                    "others": [str(path) for path in one.others],
                    "foreground": one.foreground,
                }
                for one in self.written
            ],
            "failures": [{"source": one.source, "reason": one.reason} for one in self.failures],
        }


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One picture to predict: where it is, and where in the output folder it goes."""

    path: Path
    page: int | None
    relative: Path


@dataclass(frozen=True, kw_only=True)
class _Kinds:
    """What to write beside the mask."""

    overlay: bool
    cutout: bool
    probability: bool

    def endings(self) -> list[str]:
        """The ends of all file names of one picture, the mask's first."""
        return [
            ".png",
            *(["_overlay.png"] if self.overlay else []),
            *(["_cutout.png"] if self.cutout else []),
            *(["_probability.tif"] if self.probability else []),
        ]


def predict_files(
    predictor: Predictor,
    inputs: Iterable[str | Path],
    *,
    out: str | Path,
    overlay: bool = False,
    cutout: bool = False,
    probability: bool = False,
    threshold: float | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> PredictResult:
    """Write a 0/255 PNG for every picture, at the picture's own size.

    Args:
        predictor: the model.
        inputs: files, folders (with the folders in them, whose structure is kept) and globs.
        out: folder for the masks.
        overlay: also NAME_overlay.png, the picture with the mask drawn over it.
        cutout: also NAME_cutout.png, the object on transparent ground.
        probability: also NAME_probability.tif, 32-bit floats.
        threshold: instead of the model's own.
        overwrite: replace files of an earlier run; inputs are never replaced.
        progress: told of every picture.

    Returns:
        What was written; inputs that failed are in it too, and stop nothing.

    Raises:
        UsageError: an answer would replace a file that is there.
        OutputError: an answer can't be written.
    """
    out = Path(out)
    kinds = _Kinds(overlay=overlay, cutout=cutout, probability=probability)
    if threshold is not None:
        predictor = predictor.with_threshold(threshold)
    pictures, failures = _find_pictures(inputs, out)
    stems = _name_answers(pictures, out, kinds, progress)
    _refuse_overwriting(pictures, stems, kinds, overwrite=overwrite)
    written = []
    read = track(_read_ahead(pictures), progress=progress, label="predicting", total=len(pictures))
    for picture, stem, image_HWC in zip(pictures, stems, read, strict=True):
        try:
            if isinstance(image_HWC, PictureError):
                raise image_HWC
            written.append(_answer(predictor, picture, image_HWC, stem, kinds))
        except PictureError as error:
            failures.append(_failure(picture.path, error))
    return PredictResult(written=tuple(written), failures=tuple(failures))


def _failure(source: str | Path, error: PictureError | str) -> Failure:
    text = str(error)
    named = text if str(source) in text else f"{source}: {text}"
    return Failure(source=str(source), reason=named)


def _find_pictures(inputs: Iterable[str | Path], out: Path) -> tuple[list[_Picture], list[Failure]]:
    """List every picture once; what names none is a failure."""
    pictures: list[_Picture] = []
    failures: list[Failure] = []
    seen: set[tuple[Path, int | None]] = set()
    for given in inputs:
        found = list(_expand(str(given), out))
        if not found:
            failures.append(_failure(given, "there is no such picture, or none in it"))
        for path, relative in found:
            try:
                pages = _pages(path)
            except PictureError as error:
                failures.append(_failure(path, error))
                continue
            for page in pages:
                if (path.resolve(), page) not in seen:
                    seen.add((path.resolve(), page))
                    pictures.append(_Picture(path=path, page=page, relative=relative))
    return pictures, failures


def _expand(given: str, out: Path) -> Iterator[tuple[Path, Path]]:
    """Give the files that an input stands for, each with its path inside that input."""
    path = Path(given)
    if path.is_dir():
        yield from _in_folder(path, out)
    elif path.exists():
        yield path, Path(path.name)
    else:
        for match in sorted(glob.glob(given, recursive=True)):  # noqa: PTH207 - absolute globs too
            if Path(match).is_dir():
                yield from _in_folder(Path(match), out)
            else:
                yield Path(match), Path(Path(match).name)


def _in_folder(folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Give the pictures of a folder, without hidden ones and without answers of an earlier run."""
    answers = out.resolve()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        is_answer = answers != folder.resolve() and path.resolve().is_relative_to(answers)
        if path.suffix.lower() in PICTURE_SUFFIXES and not hidden and not is_answer:
            yield path, relative


def _pages(path: Path) -> Sequence[int | None]:
    """Give the pages of a stack, or [None] for a file of one picture."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return [None]
    num_pages = probe(path).num_pages
    return [None] if num_pages == 1 else range(num_pages)


def _name_answers(
    pictures: Sequence[_Picture], out: Path, kinds: _Kinds, progress: Progress
) -> list[Path]:
    """Give each picture a name of its own; `a.jpg` and `a.png` must not share a mask."""
    taken: set[Path] = set()
    stems = []
    for picture in pictures:
        names = _candidates(picture, out)
        stem = first = next(names)
        while not taken.isdisjoint(_files(stem, kinds)):
            stem = next(names)
        if stem != first:
            progress.say(f"{picture.path}: written as {stem.name}.png, since another has its name")
        taken.update(_files(stem, kinds))
        stems.append(stem)
    return stems


def _candidates(picture: _Picture, out: Path) -> Iterator[Path]:
    """Give names from the plainest on; the list has no end."""
    folder, name = out / picture.relative.parent, picture.relative
    page = "" if picture.page is None else f"-page{picture.page:04d}"
    numbered = (f"{name.stem}{page}-{number}" for number in count(2))
    for text in chain((f"{name.stem}{page}", f"{name.name}{page}"), numbered):
        yield folder / text


def _files(stem: Path, kinds: _Kinds) -> list[Path]:
    return [stem.with_name(stem.name + ending) for ending in kinds.endings()]


def _refuse_overwriting(
    pictures: Sequence[_Picture], stems: Sequence[Path], kinds: _Kinds, *, overwrite: bool
) -> None:
    """Stop before the first picture rather than replace a file that can't be had again."""
    sources = {picture.path.resolve() for picture in pictures}
    for stem in stems:
        for file in _files(stem, kinds):
            if file.resolve() in sources:
                raise UsageError(f"{file} is one of the inputs; choose another folder with --out")
            if file.exists() and not overwrite:
                raise UsageError(
                    f"{file} exists; choose another folder with --out, or replace the files of "
                    "an earlier run with --overwrite"
                )


def _read_ahead(
    pictures: Sequence[_Picture],
) -> Iterator[Num[np.ndarray, "H W C"] | PictureError]:
    """Read pictures in order, the next ones while the model is busy with this one."""

    def read(picture: _Picture) -> Num[np.ndarray, "H W C"] | PictureError:
        try:
            return read_image(picture.path, page=picture.page)
        except PictureError as error:
            return error

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[Num[np.ndarray, "H W C"] | PictureError]] = []
        try:
            for index in range(len(pictures)):
                while len(waiting) < 2 and index + len(waiting) < len(pictures):
                    waiting.append(pool.submit(read, pictures[index + len(waiting)]))
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _answer(
    predictor: Predictor,
    picture: _Picture,
    image_HWC: Num[np.ndarray, "H W C"],
    stem: Path,
    kinds: _Kinds,
) -> Written:
    """Predict one picture and write what was asked for."""
    prediction = predictor.predict(image_HWC)
    mask_HW = prediction.mask
    mask_path, *others = _files(stem, kinds)
    write_mask(mask_path, mask_HW)
    waiting = iter(others)
    if kinds.overlay:
        write_rgb(next(waiting), draw_over(image_HWC, mask_HW))
    if kinds.cutout:
        write_rgba(next(waiting), cut_out(image_HWC, mask_HW))
    if kinds.probability:
        write_probability(next(waiting), prediction.probability_HW)
    return Written(
        source=picture.path,
        page=picture.page,
        mask=mask_path,
        others=tuple(others),
        foreground=float(mask_HW.mean()),
    )
