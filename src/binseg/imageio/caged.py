"""The children of a cage and their mother: they decode, within limits, what `cage.py` sends."""

import contextlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from binseg.errors import BinsegError
from binseg.imageio.decoding import Pixels, Valid
from binseg.imageio.formats import probe, probe_bytes, read_reduced
from binseg.imageio.windows import Windows, holds_tiff, needs_windows, open_windows
from binseg.imageio.zarr_folders import is_zarr

LENGTH = struct.Struct("!I")
"""Before each order of JSON to a child, and before its reply."""
ORDER = struct.Struct("!cQ")
"""To the mother: F forks (a descriptor comes along), K kills, N lowers the priority of a child."""
_SPARE_BYTES = 256_000_000
"""Address space beside the image: libraries' buffers, and what headers need."""
_PEAK = 8
"""Bytes at the peak of decoding for each byte of the result: a progressive JPEG has 5."""
_LOW_PRIORITY = 10
"""A child of this priority gets a tenth of the processor that others want."""
_WINDOWS_BYTES = 1_500_000_000
"""Address space of a child that reads windows: unpacked pieces, those kept, and a batch of them."""
_FLAT = 8
"""Bytes at the peak for each byte of a window."""


def mother() -> None:
    """Import the decoders once, then fork and kill as told; end with the one who tells."""
    Image.init()
    with contextlib.suppress(ModuleNotFoundError):  # HEIC's reader is optional
        import pillow_heif  # noqa: F401 - a child's own import would count as the image's memory
    orders = socket.socket(fileno=0)
    children: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, ORDER.size, 1)
        if len(data) < ORDER.size:
            break
        kind, pid = ORDER.unpack(data)
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
            orders.sendall(ORDER.pack(b"F", pid))
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
    with ExitStack() as opened:  # windows, where this child reads any
        decoders = _Decoders(_address_space(), opened)
        while True:
            length, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
            if not length:
                return
            order = json.loads(_take(connection, LENGTH.unpack(length)[0]))
            try:
                reply = decoders.answer(order, connection, descriptors)
            except BinsegError as error:  # also that a format needs a package
                reply = {"error": str(error)}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            head = json.dumps(reply).encode()
            connection.sendall(LENGTH.pack(len(head)) + head)


class _Decoders:
    """Serve a child's orders; `start` is its address space, without any image."""

    def __init__(self, start: int, opened: ExitStack) -> None:
        self._start, self._opened = start, opened
        self._held: tuple[bytes | Path, str] = b"", ""
        self._windows: Windows

    def answer(
        self, order: dict[str, Any], connection: socket.socket, descriptors: list[int]
    ) -> dict[str, Any]:
        """Do what an order says.

        Raises:
            BinsegError: what is wrong with the image.
        """
        kind, start = order["do"], self._start
        if kind == "survey":
            _allow(start + _SPARE_BYTES)
            return _survey(Path(order["path"]))
        if kind == "open":
            _allow(start + _SPARE_BYTES + 4 * order["size"])
            source = Path(order["path"]) if order["path"] else None
            data, name = bytes(_take(connection, order["size"])), order["name"]
            info = probe(source) if source else probe_bytes(data, name=name)
            self._held = source or data, name
            return vars(info)
        if kind == "read":
            return self._read(descriptors[0], order["by"])
        if kind == "windows":
            return self._open(Path(order["path"]))
        if kind == "info":
            return vars(self._windows.info(order["page"]))
        size = os.fstat(descriptors[0]).st_size
        _allow(start + _WINDOWS_BYTES + _FLAT * size)
        window = order["window"]
        pixels_HWC, valid_HW = self._windows.read(*window), self._windows.valid(*window)
        return _share(descriptors[0], pixels_HWC, valid_HW)

    def _read(self, descriptor: int, by: int) -> dict[str, Any]:
        source, name = self._held
        num_bytes = os.fstat(descriptor).st_size * by**2
        size = len(source) if isinstance(source, bytes) else 0
        _allow(self._start + _SPARE_BYTES + 4 * size + _PEAK * num_bytes)
        image_HWC, valid_HW, _ = read_reduced(source, lambda _: by, name=name)
        return _share(descriptor, image_HWC, valid_HW)

    def _open(self, path: Path) -> dict[str, Any]:
        if is_zarr(path):
            with contextlib.suppress(ModuleNotFoundError):  # `open_windows` says that it is missing
                import zarr  # noqa: F401 - its own needs are not the image's
            self._start = _address_space()
        _allow(self._start + _WINDOWS_BYTES)
        self._windows = windows = self._opened.enter_context(open_windows(path))
        size, axes = windows.pixel_size, windows.axes
        return {
            "format": windows.format,
            "num_pages": windows.num_pages,
            "pixel_size": asdict(size) if size is not None else None,
            "axes": asdict(axes) if axes is not None else None,
        }


def _share(descriptor: int, decoded: Pixels, valid_HW: Valid) -> dict[str, Any]:
    """Put pixels into shared memory that has the size of what the header says."""
    image_HWC = np.ascontiguousarray(decoded)
    if image_HWC.nbytes + image_HWC[:, :, 0].size == os.fstat(descriptor).st_size:
        with mmap.mmap(descriptor, 0) as shared:
            shared.write(image_HWC.data.cast("B"))
            if valid_HW is not None:
                shared.write(np.ascontiguousarray(valid_HW).data.cast("B"))
    return {"shape": image_HWC.shape, "dtype": image_HWC.dtype.name, "has_all": valid_HW is None}


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
        "height": infos[0].height,
        "width": infos[0].width,
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
