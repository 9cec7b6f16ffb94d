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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Num

from binseg import storage
from binseg.data.dataset import spread
from binseg.data.eviction import cache_limit, evict, hold
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError, ImageError, OutputError
from binseg.imageio import probe
from binseg.progress import SILENT, Progress, track
from binseg.types import Preprocessing, Record

__all__ = ["FACTS", "INPUTS", "TARGETS", "Layout", "map_pixels", "open_store", "write_header"]

MAX_NAMED = 10
"""How many unreadable records one message names."""
PROBED = 50
"""Images whose headers tell how large they are."""
DECODED_PIXELS = 100_000_000
"""Of all images that are decoded at one moment."""
INPUTS, TARGETS, FACTS = "inputs.npy", "targets.npy", "facts.json"

T = TypeVar("T")
R = TypeVar("R")


class Stored(Protocol):
    """What a layout reads: something that rests on a mapped array."""

    @property
    def mapped(self) -> np.ndarray:
        """The array whose life is the store's use."""


S = TypeVar("S", bound=Stored)
S_co = TypeVar("S_co", bound=Stored, covariant=True)
D = TypeVar("D")


class Layout(Protocol[S_co, D]):
    """What one kind of store holds."""

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


def _num_threads() -> int:
    return min(8, (os.cpu_count() or 1) + 1)


def _key(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    version: int | str,
    progress: Progress,
) -> str:
    """Hash everything that decides the stored bytes."""
    paths = sorted({path for record in records for path in record.paths})
    with ThreadPoolExecutor(_num_threads()) as pool:
        hashes = dict(
            zip(
                paths,
                track(
                    pool.map(_hash_file, paths),
                    progress=progress,
                    label="looking at files",
                    total=len(paths),
                ),
                strict=True,
            )
        )
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
                hashes[r.image_path],
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
    """What JSON doesn't know: sets, in an order that doesn't change."""
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
        f"{len(failures)} of {len(records)} records can't be read; remove them or mend them: "
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

    rows = _map_in_order(decode, enumerate(records), num_threads=_num_decoders(records))
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
    return max(1, min(_num_threads(), DECODED_PIXELS // most))


def _map_in_order(
    function: Callable[[T], R], items: Iterable[T], *, num_threads: int
) -> Iterator[R]:
    """Map on threads, in order, with few results waiting: a data set needn't fit in memory."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


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
