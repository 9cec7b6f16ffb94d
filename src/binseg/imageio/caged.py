"""The children of a cage and their mother: they decode, within limits, what `cage.py` sends."""

import contextlib
import fcntl
import importlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from binseg.errors import BinsegError, ImageError, MissingExtraError
from binseg.imageio import decoding
from binseg.imageio.formats import HEAD, decoder_of, format_of, opened
from binseg.imageio.metadata import georeference_of, pixel_size_of
from binseg.imageio.windows import Windows, holds_tiff, is_for_windows, open_windows
from binseg.imageio.zarr_folders import is_zarr

LENGTH = struct.Struct("!I")  # Before each order of JSON to a child, and before its reply
ORDER = struct.Struct("!cQ")  # To the mother: F forks, K kills, N lowers the priority of a child
_SPARE_BYTES = 256_000_000  # Address space beside the image: libraries' buffers
_PEAK = 8  # Bytes at the peak of decoding for each byte of the result: a progressive JPEG has 5
_LOW_PRIORITY = 10  # A child of this priority gets a tenth of the processor that others want
_WINDOWS_BYTES = 1_500_000_000  # Address space of a child that reads windows
_FLAT = 8  # Bytes at the peak for each byte of a window
_MOST_PROFILE = 16_000_000  # Bytes of an ICC profile that a reply has room for
_PACKAGES = {"NIFTI": "nibabel.nifti1", "DICOM": "pydicom.pixels.utils"}
"""Modules that a format needs, which is no need of its image."""
FACTS: dict[str, Callable[[Path], Any]] = {  # Further questions about a file
    "is_for_windows": is_for_windows,
    "pixel_size": pixel_size_of,
    "georeference": georeference_of,
}


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
            except MissingExtraError as error:
                reply = {"missing": error.facts}
            except BinsegError as error:
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
        self._held = ExitStack()  # the image in work
        self._data = b""  # its file, where that came with the order
        self._image: decoding.Decoder
        self._info: decoding.ImageInfo
        self._is_first_of_many = False
        self._allowed = 0
        self._windows: Windows

    def answer(
        self, order: dict[str, Any], connection: socket.socket, descriptors: list[int]
    ) -> dict[str, Any]:
        """Do what an order says; BinsegError tells what is wrong with the image."""
        kind, start = order["do"], self._start
        if "folder" in order:
            os.chdir(order["folder"])
        if kind in FACTS:
            path = Path(order["path"])
            _allow(start + _SPARE_BYTES)
            with decoding.broken_files(decoding.one_line(path)):
                return _fact(FACTS[kind](path))
        if kind == "survey":
            _allow(start + _SPARE_BYTES)
            return _survey(Path(order["path"]))
        if kind == "open":
            return self._hold(order, connection)
        if kind == "close":
            self._held.close()
            vars(self).pop("_image", None)
            self._data = b""
            return {}
        if kind == "own_pixel_size":
            _allow(self._allowed)
            return _fact(pixel_size_of(BytesIO(self._data)))
        if kind in ("read", "labels", "palette", "cover"):
            return self._decode(order, descriptors)
        if kind == "windows":
            return self._open(Path(order["path"]))
        if kind == "info":
            return vars(self._windows.info(order["page"]))
        size = os.fstat(descriptors[0]).st_size
        _allow(start + _WINDOWS_BYTES + _FLAT * size)
        window = order["window"]
        pixels_HWC, valid_HW = self._windows.read(*window), self._windows.valid(*window)
        return _share(descriptors[0], pixels_HWC, valid_HW)

    def _hold(self, order: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
        """Read a header; the image stays open for what comes next."""
        self._held.close()
        _allow(self._start + _SPARE_BYTES + 4 * order["size"])
        if order["path"]:
            source: Path | bytes = Path(order["path"])
            with opened(source) as handle:
                module = _PACKAGES.get(format_of(handle.read(HEAD)) or "")
                num_packed = os.fstat(handle.fileno()).st_size
            if module is not None:
                with contextlib.suppress(ModuleNotFoundError):  # its reader says that it is missing
                    importlib.import_module(module)
                self._start = max(self._start, _address_space())
        else:
            source = self._data = bytes(_take(connection, order["size"]))
            num_packed = 2 * len(source)
        self._allowed = self._start + _SPARE_BYTES + 2 * min(num_packed, decoding.MAX_BYTES)
        _allow(self._allowed)
        page, any_page = order["page"], order["any_page"]
        with ExitStack() as held:
            self._image = held.enter_context(
                decoder_of(source, name=order["name"], page=page, any_page=any_page)
            )
            self._info = self._image.info()
            self._is_first_of_many = any_page and self._info.num_pages > 1
            self._held = held.pop_all()
        return vars(self._info)

    def _decode(self, order: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        image, info = self._image, self._info
        if self._is_first_of_many:
            raise ImageError(f"{image.name}: holds {info.num_pages} pages; name one of them")
        pixel = info.channels * np.dtype(info.dtype).itemsize + 1
        _allow(self._allowed + _PEAK * info.height * info.width * pixel)
        with decoding.broken_files(image.name):
            if order["do"] == "palette":
                colours = image.palette()
                return {"fact": None if colours is None else colours.ravel().tolist()}
            if order["do"] == "cover":
                alpha_HW, icc = image.cover()
                facts = None if alpha_HW is None else _share(descriptors[0], alpha_HW, None)
                text = b64encode(icc).decode() if icc and len(icc) <= _MOST_PROFILE else None
                return {"alpha": facts, "profile": text}
            if order["do"] == "labels":
                return _share(descriptors[0], image.labels(indices=order["indices"]), None)
            return _share(descriptors[0], image.reduced(order["by"]), image.valid())

    def _open(self, path: Path) -> dict[str, Any]:
        if is_zarr(path):
            with contextlib.suppress(ModuleNotFoundError):  # `open_windows` says that it is missing
                import zarr  # noqa: F401 - its own needs are not the image's
            self._start = _address_space()
        _allow(self._start + _WINDOWS_BYTES)
        self._windows = windows = self._opened.enter_context(open_windows(path))
        facts = {"pixel_size": windows.pixel_size, "axes": windows.axes}
        told = {name: None if one is None else asdict(one) for name, one in facts.items()}
        return {"format": windows.format, "num_pages": windows.num_pages, **told}


def _fact(found: Any) -> dict[str, Any]:
    return {"fact": asdict(found) if is_dataclass(found) else found}  # type: ignore[arg-type]


def _share(descriptor: int, decoded: np.ndarray, valid_HW: decoding.Valid) -> dict[str, Any]:
    native = decoded.dtype.newbyteorder("=")
    image = np.ascontiguousarray(decoded, native)
    valid = b"" if valid_HW is None else np.ascontiguousarray(valid_HW).data.cast("B")
    if image.nbytes + len(valid) <= os.fstat(descriptor).st_size:
        with mmap.mmap(descriptor, 0) as shared:
            shared.write(image.data.cast("B"))
            shared.write(valid)
    return {"shape": image.shape, "dtype": native.name, "has_all": valid_HW is None}


@contextmanager
def shared_memory(num_bytes: int) -> Iterator[int]:
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
    is_large = is_for_windows(path)
    if is_large and holds_tiff(path):
        with open_windows(path) as windows:
            infos = [windows.info(page) for page in range(windows.num_pages)]
    else:  # to open others by windows would unpack them
        with decoder_of(path, name=decoding.one_line(path), any_page=True) as decoder:
            infos = [decoder.info()]
    num_pixels = sum(one.height * one.width for one in infos)
    first = {"height": infos[0].height, "width": infos[0].width}
    return {"needs_windows": is_large, "num_pages": len(infos), "num_pixels": num_pixels, **first}


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


def processor_seconds(pid: int) -> float:
    """The processor time of a child so far; where the system doesn't say, the time."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
