"""The children's side of the cage: a mother that forks, and children that decode."""

import contextlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from binseg.errors import BinsegError
from binseg.imageio.decoding import ImageInfo
from binseg.imageio.formats import decode_image, probe, probe_bytes, read_image
from binseg.imageio.windows import holds_tiff, needs_windows, open_windows

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
    start = _address_space()
    held: tuple[bytes | Path, str, ImageInfo] | None = None
    while True:
        length, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
        if not length:
            return
        order = json.loads(_take(connection, LENGTH.unpack(length)[0]))
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
        connection.sendall(LENGTH.pack(len(head)) + head)


def _decode_into(
    descriptor: int, start: int, source: bytes | Path, name: str, info: ImageInfo
) -> dict[str, Any]:
    """Decode an image into shared memory that has the size of what its header says."""
    num_bytes = os.fstat(descriptor).st_size
    size = len(source) if isinstance(source, bytes) else 0
    _allow(start + _SPARE_BYTES + 4 * size + _PEAK * num_bytes)
    decoded = decode_image(source, name=name) if isinstance(source, bytes) else read_image(source)
    image_HWC = np.ascontiguousarray(decoded)
    facts = {"shape": image_HWC.shape, "dtype": image_HWC.dtype.name}
    if image_HWC.nbytes == num_bytes:
        with mmap.mmap(descriptor, 0) as shared:
            shared.write(image_HWC.data.cast("B"))
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
