"""Work in threads that really ends when it is given up, and returns what it held only then."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from binseg.imageio.cage import Cage
from binseg.serve.refusals import Refusal

_AGAIN_S = 0.05
R = TypeVar("R")


class Threads:
    """Threads around a cage of decoders: what they wait for there can be killed.

    Args:
        num: how many threads, and how many images are decoded at once.
    """

    def __init__(self, num: int) -> None:
        self.cage = Cage(num)
        self._pool = ThreadPoolExecutor(num, thread_name_prefix="binseg-images")

    async def run(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Run a function in one of the threads.

        Cancelling drops what hasn't begun. What has begun is waited for, and its decoder killed.
        """
        worker: list[int] = []

        def work() -> R:
            worker.append(threading.get_ident())
            try:
                return function(*args, **kwargs)
            finally:
                worker.clear()

        future = self._pool.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            while not future.done():
                for thread in worker.copy():
                    self.cage.stop(thread)
                await asyncio.sleep(_AGAIN_S)
            raise

    def close(self) -> None:
        """Finish what was begun, but for decoding, which is given up."""
        self.cage.close()
        self._pool.shutdown(wait=True, cancel_futures=True)


async def unless_gone(
    request: Request, work: Coroutine[Any, Any, R], *, seconds: float, held: ExitStack
) -> R:
    """Do the work, unless the client goes away or it takes too long; then it is given up.

    Args:
        request: its body was read.
        work: cancelled in these cases.
        seconds: the limit.
        held: slots and memory, returned when the work has ended, however late that is.

    Raises:
        Refusal: 422, it took too long; 503, the server ends.
        ClientDisconnect: the client is gone.
    """

    async def holding() -> R:
        with held:
            return await work

    doing = asyncio.ensure_future(holding())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if gone.done():
            raise ClientDisconnect
        raise Refusal(
            422,
            "timeout",
            f"It would take longer than {seconds:g} s; send it as a job (POST /v1/jobs).",
        )
    except asyncio.CancelledError:  # by the server's end, which has waited long enough
        raise Refusal(503, "ending", "The server is being stopped; try again later.") from None
    finally:
        gone.cancel()
        if doing.cancel():
            _ENDING.add(doing)  # the loop itself keeps no task alive
            doing.add_done_callback(_ENDING.discard)


_ENDING: set[asyncio.Future[Any]] = set()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
