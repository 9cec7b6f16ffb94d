"""Decoding in child processes that can be killed, with limits of memory and time.

A header can claim anything, and decoders of C can't be stopped from Python. So images of strangers
are decoded in a few children, kept warm: each has an address space that is enough for what the
header claims (and the caller has accepted), and so many seconds; then it is killed and replaced.

    Cage -> mother process (imports the decoders once, forks, kills) -> children (one image a time)

Requests and replies are JSON with raw bytes behind it, pixels come in shared memory: nothing is
unpickled. Measured, an image costs 0.2 ms of processor more than decoding it here (256 x 256), and
3 ms more for each megapixel; a child is replaced in some 40 ms on a machine that is busy.
"""

import contextlib
import fcntl
import json
import math
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from binseg.errors import BinsegError, ImageError
from binseg.imageio.decoding import ImageInfo, Pixels, Valid
from binseg.imageio.formats import decode_pixels, probe, probe_bytes, read_pixels
from binseg.imageio.windows import holds_tiff, needs_windows, open_windows

_RECYCLE = 256
"""Images after which a child is replaced, so that what decoders leak stays small."""
_MAX_HEADER = 1_000_000
_BUFFER = 1_000_000
_PATIENCE_S = 0.3
"""A child that took so long gets a lower priority, and no new image."""
_DECODE_S, _VALUES_PER_S = 2.0, 4_000_000
"""Time for an image's pixels; JPEG makes 100 million a second, lossless JPEG 2000 of noise 7."""
_SURVEY_S = 60.0
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TIFFFILE_NUM_THREADS")
_QUIET = dict.fromkeys((*_THREADS, "MALLOC_ARENA_MAX"), "1")
_LENGTH = struct.Struct("!I")
"""Before each order of JSON to a child, and before its reply."""
_ORDER = struct.Struct("!cQ")
"""To the mother: F forks (a descriptor comes along), K kills, N lowers the priority of a child."""
_SPARE_BYTES = 256_000_000
"""Address space beside the image: libraries' buffers, and what headers need."""
_PEAK = 8
"""Bytes at the peak of decoding for each byte of the result: a progressive JPEG has 5."""
_LOW_PRIORITY = 10
"""A child of this priority gets a tenth of the processor that others want."""
_MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from binseg.imageio.cage import mother
mother()
"""
_SOURCE = Path(__file__).parents[2]
"""Folder of this very package, wherever the process has gone since it was imported."""


class Cage:
    """A pool of children that decode; thread-safe.

    Args:
        num_children: images that are decoded at once; further callers wait.
        seconds: time for an image's header.
    """

    def __init__(self, num_children: int = 2, *, seconds: float = 3.0) -> None:
        assert hasattr(os, "fork"), "the cage needs a system with fork"
        self.seconds = seconds
        self._places = threading.BoundedSemaphore(num_children)
        self._lock = threading.Lock()
        self._orders_lock = threading.Lock()
        self._idle: list[_Child] = []
        self._users: dict[int, _Child] = {}
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
    def open(self, source: bytes | Path, *, name: str) -> Iterator["CagedImage"]:
        """Read an image's header in a child, which holds the file until the block ends.

        Raises:
            ImageError: as `probe` and `read_image`; also where decoding takes too long or ends
                the child.
        """
        with self._child() as child:
            yield CagedImage(child, source, name=name, seconds=self.seconds)

    def survey(self, path: Path, *, name: str) -> "Survey":
        """Look at all headers of a file, which may be huge, in a child.

        Raises:
            ImageError: as `needs_windows`.
        """
        order = {"do": "survey", "path": os.fspath(path), "size": 0}
        with self._child() as child:
            return Survey(**child.ask(order, name=name, seconds=_SURVEY_S))

    def stop(self, thread: int) -> None:
        """Kill the child that works for a thread (`threading.get_ident`), if there is one."""
        with self._lock:
            child = self._users.get(thread)
            if child is not None:
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
    def _child(self) -> Iterator["_Child"]:
        """Have a child for this thread alone."""
        thread = threading.get_ident()
        with self._places:
            with self._lock:
                if self._is_closed:
                    raise ImageError("not decoded: the program ends")
                child = self._idle.pop() if self._idle else None
            child = child or self._fork()
            with self._lock:
                self._users[thread] = child
            try:
                yield child
            finally:
                with self._lock:
                    del self._users[thread]
                    child.images_left -= 1
                    if child.images_left > 0 and not self._is_closed:
                        self._idle.append(child)
                    else:
                        self._tell(b"K", child.pid)
                        child.socket.close()

    def _fork(self) -> "_Child":
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        with theirs, self._orders_lock:
            socket.send_fds(self._orders, [_ORDER.pack(b"F", 0)], [theirs.fileno()])
            reply = self._orders.recv(_ORDER.size, socket.MSG_WAITALL)
        assert len(reply) == _ORDER.size, "the decoders' process has ended; its reason is above"
        return _Child(ours, _ORDER.unpack(reply)[1], lambda pid: self._tell(b"N", pid))

    def _tell(self, kind: bytes, pid: int) -> None:
        """Have the mother act: she alone knows that a number is still her child's."""
        with self._orders_lock, contextlib.suppress(OSError):  # at the end of everything
            self._orders.sendall(_ORDER.pack(kind, pid))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts that all headers of a file give."""

    needs_windows: bool
    """As `imageio.needs_windows`: a stack, or larger than is read whole."""
    num_pages: int
    num_pixels: int
    """Height times width, over all pages."""


class CagedImage:
    """An image whose header was read in a child, which holds it."""

    def __init__(self, child: "_Child", source: bytes | Path, *, name: str, seconds: float) -> None:
        self._child, self._name = child, name
        data, path = (source, None) if isinstance(source, bytes) else (b"", os.fspath(source))
        order = {"do": "open", "name": name, "path": path, "size": len(data)}
        self.info = ImageInfo(**child.ask(order, data, name=name, seconds=seconds))

    def read(self) -> tuple[Pixels, Valid]:
        """Decode the image, as `read_pixels` does.

        Raises:
            ImageError: damaged, or it took too long or too much memory.
        """
        info, child, name = self.info, self._child, self._name
        shape = (info.height, info.width, info.channels)
        seconds = _DECODE_S + math.prod(shape) / _VALUES_PER_S
        num_bytes = math.prod(shape) * np.dtype(info.dtype).itemsize
        with _shared(num_bytes + math.prod(shape[:2])) as descriptor:
            facts = child.ask({"do": "read"}, name=name, seconds=seconds, fds=[descriptor])
            pixels = mmap.mmap(descriptor, 0)
        has_all = facts.pop("has_all", None) is True
        if facts != {"shape": list(shape), "dtype": info.dtype}:
            raise ImageError(f"{name}: its pixels aren't what its header says; get it anew")
        valid_HW = np.frombuffer(pixels, np.uint8, offset=num_bytes).reshape(shape[:2]) == 1
        image_HWC = np.frombuffer(pixels, info.dtype, math.prod(shape)).reshape(shape)
        return image_HWC, None if has_all else valid_HW


class _Child:
    """Our end of one child; `slow_down` lowers the priority of a process."""

    def __init__(
        self, connection: socket.socket, pid: int, slow_down: Callable[[int], None]
    ) -> None:
        self.socket = connection
        self.pid = pid
        self.images_left = _RECYCLE
        self._slow_down = slow_down

    def ask(
        self,
        order: dict[str, Any],
        data: bytes = b"",
        *,
        name: str,
        seconds: float,
        fds: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Send an order with its bytes, and shared memory for pixels; wait for the reply.

        Raises:
            ImageError: what the decoder says of the file, or that it fell silent.
        """
        until = time.monotonic() + seconds
        head = json.dumps(order).encode()
        try:
            self.socket.settimeout(seconds)
            socket.send_fds(self.socket, [_LENGTH.pack(len(head))], fds)
            self.socket.sendall(head)
            self.socket.sendall(data)
            (size,) = _LENGTH.unpack(self._receive(_LENGTH.size, until))
            reply: dict[str, Any] = json.loads(self._receive(min(size, _MAX_HEADER), until))
        except (EOFError, OSError, ValueError) as problem:
            self.images_left = 0
            late = isinstance(problem, TimeoutError)
            what = "it takes too long to decode" if late else "decoding it ends the decoder"
            raise ImageError(f"{name}: {what}; save it again in a plain format") from None
        if "error" in reply:
            raise ImageError(reply["error"])
        return reply

    def _receive(self, size: int, until: float) -> bytes:
        data, before = b"", None
        while len(data) < size:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(min(left, _PATIENCE_S) if self.images_left else left)
            try:
                part = self.socket.recv(size - len(data))
            except TimeoutError:  # others first: a bomb's decoder delays nobody
                used = _processor_seconds(self.pid)
                if before is not None and used - before > _PATIENCE_S / 2:
                    self._slow_down(self.pid)
                    self.images_left = 0
                before = used if before is None else before
                continue
            if not part:
                raise EOFError
            data += part
        return data


@contextmanager
def _shared(num_bytes: int) -> Iterator[int]:
    """Memory that a child can write into, as a file without a name; its size is fixed."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, num_bytes)
        if hasattr(fcntl, "F_ADD_SEALS"):  # a file that shrinks would end us with SIGBUS
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield descriptor
    finally:
        os.close(descriptor)


def _processor_seconds(pid: int) -> float:
    """The processor time of a child so far; where the system doesn't say, the time."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mother() -> None:
    """Import the decoders once, then fork and kill as told; end with the one who tells."""
    Image.init()
    with contextlib.suppress(ModuleNotFoundError):  # HEIC's reader is optional
        import pillow_heif  # noqa: F401 - a child's own import would count as the image's memory
    orders = socket.socket(fileno=0)
    children: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, _ORDER.size, 1)
        if len(data) < _ORDER.size:
            break
        kind, pid = _ORDER.unpack(data)
        if kind == b"K" and pid in children:
            os.kill(pid, signal.SIGKILL)
        elif kind == b"N" and pid in children:
            os.setpriority(os.PRIO_PROCESS, pid, _LOW_PRIORITY)
        elif kind == b"F":
            pid = os.fork()
            if pid == 0:
                _run_child(orders, descriptors[0])
            os.close(descriptors[0])
            # Until it is waited for, a dead child's number is nobody else's.
            children = {one for one in children if os.waitpid(one, os.WNOHANG)[0] == 0}
            children.add(pid)
            orders.sendall(_ORDER.pack(b"F", pid))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


def _run_child(orders: socket.socket, descriptor: int) -> None:
    """Serve orders until the other end closes; never return to the mother's loop."""
    status = 1
    try:
        orders.close()
        with open(os.devnull, "w") as nothing:  # noqa: PTH123 - decoders' own complaints
            os.dup2(nothing.fileno(), 2)
        _serve(socket.socket(fileno=descriptor))
        status = 0
    finally:
        os._exit(status)


def _serve(connection: socket.socket) -> None:
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))
    start = _address_space()
    held: tuple[bytes | Path, str, ImageInfo] | None = None
    while True:
        length, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
        if not length:
            return
        order = json.loads(_take(connection, _LENGTH.unpack(length)[0]))
        try:
            if order["do"] == "survey":
                _allow(start + _SPARE_BYTES)
                reply = _survey(Path(order["path"]))
            elif order["do"] == "open":
                held = None
                _allow(start + _SPARE_BYTES + 4 * order["size"])
                source = Path(order["path"]) if order["path"] else None
                data, name = bytes(_take(connection, order["size"])), order["name"]
                info = probe(source) if source else probe_bytes(data, name=name)
                held = (source or data, name, info)
                reply = vars(info)
            else:
                assert held is not None, "an image is opened before it is read"
                reply = _decode_into(descriptors[0], start, *held)
        except BinsegError as error:  # also that a format needs a package
            reply = {"error": str(error)}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        head = json.dumps(reply).encode()
        connection.sendall(_LENGTH.pack(len(head)) + head)


def _decode_into(
    descriptor: int, start: int, source: bytes | Path, name: str, info: ImageInfo
) -> dict[str, Any]:
    """Decode an image into shared memory that has the size of what its header says."""
    num_bytes = os.fstat(descriptor).st_size
    size = len(source) if isinstance(source, bytes) else 0
    _allow(start + _SPARE_BYTES + 4 * size + _PEAK * num_bytes)
    if isinstance(source, bytes):
        decoded, valid_HW = decode_pixels(source, name=name)
    else:
        decoded, valid_HW = read_pixels(source)
    image_HWC = np.ascontiguousarray(decoded)
    facts = {"shape": image_HWC.shape, "dtype": image_HWC.dtype.name, "has_all": valid_HW is None}
    if image_HWC.nbytes + image_HWC[:, :, 0].size == num_bytes:
        with mmap.mmap(descriptor, 0) as shared:
            shared.write(image_HWC.data.cast("B"))
            if valid_HW is not None:
                shared.write(np.ascontiguousarray(valid_HW).data.cast("B"))
    return facts


def _take(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        num = connection.recv_into(view)
        if num == 0:
            raise EOFError
        view = view[num:]
    return data


def _survey(path: Path) -> dict[str, Any]:
    is_large = needs_windows(path)
    if is_large and holds_tiff(path):
        with open_windows(path) as windows:
            infos = [windows.info(page) for page in range(windows.num_pages)]
    else:  # to open others by windows would unpack them
        infos = [probe(path)]
    return {
        "needs_windows": is_large,
        "num_pages": len(infos),
        "num_pixels": sum(one.height * one.width for one in infos),
    }


def _address_space() -> int:
    """Count the bytes of this process's address space; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * 4096
    except OSError:
        return 0


def _allow(num_bytes: int) -> None:
    """Let this process have so many bytes of address space, and more when told again."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))
