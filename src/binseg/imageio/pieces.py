"""Parts of one TIFF page: only the tiles or strips that a window touches are read and unpacked."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Shaped

from binseg.errors import ImageError

_CACHE_BYTES = 192_000_000
"""Unpacked pieces that are kept: neighbouring windows share many of them."""
_LARGEST_PIECE = 256_000_000
"""Bytes of one unpacked tile or strip; beyond it, reading by windows would save no memory."""


class Cache:
    """The pieces that were used last, up to a number of bytes."""

    def __init__(self, num_bytes: int = _CACHE_BYTES) -> None:
        self._most = num_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what is kept under `key`, else make it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        piece = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = piece
                self._bytes += piece.nbytes
            while self._bytes > self._most and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes
        return piece


class Pieces:
    """The stored numbers of a page, window by window.

    Args:
        page: a page whose tags were read.
        name: what errors call the file.
        cache: shared by all pages of a file.
        key: tells the page's pieces in the cache from those of others.
        skip: bytes from the page's first pixel to those that are meant (ImageJ's large stacks have
            the tags of the first image alone).

    Raises:
        ImageError: the page is packed in pieces that are too large to unpack.
    """

    def __init__(
        self, page: tifffile.TiffPage, *, name: str, cache: Cache, key: int, skip: int = 0
    ) -> None:
        self._page = page
        self._name = name
        self._cache = cache
        self._key = key
        self._skip = skip
        self._planes, _, self._height, self._width, self._samples = page.shaped
        assert page.dtype is not None
        self._dtype = page.dtype
        self._length = min(int(page.tilelength or page.rowsperstrip), self._height)
        if page.is_tiled:
            self._length, self._across = int(page.tilelength), int(page.tilewidth)
        else:
            self._across = self._width
        self.is_plain = _is_plain(page)
        """True if its rows lie in the file as they are in memory."""
        piece = self._length * self._across * self._samples * self._dtype.itemsize
        if not self.is_plain and piece > _LARGEST_PIECE:
            raise ImageError(
                f"{name}: packed in pieces of {piece / 1e9:,.1f} GB, which can't be read by "
                "windows; save it in tiles of 256 x 256 to 1024 x 1024"
            )

    def read(
        self, top: int, left: int, height: int, width: int
    ) -> Shaped[np.ndarray, "height width S"]:
        """Read a window that lies inside the page; the samples of all planes are last."""
        planes = [
            self._read_plain(plane, top, left, height, width)
            if self.is_plain
            else self._read_packed(plane, top, left, height, width)
            for plane in range(self._planes)
        ]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _read_plain(
        self, plane: int, top: int, left: int, height: int, width: int
    ) -> Shaped[np.ndarray, "height width s"]:
        """Rows of unpacked strips, straight from the file."""
        page = self._page
        stored = self._dtype.newbyteorder(page.parent.byteorder)
        pixel = self._samples * stored.itemsize
        strips = -(-self._height // self._length)
        out = np.empty((height, width, self._samples), stored)
        with page.parent.filehandle.lock:
            for row in range(height):
                strip, within = divmod(top + row, self._length)
                start = page.dataoffsets[plane * strips + strip] + self._skip
                page.parent.filehandle.seek(start + (within * self._width + left) * pixel)
                data = page.parent.filehandle.read(width * pixel)
                if len(data) != width * pixel:
                    raise ValueError("the last rows are missing")
                out[row] = np.frombuffer(data, stored).reshape(width, self._samples)
        return out.astype(self._dtype, copy=False)

    def _read_packed(
        self, plane: int, top: int, left: int, height: int, width: int
    ) -> Shaped[np.ndarray, "height width s"]:
        out = np.empty((height, width, self._samples), self._dtype)
        columns = -(-self._width // self._across)
        rows = -(-self._height // self._length)
        for row, inside_row, there_row in _parts(top, height, self._length):
            for column, inside, there in _parts(left, width, self._across):
                index = (plane * rows + row) * columns + column
                piece = self._cache.get((self._key, index), partial(self._unpack, index))
                # Some files' last pieces are as small as what is left of the page.
                out[there_row, there] = piece[inside_row, inside]
        return out

    def _unpack(self, index: int) -> Shaped[np.ndarray, "h w s"]:
        page: Any = self._page
        offset, num_bytes = page.dataoffsets[index], page.databytecounts[index]
        data = None
        if num_bytes:
            with page.parent.filehandle.lock:
                page.parent.filehandle.seek(offset)
                data = page.parent.filehandle.read(num_bytes)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        given = tables if int(page.compression) in _JPEG else {}
        values, _, shape = page.decode(data, index, **given)
        if values is None:  # a sparse file leaves such pieces out
            return np.full(shape[1:], page.nodata, self._dtype)
        piece: np.ndarray = np.asarray(values)[0]
        return piece


_JPEG = (6, 7, 33007, 34892)


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Tell whether the rows lie in the file as they are in memory."""
    assert page.dtype is not None
    return (
        not page.is_tiled
        and int(page.compression) == 1
        and int(page.predictor) == 1
        and int(page.fillorder) == 1
        and int(page.bitspersample) == 8 * page.dtype.itemsize
        and page.dtype.kind in "uif"
        and not page.is_subsampled
        and all(page.dataoffsets)
    )


def _parts(start: int, count: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut a stretch at multiples of `length`: number of the piece, place in it, and in the stretch.

    >>> list(_parts(5, 4, 8))
    [(0, slice(5, 8, None), slice(0, 3, None)), (1, slice(0, 1, None), slice(3, 4, None))]
    """
    place = start
    while place < start + count:
        number = place // length
        end = min(start + count, (number + 1) * length)
        inside = slice(place - number * length, end - number * length)
        yield number, inside, slice(place - start, end - start)
        place = end
