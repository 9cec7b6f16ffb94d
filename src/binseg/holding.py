"""One command at a time writes to a place."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import filelock

from binseg.errors import OutputError, one_line
from binseg.storage import cache_dir

_LOG = logging.getLogger("binseg")
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold an output's place from start to end, so that two commands never mix theirs there.

    The locks lie in the cache folder, since a place may not exist yet, or its folder be shut. Who
    holds a place may ask for it again within. Raises OutputError where another command works there.
    """
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
        raise OutputError(
            f"{one_line(str(out))}: another command works there; wait, or choose another --out"
        ) from None
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
