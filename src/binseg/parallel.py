"""Work on threads, with results in the order of the items and few of them waiting."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_ordered", "num_cores"]

T = TypeVar("T")
R = TypeVar("R")


def num_cores() -> int:
    """Threads that decoding and hashing use: one more than there are cores, 8 at most."""
    return min(8, (os.cpu_count() or 1) + 1)


def map_ordered(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    num_threads: int | None = None,
    ahead: int | None = None,
) -> Iterator[R]:
    """Apply a function on threads and yield its results in order, the next ones ready ahead.

    Decoding, hashing and disks let go of the interpreter, so threads share the work; the items may
    be endless, since at most `ahead` results wait in memory.

    Args:
        function: runs on the threads; what it raises comes out where its result would.
        items: taken one by one, on the thread of the caller.
        num_threads: `num_cores()` if left out.
        ahead: results that are asked for before the first is taken; 4 a thread if left out.

    >>> list(map_ordered(str.upper, "abc"))
    ['A', 'B', 'C']
    """
    num_threads = num_threads or num_cores()
    ahead = ahead or 4 * num_threads
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
