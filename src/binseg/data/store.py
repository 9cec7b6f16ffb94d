"""Decoded pixels on disk: a run decodes each image once, however many epochs follow.

A store is a folder of uint8 `.npy` files that are mapped into memory; its `Layout` says what is in
them (`cache`: inputs of one size, `images`: whole images). The folder's name is a hash of the
images' and masks' bytes, of the mask rule, of the preprocessing and of the layout, so that a
changed file or setting never meets old pixels. It is written as a stream into a folder beside its
final name and renamed when whole: a full disk is an error when it happens, not a crash when a
mapped page can't be written, and half a store is never used.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Num

from binseg import storage
from binseg.data.dataset import spread
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError, ImageError, OutputError, UsageError
from binseg.imageio import probe
from binseg.parallel import map_ordered, num_cores
from binseg.progress import SILENT, Progress, track
from binseg.storage import locked
from binseg.types import Preprocessing, Record

MAX_NAMED = 10
"""Unreadable records that one message names."""
PROBED = 50
"""Images whose headers tell how large they are."""
DECODED_PIXELS = 100_000_000
"""Pixels of all images that are decoded at one moment."""
INPUTS, TARGETS, FACTS = "inputs.npy", "targets.npy", "facts.json"


class Stored(Protocol):
    """Result of a layout, which rests on a mapped array."""

    @property
    def mapped(self) -> np.ndarray:
        """The array whose life is the store's use."""


S = TypeVar("S", bound=Stored)
S_co = TypeVar("S_co", bound=Stored, covariant=True)
D = TypeVar("D")


class Layout(Protocol[S_co, D]):
    """Contents of one kind of store."""

    @property
    def version(self) -> int | str:
        """Goes into the folder's name; change it when what is stored changes."""

    def decode(
        self,
        image_HWC: Num[np.ndarray, "H W C"],
        mask_HW: Bool[np.ndarray, "H W"],
        valid_HW: Bool[np.ndarray, "H W"],
        *,
        index: int,
        name: str,
    ) -> D:
        """Make what is stored of one record; runs on several threads."""

    def write(self, folder: Path, decoded: Iterable[tuple[int, D]]) -> None:
        """Write all records, given in their order with their index, into an empty folder."""

    def read(self, folder: Path, num_records: int) -> S_co:
        """Map a folder; ValueError, KeyError or TypeError where its files don't fit together."""


def open_store(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    layout: Layout[S, D],
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> S:
    """Give the pixels of these records, decoding them only if no store of theirs is whole.

    Args:
        records: what to decode, in order.
        rule: how the values of the masks are read.
        preprocessing: what the pixels are made by; mean and std are applied later.
        layout: what is stored.
        progress: hears of the decoding, and of a broken store that is built again.
        folder: where caches live; none means `pixels` in the user's cache folder.

    Raises:
        DataError: no records, or records that can't be read (up to ten are named).
        OutputError: the store can't be written.
        UsageError: BINSEG_CACHE_GB is no number.
    """
    if not records:
        raise DataError(
            "no images to train or validate on: the split is empty; check its ratios or file"
        )
    limit = cache_limit()
    home = (storage.cache_dir() if folder is None else folder) / "pixels"
    place = home / _key(records, rule, preprocessing, layout.version, progress)
    with storage.locked(place):
        stored = _open(place, records, rule, layout, progress)
        hold(place, stored.mapped)
    evict(home, limit=limit)
    return stored


def _open(
    place: Path,
    records: Sequence[Record],
    rule: MaskRule,
    layout: Layout[S, D],
    progress: Progress,
) -> S:
    """Read the store at `place`, built first where there is none or a broken one."""
    if place.exists():
        try:
            return layout.read(place, len(records))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            progress.say(f"the pixel cache {place} is broken ({problem}): building it again")
            shutil.rmtree(place, ignore_errors=True)
    _build(place, records, rule, layout, progress)
    return layout.read(place, len(records))


def _key(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    version: int | str,
    progress: Progress,
) -> str:
    """Hash everything that decides the stored bytes."""
    paths = sorted({path for record in records for path in record.paths})
    hashed = map_ordered(_hash_file, paths)
    watched = track(hashed, progress=progress, label="looking at files", total=len(paths))
    hashes = dict(zip(paths, watched, strict=True))
    facts = {
        "format": version,
        "rule": dataclasses.asdict(rule),
        "preprocessing": {
            name: value
            for name, value in dataclasses.asdict(preprocessing).items()
            if name not in {"mean", "std"}  # applied to each batch, not stored
        },
        "records": [
            (
                [hashes[path] for path in (r.image_path, *r.further_images)],
                [hashes[path] for path in r.mask_paths],
                r.page,
                None if r.shapes is None else [dataclasses.asdict(s) for s in r.shapes],
            )
            for r in records
        ],
    }
    text = json.dumps(facts, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """Encode what JSON doesn't know: sets, in an order that doesn't change."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def _hash_file(path: Path) -> str:
    """The hash of a file's bytes, or of its absence: decoding names what can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as problem:
        return f"unreadable: {problem.errno}"


def _build(
    place: Path,
    records: Sequence[Record],
    rule: MaskRule,
    layout: Layout[S, D],
    progress: Progress,
) -> None:
    """Decode all records into `place`, which appears only when it is whole."""
    temporary = place.with_suffix(".building")
    # Ours alone: the caller holds the lock, so one that is there was left by a killed run.
    shutil.rmtree(temporary, ignore_errors=True)
    failures: list[str] = []
    try:
        temporary.mkdir()
        layout.write(temporary, _decoded(records, rule, layout, failures, progress))
        if not failures:
            temporary.rename(place)
            return
    except OSError as problem:
        raise OutputError(
            f"can't write the pixel cache in {place.parent}: {problem.strerror or problem}; "
            "free some space or set BINSEG_CACHE to a folder elsewhere"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    named = "; ".join(failures[:MAX_NAMED])
    more = f"; and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
    raise DataError(
        f"{len(failures)} of {len(records)} records can't be read; remove or repair them: "
        f"{named}{more}"
    )


def _decoded(
    records: Sequence[Record],
    rule: MaskRule,
    layout: Layout[S, D],
    failures: list[str],
    progress: Progress,
) -> Iterator[tuple[int, D]]:
    """Decode in order, until the first failure; the rest is then only read for more failures."""

    def decode(numbered: tuple[int, Record]) -> tuple[int, D | None, str]:
        index, record = numbered
        name = str(record.image_path)
        try:
            sample = read_sample(record, rule)
            if sample.mask_HW is None:
                return index, None, f"{record.id}: it has no mask"
            pixels = layout.decode(
                sample.image_HWC, sample.mask_HW, sample.valid_HW, index=index, name=name
            )
        except ImageError as problem:
            return index, None, str(problem)
        return index, pixels, ""

    rows = map_ordered(decode, enumerate(records), num_threads=_num_decoders(records))
    labelled = track(rows, progress=progress, label="decoding images", total=len(records))
    for index, pixels, failure in labelled:
        if pixels is None:
            failures.append(failure)
        elif not failures:
            yield index, pixels


def _num_decoders(records: Sequence[Record]) -> int:
    """Threads for images of this size: a few huge ones at a time would fill the memory."""
    most = 1
    for record in spread(records, PROBED):
        with contextlib.suppress(ImageError):  # decoding will name it
            info = probe(record.image_path)
            most = max(most, info.height * info.width)
    return max(1, min(num_cores(), DECODED_PIXELS // most))


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a uint8 `.npy` file at its start.

    numpy leaves room for the first axis to grow, so that it can be rewritten when the length is
    known; the file is then brought to the disk by whoever closes it.
    """
    file.seek(0)
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )


def map_pixels(path: Path) -> np.ndarray:
    """Map a uint8 `.npy` file; ValueError where it isn't whole."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    assert isinstance(array, np.memmap)
    expected = array.offset + array.nbytes
    if array.dtype != np.uint8 or path.stat().st_size != expected:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {expected}")
    return array


DEFAULT_GB = 20.0
"""Gigabytes where BINSEG_CACHE_GB says nothing."""


def hold(place: Path, owner: object) -> None:
    """Mark a cache as used now, and as in use for as long as `owner` lives.

    Args:
        place: the cache's folder.
        owner: the array that maps it.
    """
    with contextlib.suppress(OSError):  # a cache that is read only can be used all the same
        os.utime(place)
    # Elsewhere (Windows), files that are mapped can't be moved away, which protects them as well.
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(place, os.O_RDONLY)
        weakref.finalize(owner, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


def evict(home: Path, *, limit: float) -> None:
    """Remove the caches unused for longest, until the rest fits.

    Args:
        home: the folder that all caches are in.
        limit: bytes that they may take.
    """
    sizes: dict[Path, tuple[float, int]] = {}
    for place in home.iterdir():
        with contextlib.suppress(OSError):  # another process has just removed it
            if place.is_dir() and not place.suffix:
                num_bytes = sum(path.stat().st_size for path in place.iterdir())
                sizes[place] = (place.stat().st_mtime, num_bytes)
    total = sum(num_bytes for _, num_bytes in sizes.values())
    for place in sorted(sizes, key=lambda place: sizes[place][0]):
        if total <= limit:
            return
        # The lock is held while a cache is opened or built, the other while it is read.
        with contextlib.suppress(OutputError, OSError), locked(place, timeout=0.0):
            if not _is_in_use(place):
                # Renamed first, so that nobody ever finds half a cache under its name.
                gone = place.with_suffix(".evicted")
                shutil.rmtree(gone, ignore_errors=True)
                place.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
                total -= sizes[place][1]


def cache_limit() -> float:
    """Give the bytes that all caches may take: $BINSEG_CACHE_GB gigabytes, else 20.

    Raises:
        UsageError: it is no number.
    """
    text = os.environ.get("BINSEG_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else DEFAULT_GB
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise UsageError(f"BINSEG_CACHE_GB is {text!r}; give a number of gigabytes, such as 20")
    return gigabytes * 1e9


def _is_in_use(place: Path) -> bool:
    """Tell whether a process, this one or another, has the cache mapped."""
    try:
        import fcntl
    except ImportError:
        return False
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
