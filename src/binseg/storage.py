"""Files as bytes: atomic writes, hashes, the cache folder, locks, and places held by a command."""

import contextlib
import csv
import ctypes
import difflib
import errno
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from binseg.errors import DataError, OutputError, one_line

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or choose another folder"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"
    ),
    # EEXIST is how mkdir puts it.
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a part of that path is a file, choose another"),
    errno.EISDIR: "that is a folder, name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_CHUNK = 1 << 18


def output_error(path: Path, error: OSError) -> OutputError:
    """Make the one line for what the disk refused."""
    what = error.strerror or " ".join(str(error).split())
    advice = _ADVICE.get(error.errno or 0, "nothing was changed there")
    return OutputError(f"can't write {shown(path)}: {what}; {advice}")


def shown(path: Path) -> str:
    """The path on one line, whatever is in its name."""
    return str(path).replace("\n", "\\n").replace("\r", "\\r")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file that becomes `path` when the block ends well; OutputError."""
    path = Path(path)
    # Replacing a link would cut it off from the file that it names, so that file is replaced.
    final = Path(os.path.realpath(path))
    # The suffix stays, since writers choose the format by it; the rest is short enough for any
    # file system that took the name itself.
    temporary = final.with_name(f".tmp-{secrets.token_hex(6)}{final.suffix}")
    try:
        _refuse_special(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        sync(temporary)
        temporary.replace(final)
        sync(final.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder never came to be
            temporary.unlink()


def remove_scraps(folders: Iterable[Path]) -> None:
    """Remove what killed processes had begun to write by `atomic_path`, where none works now."""
    for folder in set(folders):
        for path in folder.glob(".tmp-" + 12 * "[0-9a-f]" + "*"):  # no name of anybody else's
            with contextlib.suppress(OSError):
                path.unlink()


def publish(finished: Path, path: Path) -> None:
    """Give a finished file or folder its final name, in place of what has it; OutputError."""
    final = Path(os.path.realpath(path))
    try:
        if finished.is_dir():
            for file in (*finished.rglob("*"), finished):
                sync(file)
            _replace_folder(finished, final)
        else:
            _refuse_special(final)
            sync(finished)
            finished.replace(final)
        sync(final.parent)
    except OSError as error:
        raise output_error(path, error) from error


def _replace_folder(new: Path, final: Path) -> None:
    if not final.exists():
        new.rename(final)
    elif _exchange(new, final):
        shutil.rmtree(new, ignore_errors=True)
    else:
        aside = new.with_name(f".old-{secrets.token_hex(6)}")
        final.rename(aside)
        try:
            new.rename(final)
        except OSError:
            aside.rename(final)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system can't."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_cwd, names = -100, [os.fsencode(path.absolute()) for path in (one, other)]
    return bool(libc.renameat2(at_cwd, names[0], at_cwd, names[1], 2) == 0)  # 2: RENAME_EXCHANGE


def _refuse_special(path: Path) -> None:
    """Refuse to replace what is no plain file: a rename would swap a device or a folder for it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a plain file")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows can't open folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing; bytes of file names that are no text stay so."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def cell(text: str) -> str:
    """Keep a spreadsheet from running a text as a formula: a quote before it marks it as text.

    >>> cell("=1+1"), cell("a.png"), cell("-0.5")
    ("'=1+1", 'a.png', '-0.5')
    """
    with contextlib.suppress(ValueError):
        return str(float(text)) and text
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def csv_text(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Give a head and rows as CSV, in whose texts no spreadsheet finds a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: cell(v) if isinstance(v, str) else v for k, v in row.items()})
    return text.getvalue()


def write_json(path: Path, obj: object) -> None:
    """Write indented JSON, or nothing; NaN and infinities are refused, as JSON has none."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # What no UTF-8 can hold, a byte of a file's name, becomes JSON's own escape.
    write_bytes(path, text.encode(errors="backslashreplace"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of strangers; ValueError for what two readers could read in two ways."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"it holds the key {one_line(twice, limit=80)!r} twice")
        return found

    def refuse(name: str) -> None:
        raise ValueError(f"it holds {name}, which is no JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def alike(path: Path) -> str:
    """Name what lies beside a missing path under nearly its name, for a message; '' if nothing."""
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(
            path.name, (one.name for one in path.parent.iterdir()), n=1
        )
        return f" (did you mean {path.parent / near[0]}?)" if near else ""
    return ""


def open_file(path: Path) -> io.BufferedReader:
    """Open a file to read; OSError for a pipe, socket or device, where `open` would wait."""
    return open(path, "rb", opener=_open_at_once)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for anyone at another end; raises as `open_file`."""
    wrong = OSError(errno.EINVAL, "it is a pipe, socket or device, not a file", path)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise wrong if error.errno == errno.ENXIO else error from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise wrong


def read_bytes(path: Path) -> bytes:
    """Read a whole file; raises as `open_file`."""
    with open_file(path) as handle:
        return handle.read()


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Read a whole text in UTF-8, with or without a mark at its start; raises as `open_file`."""
    return read_bytes(path).decode("utf-8-sig", errors)


def sha256_of(path: Path) -> str:
    """Hash a file, in pieces; lower-case hex. Raises DataError."""
    try:
        with open_file(path) as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"can't read {shown(path)}: {error.strerror or error}") from error


def cache_dir() -> Path:
    """Name the folder for what can be made again: $BINSEG_CACHE, else the system's own place."""
    named = os.environ.get("BINSEG_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("binseg")


@contextmanager
def locked(path: Path, *, timeout: float = 3600.0, tidy: bool = False) -> Iterator[None]:
    """Hold `path`.lock against other processes; `tidy` removes it afterwards. OutputError."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(lock_path)
        lock.acquire(timeout=timeout)
    except filelock.Timeout as error:
        told = f"another process has held {shown(lock_path)} for {timeout:g} s"
        raise OutputError(f"{told}; wait for it or stop it, then try again") from error
    except OSError as error:
        raise output_error(lock_path, error) from error
    try:
        yield
    finally:
        lock.release()
    if tidy:
        with contextlib.suppress(OSError):  # it is gone, or others hold it
            lock_path.unlink()


_LOG = logging.getLogger("binseg")
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold an output's place, by a lock in the cache folder, so that no two commands mix."""
    place = Path(os.path.realpath(out))
    if place in _HELD.get():
        yield
        return
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
    locks = cache_dir() / "locks"
    lock = filelock.FileLock(locks / f"{name}.lock")
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        told = "another command works there; wait, or choose another --out"
        raise OutputError(f"{one_line(str(out))}: {told}") from None
    except OSError as error:
        _LOG.warning("%s: can't be locked against other commands (%s)", out, error.strerror)
    token = _HELD.set(_HELD.get() | {place})
    try:
        yield
    finally:
        _HELD.reset(token)
        with contextlib.suppress(OSError):  # while it is held: whoever waits sees that it is gone
            Path(lock.lock_file).unlink()
        lock.release()
