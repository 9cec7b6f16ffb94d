"""Decoding in child processes that can be killed, with limits of memory and time.

A header can claim anything, and decoders of C can't be stopped from Python. So a few warm children
decode, each with the address space that its header justifies, and so many seconds.

    Cage -> mother process (imports the decoders once, forks, kills) -> children (one image a time)

Requests and replies are JSON with raw bytes behind it, pixels come in shared memory: nothing is
unpickled. Measured, an image costs 0.2 ms of processor more than decoding it here (256 x 256), and
3 ms more for each megapixel; a child is replaced in some 40 ms on a machine that is busy.
"""

import contextlib
import math
import os
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from binseg.errors import ImageError
from binseg.imageio import decoding
from binseg.imageio.caged import ORDER
from binseg.imageio.child import Child, unlike
from binseg.imageio.metadata import PixelSize
from binseg.imageio.raster import reduced_by
from binseg.imageio.windows import Windows
from binseg.imageio.zarr_folders import ZarrAxes
from binseg.parallel import gives_way

_BUFFER = 1_000_000
_VALUES_PER_S = 4_000_000  # Least that decoders make a second; lossless JPEG 2000 of noise has 7 M
_SURVEY_S = 60.0
_LABEL_BYTES = 8  # of a mask's number, at most
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TIFFFILE_NUM_THREADS")
_QUIET = dict.fromkeys((*_THREADS, "MALLOC_ARENA_MAX"), "1")
_MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from binseg.imageio.caged import mother
mother()
"""
_SOURCE = Path(__file__).parents[2]  # This very package, wherever the process has gone since


class Cage:
    """A thread-safe pool of children that decode; a slow one loses priority after `patience` s."""

    def __init__(
        self, num_children: int = 2, *, seconds: float = 3.0, patience: float = 0.3
    ) -> None:
        self.seconds, self._patience = seconds, patience
        self._num_idle, self._places = num_children, threading.BoundedSemaphore(num_children)
        self._lock = threading.Lock()
        self._orders_lock = threading.Lock()
        self._idle: list[Child] = []
        self._users: list[tuple[int, Child]] = []
        self._is_closed = False
        self._orders, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, os.fspath(_SOURCE)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_QUIET},
                start_new_session=True,  # a terminal's Ctrl-C is for us
            )

    @contextmanager
    def open(
        self, source: bytes | Path, *, name: str, page: int | None = None, any_page: bool = False
    ) -> Iterator["CagedImage"]:
        """Read a header in a child that holds the file until the block ends; raises as `choose`."""
        data, path = (source, None) if isinstance(source, bytes) else (b"", os.fspath(source))
        asked = {"name": name, "path": path, "size": len(data), "page": page, "any_page": any_page}
        with self._child() as child:
            facts = child.ask({"do": "open", **asked}, data, name=name, seconds=self.seconds)
            info = decoding.ImageInfo(**facts)
            try:
                yield CagedImage(name=name, child=child, facts=info, seconds=self.seconds)
            finally:  # what it holds is neither memory nor, once removed, room on the disk
                with contextlib.suppress(ImageError):
                    child.let_go(self.seconds)

    def fact(self, what: str, path: Path) -> Any:
        """Have a child tell one of `caged.FACTS` of a file, as JSON does."""
        order = {"do": what, "path": os.fspath(path)}
        with self._child() as child:
            return child.ask(order, name=decoding.one_line(path), seconds=self.seconds)["fact"]

    def survey(self, path: Path, *, name: str) -> "Survey":
        """Look at all headers of a file, perhaps huge, in a child; raises as `needs_windows`."""
        order = {"do": "survey", "path": os.fspath(path), "size": 0}
        with self._child(is_counted=False) as child:
            return Survey(**child.ask(order, name=name, seconds=_SURVEY_S))

    @contextmanager
    def windows(self, path: Path) -> Iterator["CagedWindows"]:
        """Open an image of any size in a child of its own; raises as `open_windows`."""
        with self._child(is_counted=False) as child:
            child.images_left = 1
            yield CagedWindows(child, path)

    def stop(self, thread: int) -> None:
        """Kill the children that work for a thread (`threading.get_ident`), if there are any."""
        with self._lock:
            for child in [child for user, child in self._users if user == thread]:
                child.images_left = 0  # none further
                with contextlib.suppress(OSError):  # it wakes the thread that waits for a reply
                    child.socket.shutdown(socket.SHUT_RDWR)
                self._tell(b"K", child.pid)

    def close(self) -> None:
        """End all children."""
        with self._lock:
            self._is_closed = True
            self._orders.close()  # the mother kills her children, and ends
            for child in self._idle:
                child.socket.close()
            self._idle.clear()
        self._process.wait()

    @contextmanager
    def _child(self, *, is_counted: bool = True) -> Iterator[Child]:
        """Have a child for this thread alone; one that is not counted keeps no image waiting."""
        thread = threading.get_ident()
        with self._places if is_counted else contextlib.nullcontext():
            with self._lock:
                if self._is_closed:
                    raise ImageError("not decoded: the program ends")
                child = self._idle.pop() if self._idle else None
            child = child or self._fork()
            if gives_way():
                child.give_way()
            with self._lock:
                self._users.append((thread, child))
            try:
                yield child
            finally:
                with self._lock:
                    self._users.remove((thread, child))
                    child.images_left -= 1
                    is_wanted = len(self._idle) < self._num_idle and not self._is_closed
                    if child.images_left > 0 and is_wanted:
                        self._idle.append(child)
                    else:
                        self._tell(b"K", child.pid)
                        child.socket.close()

    def _fork(self) -> Child:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        with theirs, self._orders_lock:
            socket.send_fds(self._orders, [ORDER.pack(b"F", 0)], [theirs.fileno()])
            reply = self._orders.recv(ORDER.size, socket.MSG_WAITALL)
        if len(reply) < ORDER.size:
            raise ImageError("not decoded: the process of the decoders was killed; start again")
        pid = ORDER.unpack(reply)[1]
        return Child(ours, pid, lambda: self._tell(b"N", pid), self._patience)

    def _tell(self, kind: bytes, pid: int) -> None:
        """Have the mother act: she alone knows that a number is still her child's."""
        with self._orders_lock, contextlib.suppress(OSError):  # at the end of everything
            self._orders.sendall(ORDER.pack(kind, pid))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts that all headers of a file give."""

    needs_windows: bool  # As `imageio.needs_windows`: a stack, or larger than is read whole
    num_pages: int
    num_pixels: int  # Height times width, over all pages
    height: int  # Size of the first page, as is `width`
    width: int


@dataclass(frozen=True, kw_only=True)
class CagedImage(decoding.Decoder):
    """An image whose header was read in a child, which holds it; see `Decoder`."""

    child: Child
    facts: decoding.ImageInfo
    seconds: float
    kept: list[tuple[decoding.Pixels, decoding.Valid]] = field(default_factory=list)

    def info(self) -> decoding.ImageInfo:
        """Give the facts of the image as `image` gives it."""
        return self.facts

    def image(self) -> decoding.Pixels:
        """Decode the pixels, turned."""
        return self._pixels()[0]

    def valid(self) -> decoding.Valid:
        """Tell where there is data, turned; None where it is everywhere."""
        return self._pixels()[1]

    def labels(self, *, indices: bool = False) -> decoding.Labels:
        """Decode a mask's own numbers, turned: a palette's colours, or its indices."""
        size = (self.facts.height, self.facts.width)
        order = {"do": "labels", "indices": indices}
        num_bytes = _LABEL_BYTES * max(3, self.facts.channels) * math.prod(size)
        seconds = self._seconds_for(self.facts.channels)
        facts, shared = self.child.exchange(order, num_bytes, name=self.name, seconds=seconds)
        shape, dtype = tuple(facts["shape"]), np.dtype(facts["dtype"])
        if shape[:2] != size or math.prod(shape) * dtype.itemsize > num_bytes:
            raise unlike(self.name)
        return np.frombuffer(shared, dtype, math.prod(shape)).reshape(shape)

    def palette(self) -> decoding.Colours | None:
        """Give the colours of a palette, where there is one."""
        order = {"do": "palette"}
        found = self.child.ask(order, name=self.name, seconds=self._seconds_for(1))["fact"]
        return None if found is None else np.array(found, np.uint8).reshape(-1, 3)

    def cover(self) -> decoding.Cover:
        """Give what the image leaves out: transparency and ICC profile."""
        size, how = (self.facts.height, self.facts.width), {"seconds": self._seconds_for(1)}
        facts, shared = self.child.exchange({"do": "cover"}, math.prod(size), name=self.name, **how)
        alpha, icc = facts["alpha"], facts["profile"]
        if alpha is not None and (tuple(alpha["shape"]), alpha["dtype"]) != (size, "uint8"):
            raise unlike(self.name)
        alpha_HW = np.frombuffer(shared, np.uint8, math.prod(size)).reshape(size)
        return alpha_HW if alpha else None, None if icc is None else b64decode(icc)

    def pixel_size(self) -> PixelSize | None:
        """Tell the size of a pixel of a TIFF that was given as bytes, and isn't turned."""
        if self.facts.format != "TIFF" or self.facts.turned:
            return None
        found = self.child.ask({"do": "own_pixel_size"}, name=self.name, seconds=self.seconds)
        return PixelSize(**found["fact"]) if found["fact"] else None

    def _seconds_for(self, num: int) -> float:
        return self.seconds + num * self.facts.height * self.facts.width / _VALUES_PER_S

    def _pixels(self) -> tuple[decoding.Pixels, decoding.Valid]:
        if not self.kept:  # no cached_property: Python 3.11 lets one image at a time into it
            info, seconds = self.facts, self._seconds_for(self.facts.channels)
            order, size = {"do": "read", "by": 1}, (info.height, info.width)
            self.kept.append(self.child.fetch(order, info, size, name=self.name, seconds=seconds))
        return self.kept[0]

    def reduced(self, by: int) -> decoding.Pixels:
        """Decode the pixels averaged over squares of up to `by` x `by`, where that saves work."""
        info, by = self.facts, min(by, reduced_by(self.facts))
        order, seconds = {"do": "read", "by": by}, self._seconds_for(info.channels)
        sides = -(-info.height // by), -(-info.width // by)
        return self.child.fetch(order, info, sides, name=self.name, seconds=seconds)[0]


class CagedWindows(Windows):
    """An image of any size that a child reads window by window; see `Windows`."""

    def __init__(self, child: Child, path: Path) -> None:
        self.name = decoding.one_line(path)
        self._child, self._lock = child, threading.Lock()
        order = {"do": "windows", "path": os.fspath(path), "size": 0}
        facts = child.ask(order, name=self.name, seconds=_SURVEY_S)
        axes, self.format, self.num_pages = facts["axes"], facts["format"], facts["num_pages"]
        self.pixel_size = PixelSize(**facts["pixel_size"]) if facts["pixel_size"] else None
        if axes is not None:
            lists = {name: tuple(one) for name, one in axes.items() if isinstance(one, list)}
            self.axes = ZarrAxes(**axes | lists)
        self._infos: dict[int, decoding.ImageInfo] = {}
        self._last: tuple[tuple[int, ...], decoding.Valid] | None = None

    def info(self, page: int) -> decoding.ImageInfo:
        """Give size, channels and type of one page, from its header."""
        with self._lock:
            if page not in self._infos:
                facts = self._child.ask(
                    {"do": "info", "page": page}, name=self.name, seconds=_SURVEY_S
                )
                self._infos[page] = decoding.ImageInfo(**facts)
            return self._infos[page]

    def read(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Pixels:
        """Read a window that lies inside the page, as `read_image` would give that part of it."""
        return self._fetch(page, top, left, height, width)[0]

    def valid(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Valid:
        """Tell where a window has data; None where it has it everywhere."""
        with self._lock:
            window, valid_HW = self._last or ((), None)
        if window == (page, top, left, height, width):
            return valid_HW
        return self._fetch(page, top, left, height, width)[1]

    def _fetch(
        self, page: int, top: int, left: int, height: int, width: int
    ) -> tuple[decoding.Pixels, decoding.Valid]:
        info = self.info(page)
        window = tuple(int(one) for one in (page, top, left, height, width))
        with self._lock:
            order = {"do": "window", "window": window}
            seconds = _SURVEY_S + height * width * info.channels / _VALUES_PER_S
            size = (height, width)
            found = self._child.fetch(order, info, size, name=self.name, seconds=seconds)
            self._last = window, found[1]
        return found
