"""Work on threads, with results in the order of the items and few of them waiting."""

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from signal import SIGINT, SIGTERM, signal
from typing import Any, TypeVar

_LOW_PRIORITY = 10  # As in `nice`: a tenth of the processor that others want
T = TypeVar("T")
R = TypeVar("R")


def num_cores() -> int:
    """Threads that decoding and hashing use: one more than there are cores, 8 at most."""
    return min(8, (os.cpu_count() or 1) + 1)


def processor_facts() -> dict[str, str]:
    """Read what Linux tells of the first processor, by names in lower case; else nothing."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").partition("\n\n")[0]
        pairs = (line.partition(":") for line in text.splitlines())
        return {name.strip().lower(): value.strip() for name, _, value in pairs}
    return {}


def give_way() -> None:
    """Lower the priority of the calling thread for good, where threads have one (Linux)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)


def gives_way() -> bool:
    """Tell whether the calling thread has a lower priority than its process."""
    if sys.platform != "linux":
        return False
    one, all_ = threading.get_native_id(), os.getpid()
    return os.getpriority(os.PRIO_PROCESS, one) > os.getpriority(os.PRIO_PROCESS, all_)


def give_back_memory() -> None:
    """Give the system what this process has freed, which glibc keeps for later."""
    with suppress(OSError, AttributeError):  # other systems, other C libraries
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def heard(handler: Any) -> Iterator[None]:
    """Give SIGINT and SIGTERM to a handler within; other threads than the main one hear nothing."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {one: signal(one, handler) for one in (SIGINT, SIGTERM) if is_main}
    try:
        yield
    finally:
        for number, one in before.items():
            signal(number, one)


def map_ordered(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    num_threads: int | None = None,
    ahead: int | Callable[[], int] | None = None,
) -> Generator[R]:
    """Apply a function on threads and yield its results in order, the next ones ready ahead.

    The items may be endless, and are taken as needed, on the caller's thread. What the function
    raises comes out where its result would. `ahead` is the most results in work or waiting, asked
    for each time where it is a function; 4 for each of `num_threads` (`num_cores()`) if left out.

    >>> list(map_ordered(abs, [-1, 2, -3], num_threads=2))
    [1, 2, 3]
    """
    num_threads = num_threads or num_cores()
    waiting: deque[Future[R]] = deque()
    order = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            while True:
                limit = ahead() if callable(ahead) else ahead or 4 * num_threads
                for item in islice(order, max(0, max(1, limit) - len(waiting))):
                    waiting.append(pool.submit(function, item))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
