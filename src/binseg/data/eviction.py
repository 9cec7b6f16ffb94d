"""How much disk the pixel caches may take: those unused for longest go first, none in use does."""

import contextlib
import os
import shutil
import weakref
from pathlib import Path

from binseg.errors import OutputError, UsageError
from binseg.storage import locked

__all__ = ["cache_limit", "evict", "hold"]

DEFAULT_GB = 20.0
"""Where BINSEG_CACHE_GB says nothing."""


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
