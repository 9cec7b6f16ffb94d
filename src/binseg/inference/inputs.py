"""Which images are meant, and what their answers are called."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from binseg.errors import ImageError, UsageError
from binseg.imageio import (
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    is_zarr,
    needs_windows,
    open_windows,
)
from binseg.inference.outputs import OutputKinds
from binseg.progress import Progress

__all__ = [
    "Failure",
    "InputImage",
    "failure_of",
    "find_files",
    "find_images",
    "name_answers",
    "refuse_overwriting",
]

ZARR_SUFFIX = ".zarr"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that gave no mask."""

    source: str
    reason: str
    """One line that names the input."""


@dataclass(frozen=True, kw_only=True)
class InputImage:
    """One image to predict: where it is, and where in the output folder it goes."""

    path: Path
    page: int | None
    relative: Path
    is_large: bool = False
    """Whether it is read in parts: a huge image, a whole stack, an OME-Zarr folder."""


def failure_of(source: str | Path, error: ImageError | str) -> Failure:
    """Name the input, unless the message does."""
    text = str(error)
    named = text if str(source) in text else f"{source}: {text}"
    return Failure(source=str(source), reason=named)


def find_images(
    inputs: Iterable[str | Path], out: Path, *, whole_stacks: bool = True
) -> tuple[list[InputImage], list[Failure]]:
    """List every image once; what names none is a failure.

    Args:
        inputs: files, folders and globs.
        out: answers in there are no images.
        whole_stacks: whether a multi-page file is one image, or each of its pages.
    """
    images: list[InputImage] = []
    failures: list[Failure] = []
    seen: set[tuple[Path, int | None]] = set()
    places = _Places()
    for given in inputs:
        found = list(_expand(str(given), out))
        if not found:
            failures.append(failure_of(given, "there is no such image, or none in it"))
        for path, relative in found:
            try:
                of_file = _images_of(path, relative, whole_stacks=whole_stacks)
            except ImageError as error:
                failures.append(failure_of(path, error))
                continue
            place = places.real(path)
            for image in of_file:
                if (place, image.page) not in seen:
                    seen.add((place, image.page))
                    images.append(image)
    return images, failures


def _expand(given: str, out: Path) -> Iterator[tuple[Path, Path]]:
    """Give the files that an input stands for, each with its path inside that input."""
    path = Path(given)
    if path.is_dir() and (path.suffix.lower() == ZARR_SUFFIX or is_zarr(path)):
        yield path, Path(path.name)
    elif path.is_dir():
        yield from _in_folder(path, out)
    elif path.exists():
        yield path, Path(path.name)
    else:
        for match in sorted(glob.glob(given, recursive=True)):  # noqa: PTH207 - absolute globs too
            if Path(match).is_dir():
                yield from _in_folder(Path(match), out)
            else:
                yield Path(match), Path(Path(match).name)


def find_files(folder: Path, out: Path) -> Iterator[Path]:
    """Give the images of a folder and those in it, without hidden ones and answers in `out`."""
    return (path for path, _ in _in_folder(folder, out) if path.suffix.lower() != ZARR_SUFFIX)


def _in_folder(folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Give the images of a folder, without hidden ones and without answers of an earlier run."""
    home, answers, places = folder.resolve(), out.resolve(), _Places()
    apart = answers != home and answers.is_relative_to(home)
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        zarrs = [name for name in folders if name.lower().endswith(ZARR_SUFFIX)]
        folders[:] = [name for name in folders if name not in zarrs and not name.startswith(".")]
        images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        found += [Path(parent, name) for name in (*zarrs, *images) if not name.startswith(".")]
    for path in sorted(found):
        if not (apart and places.real(path).is_relative_to(answers)):
            yield path, path.relative_to(folder)


class _Places:
    """Where files really are; of many in a folder, the folder's own way is followed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}

    def real(self, path: Path) -> Path:
        """As `path.resolve()`, which asks the disk for each part of each path."""
        if path.name in {"", ".."} or path.is_symlink():
            return Path(os.path.realpath(path))  # `resolve` fails at a link to itself
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = folder.resolve()
        return self._folders[folder] / path.name


def _images_of(path: Path, relative: Path, *, whole_stacks: bool) -> list[InputImage]:
    """A file's images; only TIFF and OME-Zarr hold several, or ones to be read in parts."""
    if path.suffix.lower() not in TIFF_SUFFIXES and not path.is_dir():
        return [InputImage(path=path, page=None, relative=relative)]
    if not needs_windows(path):
        return [InputImage(path=path, page=None, relative=relative)]
    if path.is_dir():
        num_pages = 1
    else:
        with open_windows(path) as windows:
            num_pages = windows.num_pages
    if whole_stacks or num_pages == 1:
        return [InputImage(path=path, page=None, relative=relative, is_large=True)]
    return [InputImage(path=path, page=page, relative=relative) for page in range(num_pages)]


def name_answers(
    images: Sequence[InputImage],
    out: Path,
    kinds: OutputKinds,
    progress: Progress,
    *,
    owners: dict[Path, Path] | None = None,
) -> list[Path]:
    """Give each image a stem of its own; `a.jpg` and `a.png` must not share a mask.

    Args:
        images: to be named.
        out: folder of the answers.
        kinds: which files each gets.
        progress: hears of names that are not the plain ones.
        owners: the image behind each answer of earlier rounds; those of this one are added.
    """
    owned = {} if owners is None else owners
    taken: set[Path] = set()
    stems = []

    def is_free(stem: Path, path: Path) -> bool:
        files = kinds.files(stem)
        return taken.isdisjoint(files) and all(owned.get(one, path) == path for one in files)

    for image in images:
        names = _candidates(image, out)
        stem = first = next(names)
        while not is_free(stem, image.path):
            stem = next(names)
        if stem != first:
            progress.say(
                f"{image.path}: written as {stem.name}.{kinds.mask}, since another has its name"
            )
        taken.update(kinds.files(stem))
        owned.update(dict.fromkeys(kinds.files(stem), image.path))
        stems.append(stem)
    return stems


def _candidates(image: InputImage, out: Path) -> Iterator[Path]:
    """Give names from the plainest on; the list has no end."""
    folder, name = out / image.relative.parent, image.relative
    page = "" if image.page is None else f"-page{image.page:04d}"
    numbered = (f"{name.stem}{page}-{number}" for number in count(2))
    for text in chain((f"{name.stem}{page}", f"{name.name}{page}"), numbered):
        yield folder / text


def refuse_overwriting(sources: Iterable[Path], files: Iterable[Path], *, allowed: bool) -> None:
    """Stop before the first input rather than replace a file that can't be had again.

    Args:
        sources: the inputs.
        files: the answers.
        allowed: whether answers of an earlier run may be replaced or kept.

    Raises:
        UsageError: an answer would replace an input, or (unless allowed) another file.
    """
    places = _Places()
    real = {places.real(source) for source in sources}
    for file in files:
        if places.real(file) in real:
            raise UsageError(f"{file} is one of the inputs; choose another folder with --out")
        if file.exists() and not allowed:
            raise UsageError(
                f"{file} exists; choose another folder with --out, replace the files of an "
                "earlier run with --overwrite, or go on with a stopped one with --resume"
            )
