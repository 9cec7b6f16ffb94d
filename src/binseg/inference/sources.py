"""Images to predict come from files, folders, globs, a folder that fills, addresses or memory."""

import glob
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol

from binseg.errors import BinsegError, ImageError, MissingExtraError, UsageError
from binseg.imageio import (
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    Windows,
    caged_windows,
    is_zarr,
    kind_of,
    needs_windows,
    read_reduced,
)
from binseg.imageio.decoding import Valid, one_line
from binseg.imageio.windows import holds_tiff
from binseg.inference.predict_options import Pixels, PredictOptions
from binseg.inference.video import is_video
from binseg.parallel import map_ordered
from binseg.transforms.preprocess import reduction
from binseg.types import Preprocessing

if TYPE_CHECKING:
    from binseg.inference.sinks import Sink

_ZARR_SUFFIX = ".zarr"
_OF_SYSTEMS = {"Thumbs.db", "desktop.ini"}  # Files that systems put into folders of images
_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"}
"""Most are TIFF by their first bytes, with a small preview that isn't the image."""
AT_ONCE = 10_000  # Images of a folder that are begun with before the rest is looked at
FETCHED = 64  # Images that lie on this machine's disk at once
_Stamp = tuple[int, int]  # Size and time of change (ns) of a file


@dataclass(frozen=True, kw_only=True)
class InputImage:
    """One input: where it is, and where below the outputs' folder its own go."""

    path: Path
    page: int | None = None
    relative: Path
    kind: Literal["image", "large", "video"] = "image"  # large: read in parts
    data: bytes | None = None  # The file's bytes, where they are in memory
    title: str = ""  # The name of the image in outputs, if not its file's
    stem: str = ""  # Of its outputs without endings, where all shards settled it

    @property
    def name(self) -> str:
        """The name of the image in errors."""
        return str(self.path) if self.data is None else self.title

    def reduced(self, shape: Preprocessing | None) -> tuple[Pixels, Valid, tuple[int, int]]:
        """Decode it, perhaps reduced for a model, and tell its own size; raises ImageError."""
        way = partial(reduction, preprocessing=shape)
        source = self.path if self.data is None else self.data
        return read_reduced(source, way, name=self.name, page=self.page)

    def failed(self, error: BinsegError) -> "Failure":
        """Say why it gave no mask, under the name by which it was asked for."""
        text = str(error)
        return Failure.of(self.name, text if self.data else text.replace(str(self.path), self.name))

    def windows(self, path: Path) -> AbstractContextManager[Windows]:
        """Open a large image, to read parts of it in another process; raises as `caged_windows`."""
        return caged_windows(path)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that gave no mask."""

    source: str
    reason: str  # One line that names the input

    @classmethod
    def of(cls, source: str | Path, error: BinsegError | str) -> "Failure":
        """Name the input, unless the message does."""
        text = str(error)
        named = text if str(source) in text else f"{source}: {text}"
        return cls(source=str(source), reason=named)


@dataclass(frozen=True, kw_only=True)
class Round:
    """Images that are to be predicted now."""

    images: Sequence[InputImage]
    failures: Sequence[Failure] = ()
    left_out: Sequence[Path] = ()  # Files of a folder that are text, and so no images
    num_before: int = 0  # Images of the same folder in earlier rounds


class Source(Protocol):
    """Images to predict, all at once or in rounds as they come."""

    def rounds(self, sink: "Sink", options: PredictOptions) -> Iterator[Round]:
        """Give the images; files that lie in the sink are none."""


@dataclass(frozen=True)
class ListedSource:
    """Images that are known one by one."""

    images: Sequence[InputImage]

    def rounds(self, sink: "Sink", options: PredictOptions) -> Iterator[Round]:
        """Give them in one round."""
        yield Round(images=self.images)


@dataclass(frozen=True)
class FileSource:
    """Files, folders (with the folders in them, whose structure is kept) and globs."""

    inputs: Iterable[str | Path]

    def rounds(self, sink: "Sink", options: PredictOptions) -> Iterator[Round]:
        """Give all images; those of a large folder in rounds, where no file can be in the way.

        An input that names no image is a failure.
        """
        inputs, texts, failures = [*self.inputs], list[Path](), list[Failure]()
        is_apart = len(inputs) == 1 and not Path(inputs[0]).resolve().is_relative_to(
            sink.out.resolve()
        )
        num_at_once = AT_ONCE if is_apart and sink.is_free else None
        listing, num = _Listing(whole_stacks=not options.is_per_page), 0
        found = _found(inputs, sink.out, texts, failures)
        while (some := [*islice(found, num_at_once)]) or texts or failures:
            images, unreadable = listing.images(some)
            bad = [*failures, *unreadable]
            yield Round(images=images, failures=bad, left_out=[*texts], num_before=num)
            num += len(images)
            texts.clear()
            failures.clear()


@dataclass(frozen=True, kw_only=True)
class WatchSource:
    """A folder whose new or changed images are taken once they look the same twice."""

    folder: Path
    seconds: float = 1.0  # Time between two looks
    stop: Callable[[], bool] = lambda: False  # Is asked after each look

    def rounds(self, sink: "Sink", options: PredictOptions) -> Iterator[Round]:
        """Give a round whenever images came; UsageError: no folder, or that of the masks."""
        home, out = self.folder, sink.out
        if not home.is_dir():
            raise UsageError(f"{home} is no folder; --watch takes the folder that images come into")
        if out.resolve() == home.resolve():
            raise UsageError(
                f"{home} can't hold the masks of the images that come into it, which would be "
                "taken for images; choose another folder with --out"
            )
        whole = not options.is_per_page
        before: dict[Path, _Stamp] = {}
        told: set[Path] = set()
        done: dict[Path, _Stamp] = {}
        while True:
            texts: list[Path] = []
            now = dict(_stamped(home, out, texts))
            left_out = [one for one in texts if one not in told]
            told.update(left_out)
            ready = [one for one, stamp in now.items() if before.get(one) == stamp != done.get(one)]
            if ready or left_out:
                found = [(path, path.relative_to(home)) for path in ready]
                images, failures = _Listing(whole_stacks=whole).images(found)
                yield Round(images=images, failures=failures, left_out=left_out)
            done.update({path: now[path] for path in ready})
            before = now
            if self.stop():
                return
            time.sleep(self.seconds)


def _found(
    inputs: Sequence[str | Path], out: Path, texts: list[Path], failures: list[Failure]
) -> Iterator[tuple[Path, Path]]:
    """Give the files of inputs, each with its path inside its input; fill the lists meanwhile."""
    for given in inputs:
        of_input = _expand(str(given), out, texts)
        first = next(of_input, None)
        if first is None:
            failures.append(Failure.of(given, "there is no such image, or none in it"))
        else:
            yield first
            yield from of_input


class Places:
    """The real places of files, links followed; each folder is asked for once."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}

    def real(self, path: Path) -> Path:
        """Do as `path.resolve()`, which asks the disk for each part of each path."""
        if path.name in {"", ".."} or path.is_symlink():
            return Path(os.path.realpath(path))  # `resolve` fails at a link to itself
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = folder.resolve()
        return self._folders[folder] / path.name


class _Listing:
    """Files become images, each once, by what their headers say."""

    def __init__(self, *, whole_stacks: bool) -> None:
        self._whole_stacks = whole_stacks
        self._seen: set[tuple[str, int | None]] = set()
        self._places = Places()

    def images(self, found: Iterable[tuple[Path, Path]]) -> tuple[list[InputImage], list[Failure]]:
        """Give the images of these files that are new, and the files that can't be read."""
        images, failures = list[InputImage](), list[Failure]()
        for path, relative in found:
            try:
                of_file = images_of_file(path, relative, whole_stacks=self._whole_stacks)
            except ImageError as error:
                failures.append(Failure.of(path, error))
                continue
            place = str(self._places.real(path))
            for image in of_file:
                if (place, image.page) not in self._seen:
                    self._seen.add((place, image.page))
                    images.append(image)
        return images, failures


def _expand(given: str, out: Path, texts: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Give the files that an input stands for, each with its path inside that input."""
    path = Path(given)
    # glob takes absolute patterns too, which `Path.glob` doesn't
    matches = [path] if path.exists() else map(Path, sorted(glob.glob(given, recursive=True)))  # noqa: PTH207
    for match in matches:
        whole = match == path and (path.suffix.lower() == _ZARR_SUFFIX or is_zarr(path))
        if match.is_dir() and not whole:
            yield from _in_folder(match, out, texts)
        else:
            yield match, Path(match.name)


def _in_folder(folder: Path, out: Path, texts: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Give a folder's images, text into `texts`; what is neither fails when it is read."""
    home, answers, places = folder.resolve(), out.resolve(), Places()
    apart = not home.is_relative_to(answers)
    found: list[str] = []  # a path takes five times the memory of its text
    for parent, folders, names in os.walk(folder):
        zarrs = [name for name in folders if name.lower().endswith(_ZARR_SUFFIX)]
        folders[:] = [name for name in folders if name not in zarrs and not name.startswith(".")]
        shown = (one for one in names if not one.startswith(".") and one not in _OF_SYSTEMS)
        inside = os.path.relpath(parent, folder).removeprefix(os.curdir)
        found += [os.path.join(inside, name) for name in (*zarrs, *shown)]  # noqa: PTH118
    found.sort(key=lambda one: one.replace(os.sep, "\0"))  # as paths are: folder by folder
    for text in found:
        path, relative = Path(folder, text), Path(text)
        if apart and places.real(path).is_relative_to(answers):
            continue
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES or suffix == _ZARR_SUFFIX or kind_of(path) != "text":
            yield path, relative
        else:
            texts.append(path)


def images_of_file(path: Path, relative: Path, *, whole_stacks: bool) -> list[InputImage]:
    """List a file's images; only TIFF and OME-Zarr hold several, or ones to be read in parts."""
    suffix = path.suffix.lower()
    if is_video(path):
        return [InputImage(path=path, relative=relative, kind="video")]
    if suffix in _RAW:
        raise ImageError(f"{path}: a camera's raw file; develop it to JPEG, PNG or TIFF first")
    may_be_large = suffix in TIFF_SUFFIXES or path.is_dir()
    if not may_be_large and suffix not in IMAGE_SUFFIXES and path.is_file():
        may_be_large = holds_tiff(path)  # .lsm, .btf, .ndpi and more
    if not may_be_large or not needs_windows(path):
        return [InputImage(path=path, relative=relative)]
    num_pages = 1
    if not path.is_dir():
        with caged_windows(path) as windows:
            num_pages = windows.num_pages
    if whole_stacks or num_pages == 1:
        return [InputImage(path=path, relative=relative, kind="large")]
    return [InputImage(path=path, page=page, relative=relative) for page in range(num_pages)]


def _stamped(home: Path, out: Path, texts: list[Path]) -> Iterator[tuple[Path, _Stamp]]:
    """Give the images of a watched folder with their stamps; OME-Zarr folders are left out."""
    for path, _ in _in_folder(home, out, texts):
        if path.suffix.lower() == _ZARR_SUFFIX:
            continue
        try:
            facts = path.stat()
        except OSError:  # gone between the listing and now
            continue
        yield path, (facts.st_size, facts.st_mtime_ns)


def is_remote(given: str) -> bool:
    """Tell an address from a path."""
    return "://" in given


@dataclass(frozen=True)
class RemoteSource:
    """Files, folders and globs on object stores and servers of files; nothing is written there."""

    inputs: Iterable[str]

    def rounds(self, sink: "Sink", options: PredictOptions) -> Iterator[Round]:
        """Give the images in rounds, failures among them; MissingExtraError without the package."""
        for given in self.inputs:
            system, files = _at_address(given)
            if not files:
                yield Round(images=[], failures=[Failure.of(given, "there is no image at it")])
            order, whole = iter(files), not options.is_per_page
            while some := list(islice(order, FETCHED)):
                with TemporaryDirectory(prefix="binseg-") as scratch:
                    fetch = partial(_fetch, system, Path(scratch), whole_stacks=whole)
                    found = list(map_ordered(fetch, some, num_threads=8, ahead=16))
                    failures = [one for one in found if isinstance(one, Failure)]
                    images = [image for one in found if isinstance(one, list) for image in one]
                    yield Round(images=images, failures=failures)


@dataclass(frozen=True, kw_only=True)
class _Fetched(InputImage):
    address: str  # Named by errors

    @property
    def name(self) -> str:
        return self.address


def _at_address(given: str) -> tuple[Any, list[tuple[str, PurePosixPath]]]:
    """List the images that an address stands for, each with its path inside of it."""
    try:
        import fsspec

        system, path = fsspec.url_to_fs(given)
    except ValueError as error:
        raise ImageError(f"{given}: no such kind of address ({one_line(error)})") from None
    except ImportError:
        raise MissingExtraError("s3fs", extra="remote", purpose=f"reading {given}") from None
    plain = PurePosixPath(path.split("?")[0])
    try:
        if set("*?[") & set(path) and not path.startswith("http"):
            names = map(PurePosixPath, sorted(system.glob(path)))
            return system, [(str(one), PurePosixPath(one.name)) for one in names]
        if plain.suffix.lower() in IMAGE_SUFFIXES:
            return system, [(path, PurePosixPath(plain.name))]
        found = sorted(system.find(path))
    except Exception as error:
        raise ImageError(f"{given}: can't be listed ({one_line(error)[:160]})") from error
    images = [one for one in found if PurePosixPath(one).suffix.lower() in IMAGE_SUFFIXES]
    base = path.rstrip("/") + "/"
    return system, [(one, PurePosixPath(one.removeprefix(base).lstrip("/"))) for one in images]


def _fetch(
    system: Any, scratch: Path, one: tuple[str, PurePosixPath], *, whole_stacks: bool
) -> list[InputImage] | Failure:
    path, relative = one
    address = system.unstrip_protocol(path)
    inside = [part for part in relative.parts if part not in {"..", "/"}]
    local = scratch.joinpath(*inside)
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(path, str(local))
        images = images_of_file(local, Path(*inside), whole_stacks=whole_stacks)
    except Exception as error:  # noqa: BLE001 - each kind of store has errors of its own
        text = one_line(error).replace(str(local), address)[:200]
        return Failure.of(address, f"can't be fetched ({text or type(error).__name__})")
    return [_Fetched(**vars(image), address=address) for image in images]
