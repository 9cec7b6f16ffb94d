"""Threads that work ahead of whoever takes their results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["map_ordered"]

T = TypeVar("T")
R = TypeVar("R")


def map_ordered(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    num_threads: int = 1,
    ahead: int | Callable[[], int] = 2,
) -> Generator[R]:
    """Apply a function to items in threads; results come in the items' order.

    Args:
        function: what to apply; its errors are raised where its result would come.
        items: taken as they are needed, in the caller's thread; may be endless.
        num_threads: how many items are in work at once.
        ahead: most results that are in work or wait to be taken, at least 1; asked for each time
            where it is a function.

    >>> list(map_ordered(abs, [-1, 2, -3], num_threads=2))
    [1, 2, 3]
    """
    waiting: deque[Future[R]] = deque()
    order = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            while True:
                limit = ahead() if callable(ahead) else ahead
                for item in islice(order, max(0, max(1, limit) - len(waiting))):
                    waiting.append(pool.submit(function, item))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
