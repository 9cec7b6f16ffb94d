"""Results come in order, and only so many of them wait."""

import threading
import time
from collections.abc import Iterator

import pytest

from binseg.parallel import map_ordered


def test_results_are_in_order_whatever_they_take() -> None:
    """The first item takes longest and still comes first."""
    waits = [0.05, 0.0, 0.02, 0.0]

    def wait(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    assert list(map_ordered(wait, waits, num_threads=4)) == waits


def test_no_more_than_asked_is_read_ahead() -> None:
    """An endless source is taken from as results are; at most `ahead` are in work or wait."""
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = map_ordered(lambda number: number, endless(), num_threads=2, ahead=3)
    assert next(results) == 0
    assert len(taken) == 3
    results.close()


def test_an_error_comes_where_its_result_would() -> None:
    """What lies before a failure is given first; what lies behind it isn't begun for ever."""
    begun = threading.Semaphore(0)

    def work(number: int) -> int:
        begun.release()
        if number == 2:
            raise ValueError("two")
        return number

    results = map_ordered(work, range(1000), num_threads=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
