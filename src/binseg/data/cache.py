"""Decoded pixels on disk: a run decodes each image once, however many epochs follow.

A store is a folder of `.npy` files that are mapped into memory; each holds one array of all
records, one behind the other. The folder's name is a hash of the images' and masks' bytes, of the
mask rule, of the preprocessing and of the version, so that a changed file or setting never meets
old pixels. It is written as a stream into a folder beside its final name and renamed when whole: a
full disk is an error when it happens, and half a store is never used.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypedDict, Unpack

import numpy as np
from jaxtyping import Int, Int64, UInt, UInt8

from binseg import storage
from binseg.data.dataset import hash_files, spread
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError, ImageError, OutputError, UsageError
from binseg.imageio import probe
from binseg.parallel import map_ordered, num_cores
from binseg.progress import SILENT, Progress, track
from binseg.transforms import preprocess
from binseg.types import Preprocessing, Record, Sample

MAX_NAMED, PROBED = 10, 50
"""Unreadable records that one message names, and images whose headers tell how large they are."""
DECODED_PIXELS = 100_000_000  # pixels of all images that are decoded at one moment
DEFAULT_GB = 20.0  # gigabytes of all stores together, where BINSEG_CACHE_GB says nothing
FACTS = "facts.json"

Arrays = Mapping[str, np.ndarray]
Read = Callable[[Record], Sample]
Decode = Callable[[Sample, int, str], Arrays]
"""Makes what is stored of a sample, its index and its file's name; runs on several threads. An
array of one record may be longer than another's, along the first axis only. The store is in use for
as long as the mapped `inputs`, which must be among them, live."""


class Stack(NamedTuple):
    """One array of all records, mapped, and the length of each one's part along the first axis."""

    values: np.ndarray
    counts_N: Int64[np.ndarray, "N"]


def open_store(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    decode: Decode,
    *,
    version: str,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> Mapping[str, Stack]:
    """Give the pixels of these records, decoding them only if no store of theirs is whole.

    `version` changes with `decode`; `folder` is where caches live, the user's if left out. Raises
    DataError (no records, or unread ones), OutputError, UsageError (BINSEG_CACHE_GB).
    """
    if not records:
        told = "no images to train or validate on: the split is empty"
        raise DataError(f"{told}; check its ratios or file")
    limit = _limit()
    home = (storage.cache_dir() if folder is None else folder) / "pixels"
    place = home / _key(records, rule, preprocessing, version, progress)
    with storage.locked(place):
        stored = None
        if place.exists():
            try:
                stored = _read(place, len(records))
            except (OSError, ValueError) as problem:
                progress.say(f"the pixel cache {place} is broken ({problem}): building it again")
                shutil.rmtree(place, ignore_errors=True)
        if stored is None:
            read = partial(read_sample, rule=rule, shape=preprocessing)
            _build(place, records, read, decode, progress)
            stored = _read(place, len(records))
        _hold(place, stored["inputs"].values)
    _evict(home, limit=limit)
    return stored


def _limit() -> float:
    """Give the bytes that all stores may take: $BINSEG_CACHE_GB gigabytes, else 20."""
    text = os.environ.get("BINSEG_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else DEFAULT_GB
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise UsageError(f"BINSEG_CACHE_GB is {text!r}; give a number of gigabytes, such as 20")
    return gigabytes * 1e9


def _key(
    records: Sequence[Record],
    rule: MaskRule,
    preprocessing: Preprocessing,
    version: str,
    progress: Progress,
) -> str:
    """Hash everything that decides the stored bytes."""
    # Files that can't be read are named by the decoding, all at once.
    paths = [path for record in records for path in record.paths if os.access(path, os.R_OK)]
    hashes = hash_files(paths, progress)
    facts = {
        "format": version,
        "rule": dataclasses.asdict(rule),
        # Mean and std are applied to each batch, not stored.
        "preprocessing": dataclasses.asdict(dataclasses.replace(preprocessing, mean=(), std=())),
        "records": [
            (
                [hashes.get(path) for path in (r.image_path, *r.further_images)],
                [hashes.get(path) for path in r.mask_paths],
                *(r.page, r.nodata, r.mask_as_stored),
                None if r.shapes is None else [dataclasses.asdict(s) for s in r.shapes],
            )
            for r in records
        ],
    }
    text = json.dumps(facts, sort_keys=True, default=sorted)  # sets, in an order that stays
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _decoded(
    records: Sequence[Record], read: Read, decode: Decode, progress: Progress, failed: list[str]
) -> Iterator[Arrays]:
    """Decode in order, until the first failure; the rest is then only read for more of them."""

    def decode_one(numbered: tuple[int, Record]) -> Arrays | str:
        index, record = numbered
        try:
            sample = read(record)
            if sample.mask_HW is None:
                return f"{record.id}: it has no mask"
            return decode(sample, index, str(record.image_path))
        except ImageError as problem:
            return str(problem)

    rows = map_ordered(decode_one, enumerate(records), num_threads=_num_decoders(records))
    for row in track(rows, progress=progress, label="decoding images", total=len(records)):
        if isinstance(row, str):
            failed.append(row)
        elif not failed:
            yield row


def _num_decoders(records: Sequence[Record]) -> int:
    """Threads for images of this size: a few huge ones at a time would fill the memory."""
    most = 1
    for record in spread(records, PROBED):
        with contextlib.suppress(ImageError):  # decoding will name it
            info = probe(record.image_path)
            most = max(most, info.height * info.width)
    return max(1, min(num_cores(), DECODED_PIXELS // most))


def _build(
    place: Path, records: Sequence[Record], read: Read, decode: Decode, progress: Progress
) -> None:
    failed: list[str] = []
    temporary = place.with_suffix(".building")
    # Ours alone: the caller holds the lock, so one that is there was left by a killed run.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        _write(temporary, _decoded(records, read, decode, progress, failed))
        if not failed:
            temporary.rename(place)
            return
    except OSError as problem:
        raise OutputError(
            f"can't write the pixel cache in {place.parent}: {problem.strerror or problem}; "
            "free some space or set BINSEG_CACHE to a folder elsewhere"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    named = "; ".join(failed[:MAX_NAMED])
    more = f"; and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
    told = f"{len(failed)} of {len(records)} records can't be read; remove or repair them"
    raise DataError(f"{told}: {named}{more}")


def _write(folder: Path, rows: Iterable[Arrays]) -> None:
    files: dict[str, tuple[BinaryIO, np.ndarray]] = {}
    counts: dict[str, list[int]] = {}
    with contextlib.ExitStack() as opened:
        for row in rows:
            for name, array in row.items():
                if name not in files:
                    new = opened.enter_context((folder / f"{name}.npy").open("wb"))
                    files[name], counts[name] = (new, array[:0].copy()), []
                    _write_header(new, array, 0)
                files[name][0].write(np.ascontiguousarray(array).data)
                counts[name].append(len(array))
        for name, (file, array) in files.items():
            _write_header(file, array, sum(counts[name]))
            file.flush()
            os.fsync(file.fileno())
    storage.write_json(folder / FACTS, counts)


def _write_header(file: BinaryIO, like: np.ndarray, num: int) -> None:
    """Write a `.npy` file's header at its start: numpy leaves room for the first axis to grow."""
    file.seek(0)
    facts = np.lib.format.header_data_from_array_1_0(np.empty((0, *like.shape[1:]), like.dtype))
    np.lib.format.write_array_header_1_0(file, facts | {"shape": (num, *like.shape[1:])})


def _read(place: Path, num_records: int) -> Mapping[str, Stack]:
    """Map a store's files; a `ValueError` says how they don't fit together."""
    stored = {}
    for name, counts in json.loads((place / FACTS).read_text(encoding="utf-8")).items():
        path = place / f"{name}.npy"
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        expected, num_bytes = values.offset + values.nbytes, path.stat().st_size
        if num_bytes != expected:
            raise ValueError(f"{path.name} has {num_bytes} bytes instead of {expected}")
        if len(counts) != num_records or sum(counts) != len(values):
            raise ValueError("its files differ in length")
        stored[name] = Stack(values=values, counts_N=np.asarray(counts, np.int64))
    return stored


def _hold(place: Path, owner: object) -> None:
    """Mark a store as used now, and as in use for as long as `owner`, which maps it, lives."""
    with contextlib.suppress(OSError):  # a cache that is read only can be used all the same
        os.utime(place)
    # Elsewhere (Windows), files that are mapped can't be moved away, which protects them as well.
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(place, os.O_RDONLY)
        weakref.finalize(owner, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _evict(home: Path, *, limit: float) -> None:
    """Remove the stores in `home` unused for longest, until the rest fits into `limit` bytes."""
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
        # The lock is held while a store is opened or built, the other while it is read.
        with contextlib.suppress(OutputError, OSError), storage.locked(place, timeout=0.0):
            if not _is_in_use(place):
                # Renamed first, so that nobody ever finds half a store under its name.
                gone = place.with_suffix(".evicted")
                shutil.rmtree(gone, ignore_errors=True)
                place.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
                total -= sizes[place][1]


def _is_in_use(place: Path) -> bool:
    """Tell whether a process, this one or another, has the store mapped."""
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


VERSION = "inputs 6"  # raise it when what is stored changes, or how images are decoded or resized


@dataclass(frozen=True)
class PixelCache:
    """Model inputs of a list of records, ready to be batched; N counts inputs, not records."""

    inputs_NHWC: UInt[np.ndarray, "N H W C"]
    targets_NHW: UInt8[np.ndarray, "N H W"]
    """0 background, 1 foreground, `IGNORE` (no truth, or padding)."""
    record_of_N: Int[np.ndarray, "N"]
    """The index of the record that each input shows; tiles of one image share it."""
    is_partial: bool = False  # True if some images are here without all of their tiles

    def __post_init__(self) -> None:
        assert len(self.inputs_NHWC) == len(self.targets_NHW) == len(self.record_of_N)

    def __len__(self) -> int:
        return len(self.record_of_N)

    @property
    def num_bytes(self) -> int:
        """Memory that inputs and targets take when they are loaded whole."""
        return int(self.inputs_NHWC.nbytes + self.targets_NHW.nbytes)

    def holds(self, value: int) -> bool:
        """Tell whether any target has this value."""
        return any(bool((target_HW == value).any()) for target_HW in self.targets_NHW)

    def thinned(self, limit: int) -> "PixelCache":
        """Keep at most so many inputs, copied and spread; half hold foreground, if many do."""
        if len(self) <= limit:
            return self
        holds = np.array([bool((target_HW == 1).any()) for target_HW in self.targets_NHW])
        num_holding = min(int(holds.sum()), max(limit // 2, round(holds.mean() * limit)))
        parts = ((holds, num_holding), (~holds, limit - num_holding))
        chosen = [spread(np.flatnonzero(some).tolist(), num) for some, num in parts]
        rows = np.array(sorted(row for some in chosen for row in some))
        records_N, end = self.record_of_N[rows], int(self.record_of_N.max()) + 1
        whole, kept = (np.bincount(one, minlength=end) for one in (self.record_of_N, records_N))
        is_partial = bool(((kept > 0) & (kept < whole)).any())
        inputs, targets = (np.array(one[rows]) for one in (self.inputs_NHWC, self.targets_NHW))
        return PixelCache(inputs, targets, records_N, is_partial=is_partial)


class Where(TypedDict, total=False):
    """The listener of progress, and the folder of all caches, the user's if left out."""

    progress: Progress
    folder: Path | None


def open_cache(
    records: Sequence[Record], rule: MaskRule, preprocessing: Preprocessing, **where: Unpack[Where]
) -> PixelCache:
    """Give the inputs of these records, in their order; arguments and errors as `open_store`."""

    def decode(sample: Sample, index: int, name: str) -> dict[str, np.ndarray]:
        del index
        assert sample.mask_HW is not None
        inputs, placements = preprocess.prepare(
            sample.image_HWC, preprocessing, name=name, size=sample.valid_HW.shape
        )
        targets = preprocess.prepare_truth(sample.mask_HW, sample.valid_HW, placements)
        return {"inputs": inputs, "targets": targets}

    stored = open_store(*(records, rule, preprocessing, decode), version=VERSION, **where)
    record_of_N = np.repeat(np.arange(len(records)), stored["inputs"].counts_N)
    return PixelCache(stored["inputs"].values, stored["targets"].values, record_of_N)
