"""Our end of a child of the cage: orders go to it, and replies and pixels come back."""

import json
import math
import mmap
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from binseg.errors import ImageError, MissingExtraError
from binseg.imageio.caged import LENGTH, processor_seconds, shared_memory
from binseg.imageio.decoding import ImageInfo, Pixels, Valid

_RECYCLE = 256  # images after which a child is replaced, so that what decoders leak stays small
_MAX_HEADER = 32_000_000  # an ICC profile has up to 16 MB


class Child:
    """Our end of one child, which `slow_down` gives a lower priority."""

    def __init__(
        self, connection: socket.socket, pid: int, slow_down: Callable[[], None], patience: float
    ) -> None:
        self.socket = connection
        self.pid = pid
        self.images_left = _RECYCLE
        self._slow_down, self._patience = slow_down, patience

    def give_way(self) -> None:
        """Work with low priority from now on, for this image alone."""
        self._slow_down()
        self.images_left = 0

    def ask(
        self,
        order: dict[str, Any],
        data: bytes = b"",
        *,
        name: str,
        seconds: float,
        fds: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Send an order and wait for the reply; ImageError if it refuses or falls silent."""
        until = time.monotonic() + seconds
        if not os.path.isabs(order.get("path") or "/"):  # noqa: PTH117 - we may have moved since it began
            order = {**order, "folder": os.getcwd()}  # noqa: PTH109
        head = json.dumps(order).encode()
        try:
            self.socket.settimeout(seconds)
            socket.send_fds(self.socket, [LENGTH.pack(len(head))], fds)
            self.socket.sendall(head)
            self.socket.sendall(data)
            (size,) = LENGTH.unpack(self._receive(LENGTH.size, until))
            reply: dict[str, Any] = json.loads(self._receive(min(size, _MAX_HEADER), until))
        except BaseException as problem:
            self.images_left = 0  # its reply to this order would be taken for that to the next one
            if not isinstance(problem, EOFError | OSError | ValueError):
                raise
            late = isinstance(problem, TimeoutError)
            what = "it takes too long to decode" if late else "decoding it ends the decoder"
            raise ImageError(f"{name}: {what}; save it again in a plain format") from None
        if "missing" in reply:
            raise MissingExtraError(**reply["missing"])
        if "error" in reply:
            raise ImageError(reply["error"])
        return reply

    def let_go(self, seconds: float) -> None:
        """Have the image closed, unless the child ends anyway; raises as `ask`."""
        if self.images_left > 0:
            self.ask({"do": "close"}, name="an image", seconds=seconds)

    def exchange(
        self, order: dict[str, Any], num_bytes: int, **how: Any
    ) -> tuple[dict[str, Any], mmap.mmap]:
        """Do as `ask`, with shared memory of so many bytes that the child may fill."""
        with shared_memory(num_bytes) as descriptor:
            facts = self.ask(order, fds=[descriptor], **how)
            return facts, mmap.mmap(descriptor, 0)

    def fetch(
        self, order: dict[str, Any], info: ImageInfo, size: tuple[int, int], **how: Any
    ) -> tuple[Pixels, Valid]:
        """Have pixels decoded, of a height and width; raises as `ask`, which takes `how`."""
        shape = (*size, info.channels)
        num_bytes = math.prod(shape) * np.dtype(info.dtype).itemsize
        num_shared = num_bytes + math.prod(shape[:2])
        facts, shared = self.exchange(order, num_shared, **how)
        has_all = facts.pop("has_all", None) is True
        if facts != {"shape": list(shape), "dtype": info.dtype}:
            raise unlike(how["name"])
        valid_HW = np.frombuffer(shared, np.uint8, offset=num_bytes).reshape(shape[:2]) == 1
        image_HWC = np.frombuffer(shared, info.dtype, math.prod(shape)).reshape(shape)
        return image_HWC, None if has_all else valid_HW

    def _receive(self, size: int, until: float) -> bytes:
        data, before = b"", None
        while len(data) < size:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(min(left, self._patience) if self.images_left else left)
            try:
                part = self.socket.recv(size - len(data))
            except TimeoutError:  # others first: a bomb's decoder delays nobody
                used = processor_seconds(self.pid)
                if before is not None and used - before > self._patience / 2:
                    self.give_way()
                before = used if before is None else before
                continue
            if not part:
                raise EOFError
            data += part
        return data


def unlike(name: str) -> ImageError:
    """The error for pixels of another size or type than was promised."""
    return ImageError(f"{name}: its pixels aren't what its header says; get it anew")
