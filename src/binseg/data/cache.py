"""Decoded, resized pixels on disk: a run decodes each picture once, however many epochs follow.

A cache holds what `preprocess.prepare` gives, as two uint8 `.npy` files that are mapped into
memory. Its folder's name is a hash of the pictures' and masks' bytes, of the mask rule and of the
preprocessing, so that a changed file or setting never meets old pixels. It is written as a stream
into a folder beside its final name and renamed when whole: a full disk is an error when it
happens, not a crash when a mapped page can't be written, and half a cache is never used.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from jaxtyping import Int, UInt8

from binseg import preprocess, storage
from binseg.data.eviction import cache_limit, evict, hold
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError, OutputError, PictureError
from binseg.progress import SILENT, Progress, track
from binseg.structures import Preprocessing, Record

__all__ = ["PixelCache", "open_cache"]

FORMAT_VERSION = 1
"""Raise it when what is stored changes, or how pictures are decoded or resized."""
MAX_NAMED = 10
"""How many unreadable records one message names."""
INPUTS, TARGETS, FACTS = "inputs.npy", "targets.npy", "facts.json"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class PixelCache:
    """Model inputs of a list of records, ready to be batched; N counts inputs, not records."""

    inputs_NHWC: UInt8[np.ndarray, "N H W C"]
    targets_NHW: UInt8[np.ndarray, "N H W"]
    """0 background, 1 foreground, 2 ignored (no truth, or padding)."""
    record_of_N: Int[np.ndarray, "N"]
    """The index of the record that each input shows; tiles of one picture share it."""

    def __post_init__(self) -> None:
        assert len(self.inputs_NHWC) == len(self.targets_NHW) == len(self.record_of_N)

    def __len__(self) -> int:
        return len(self.record_of_N)

    @property
    def num_bytes(self) -> int:
        """What inputs and targets take in memory when they are loaded whole."""
        return int(self.inputs_NHWC.nbytes + self.targets_NHW.nbytes)


def open_cache(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    *,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> PixelCache:
    """Give the pixels of these records, decoding them only if no cache of theirs is whole.

    Args:
        records: what to decode, in the order of the rows.
        rule: how the values of the masks are read.
        preprocessing: size, fit, channels and intensity; mean and std are applied later.
        progress: hears of the decoding, and of a broken cache that is built again.
        folder: where caches live; none means `pixels` in the user's cache folder.

    Raises:
        DataError: no records, or records that can't be read (up to ten are named).
        OutputError: the cache can't be written.
        UsageError: BINSEG_CACHE_GB is no number.
    """
    if not records:
        raise DataError(
            "no pictures to train or validate on: the split is empty; check its ratios or file"
        )
    limit = cache_limit()
    home = (storage.cache_dir() if folder is None else folder) / "pixels"
    place = home / _key(records, rule, preprocessing, progress)
    with storage.locked(place):
        cache = _open(place, records, rule, preprocessing, progress)
        hold(place, cache.inputs_NHWC)
    evict(home, limit=limit)
    return cache


def _open(
    place: Path,
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    progress: Progress,
) -> PixelCache:
    """Read the cache at `place`, built first where there is none or a broken one."""
    if place.exists():
        try:
            return _read(place, len(records))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            progress.say(f"the pixel cache {place} is broken ({problem}): building it again")
            shutil.rmtree(place, ignore_errors=True)
    _build(place, records, rule, preprocessing, progress)
    return _read(place, len(records))


def _num_threads() -> int:
    return min(8, (os.cpu_count() or 1) + 1)


def _key(
    records: Sequence[Record], rule: MaskRule, preprocessing: Preprocessing, progress: Progress
) -> str:
    """Hash everything that decides the stored bytes."""
    paths = sorted({p for r in records for p in (r.image_path, r.mask_path) if p is not None})
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
        "format": FORMAT_VERSION,
        "rule": dataclasses.asdict(rule),
        "preprocessing": {
            name: value
            for name, value in dataclasses.asdict(preprocessing).items()
            if name not in {"mean", "std"}  # applied to each batch, not stored
        },
        "records": [
            (
                hashes[r.image_path],
                None if r.mask_path is None else hashes[r.mask_path],
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
    preprocessing: Preprocessing,
    progress: Progress,
) -> None:
    """Decode all records into `place`, which appears only when it is whole."""
    temporary = place.with_suffix(".building")
    # Ours alone: the caller holds the lock, so one that is there was left by a killed run.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        failures = _write(temporary, records, rule, preprocessing, progress)
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


Rows = tuple[UInt8[np.ndarray, "n H W C"], UInt8[np.ndarray, "n H W"]]


def _write(
    folder: Path,
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    progress: Progress,
) -> list[str]:
    """Stream all rows into the folder's files; give one line for each unreadable record."""

    def decode(record: Record) -> Rows | str:
        try:
            sample = read_sample(record, rule)
            if sample.mask_HW is None:
                return f"{record.id}: it has no mask"
            inputs, placements = preprocess.prepare(
                sample.image_HWC, preprocessing, name=str(record.image_path)
            )
            return inputs, preprocess.prepare_truth(sample.mask_HW, sample.valid_HW, placements)
        except PictureError as problem:
            return str(problem)

    height, width, channels = preprocessing.height, preprocessing.width, preprocessing.channels
    failures: list[str] = []
    record_of: list[int] = []
    with (folder / INPUTS).open("wb") as inputs_file, (folder / TARGETS).open("wb") as targets_file:
        _write_header(inputs_file, (0, height, width, channels))
        _write_header(targets_file, (0, height, width))
        rows = _map_in_order(decode, records)
        labelled = track(rows, progress=progress, label="decoding pictures", total=len(records))
        for index, row in enumerate(labelled):
            if isinstance(row, str):
                failures.append(row)
            elif not failures:
                inputs_file.write(np.ascontiguousarray(row[0]).data)
                targets_file.write(np.ascontiguousarray(row[1]).data)
                record_of.extend([index] * len(row[0]))
        num = len(record_of)
        for file, shape in (
            (inputs_file, (num, height, width, channels)),
            (targets_file, (num, height, width)),
        ):
            file.seek(0)
            _write_header(file, shape)
            file.flush()
            os.fsync(file.fileno())
    storage.write_json(folder / FACTS, {"format": FORMAT_VERSION, "record_of": record_of})
    return failures


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write a .npy header; numpy leaves room for the first axis to grow, so it can be rewritten."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )


def _map_in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map on threads, in order, with few results waiting: a data set needn't fit in memory."""
    num_threads = _num_threads()
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


def _read(place: Path, num_records: int) -> PixelCache:
    """Map a cache's files; ValueError where they don't fit together."""
    facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
    record_of_N = np.asarray(facts["record_of"], dtype=np.int64)
    inputs = np.load(place / INPUTS, mmap_mode="r", allow_pickle=False)
    targets = np.load(place / TARGETS, mmap_mode="r", allow_pickle=False)
    for name, array in ((INPUTS, inputs), (TARGETS, targets)):
        path = place / name
        expected = array.offset + array.nbytes
        if array.dtype != np.uint8 or path.stat().st_size != expected:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {expected}")
    if not (0 < len(inputs) == len(targets) == len(record_of_N)):
        raise ValueError("its files differ in length")
    if inputs.shape[:3] != targets.shape or record_of_N[-1] != num_records - 1:
        raise ValueError("its files differ in shape")
    return PixelCache(inputs_NHWC=inputs, targets_NHW=targets, record_of_N=record_of_N)
