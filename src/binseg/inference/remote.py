"""Images at addresses (s3://, https:// and all that fsspec knows) are fetched, a few at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from binseg.errors import ImageError, MissingExtraError
from binseg.imageio import IMAGE_SUFFIXES
from binseg.imageio.decoding import one_line
from binseg.inference.predict_options import PredictOptions
from binseg.inference.sinks import Sink
from binseg.inference.sources import Failure, InputImage, Round, images_of_file
from binseg.parallel import map_ordered

FETCHED = 64  # Images that lie on this machine's disk at once


def is_remote(given: str) -> bool:
    """Tell an address from a path."""
    return "://" in given


@dataclass(frozen=True)
class RemoteSource:
    """Files, folders and globs on object stores and servers of files; nothing is written there."""

    inputs: Iterable[str]

    def rounds(self, sink: Sink, options: PredictOptions) -> Iterator[Round]:
        """Give the images in rounds, failures among them; MissingExtraError without the package."""
        del sink
        for given in self.inputs:
            system, files = _listed(given)
            if not files:
                yield Round(images=[], failures=[Failure.of(given, "there is no image at it")])
            order = iter(files)
            while some := list(islice(order, FETCHED)):
                with TemporaryDirectory(prefix="binseg-") as scratch:
                    whole = not options.is_per_page
                    fetch = _Fetch(system, Path(scratch), whole_stacks=whole)
                    found = list(map_ordered(fetch, some, num_threads=8, ahead=16))
                    failures = [one for one in found if isinstance(one, Failure)]
                    images = [image for one in found if isinstance(one, list) for image in one]
                    yield Round(images=images, failures=failures)


@dataclass(frozen=True, kw_only=True)
class _Fetched(InputImage):
    """An image that was fetched; errors name where it came from."""

    address: str

    @property
    def name(self) -> str:
        """The address."""
        return self.address


def _listed(given: str) -> tuple[Any, list[tuple[str, PurePosixPath]]]:
    """List the images that an address stands for, each with its path inside of it."""
    try:
        import fsspec

        system, path = fsspec.url_to_fs(given)
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError):
            raise ImageError(f"{given}: no such kind of address ({one_line(error)})") from None
        raise MissingExtraError("s3fs", extra="remote", purpose=f"reading {given}") from None
    plain = PurePosixPath(path.split("?")[0])
    try:
        if set("*?[") & set(path) and not path.startswith("http"):
            return system, [(one, PurePosixPath(PurePosixPath(one).name)) for one in
                            sorted(system.glob(path))]  # fmt: skip
        if plain.suffix.lower() in IMAGE_SUFFIXES:
            return system, [(path, PurePosixPath(plain.name))]
        found = sorted(system.find(path))
    except Exception as error:
        raise ImageError(f"{given}: can't be listed ({one_line(error)[:160]})") from error
    images = [one for one in found if PurePosixPath(one).suffix.lower() in IMAGE_SUFFIXES]
    base = path.rstrip("/") + "/"
    return system, [(one, PurePosixPath(one.removeprefix(base).lstrip("/"))) for one in images]


@dataclass(frozen=True)
class _Fetch:
    """Brings one file to a folder of this machine."""

    system: Any
    scratch: Path
    whole_stacks: bool

    def __call__(self, one: tuple[str, PurePosixPath]) -> list[InputImage] | Failure:
        path, relative = one
        address = self.system.unstrip_protocol(path)
        inside = [part for part in relative.parts if part not in {"..", "/"}]
        local = self.scratch.joinpath(*inside)
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            self.system.get_file(path, str(local))
            images = images_of_file(local, Path(*inside), whole_stacks=self.whole_stacks)
        except Exception as error:  # noqa: BLE001 - each kind of store has errors of its own
            text = one_line(error).replace(str(local), address)[:200]
            return Failure.of(address, f"can't be fetched ({text or type(error).__name__})")
        return [_Fetched(**vars(image), address=address) for image in images]
