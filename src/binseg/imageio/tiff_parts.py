"""Parts of a TIFF file: which pages are images, and the tiles or strips that they are packed in."""

import math
import re
import struct
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import tifffile

from binseg.errors import ImageError
from binseg.imageio.decoding import Cache, Handle, Stored, check_scans, fill_window

_MOST_LEVELS = 32  # More pages are a stack; a pyramid of smaller copies has fewer levels
_MOST_CHANNELS = 16  # So many pages may be one image's channels, where its metadata says so
_LARGEST_PIECE = 256_000_000  # Bytes of a tile or strip; beyond it, windows would save no memory
_JPEG = (6, 7)  # compressions whose pieces share tables
_WITH_SIZE = (*_JPEG, 33003, 33004, 33005, 34712, 34887, 50001)
"""JPEG, JPEG 2000, LERC and WebP: each piece has a header with a size of its own."""
_COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, *_WITH_SIZE)
"""Further: none, fax, LZW, deflate, PackBits, LZMA and Zstandard, which end at a given size."""
_MOST_PAGES = 1_000_000
_MOST_PLANES = 100_000  # In OME's metadata, or 64 for each page: others may be elsewhere

Layout = Literal["page", "page a channel", "page a row"]


@dataclass(frozen=True)
class TiffContent:
    """Pages of an open TIFF file that are images."""

    file: tifffile.TiffFile
    images: tuple[tuple[int, ...], ...]
    """The pages of each image: one, unless its channels or rows are spread over several. Smaller
    copies and transparency of another page are left out."""
    layout: Layout
    num_hidden: int  # images of an ImageJ stack that share the tags of one page; else 0

    @property
    def num_pages(self) -> int:
        """Count the images, without hidden ones."""
        return len(self.images)


def list_tiff(handle: Handle) -> TiffContent:
    """Look through the pages of a file."""
    handle.seek(0)
    file = tifffile.TiffFile(handle, _multifile=False)
    file.filehandle.set_lock(True)
    real = _real_pages(file)
    # Beyond 4 GB ImageJ gives all images of a stack one page, and notes how many there are.
    noted = (file.imagej_metadata if file.is_imagej else None) or {}
    hidden = int(noted.get("images", 1))
    _check_claims(file, hidden if hidden > len(real) else 0)
    return TiffContent(file, *_arranged(file, real), hidden if hidden > len(real) else 0)


def _check_claims(file: tifffile.TiffFile, hidden: int) -> None:
    """Refuse images that the metadata claims and the file can't hold, before anyone lists them."""
    if hidden:
        needed = hidden * page_of(file, 0).nbytes
        if hidden > _MOST_PAGES or needed > file.filehandle.size:
            raise ValueError(f"it claims {hidden:,} images of {needed:,} bytes, and holds fewer")
    about = file.ome_metadata if file.is_ome else None
    if about is None:
        return
    if "<!" in about.replace("<!--", ""):
        raise ValueError("its OME metadata declares entities")
    planes = 0
    for one in re.findall(r"<(?:\w+:)?Pixels\s[^>]*", about):
        lengths = re.findall(r"\bSize[ZCT]\s*=\s*[\"']\s*(\d+)", one)
        planes += math.prod(int(length[:18]) for length in lengths)
    if planes > max(_MOST_PLANES, 64 * len(file.pages)):
        raise ValueError(f"its OME metadata claims {planes:,} planes")


def check_compression(page: tifffile.TiffPage) -> None:
    """Refuse compressions not known to end at the size that is asked for, with ValueError."""
    if int(page.compression) not in _COMPRESSIONS:
        raise ValueError(f"compression {int(page.compression)}; save it with deflate, LZW or JPEG")


def check_pieces(page: tifffile.TiffPage) -> None:
    """Refuse a page one of whose pieces would unpack to far more than its place: ValueError."""
    if int(page.compression) in _WITH_SIZE:
        file: Any = page.parent.filehandle
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if count:
                file.seek(start)
                check_piece(page, file.read(count))


def check_piece(page: tifffile.TiffPage, data: bytes) -> None:
    """Refuse a packed piece that claims too many pixels, or hundreds of scans: ValueError."""
    if int(page.compression) not in _WITH_SIZE:
        return
    if int(page.compression) == 6 and page.jpegheader:
        data = page.jpegheader + data  # old files keep the header apart
    size = _own_size(data)
    sides = (page.tilelength, page.tilewidth)
    place = math.prod(sides if page.is_tiled else (page.rowsperstrip, page.imagewidth))
    if size is None or math.prod(size) > 4 * place + 65_536:
        height, width = size or (0, 0)
        raise ValueError(f"a piece of {place:,} pixels claims {width} x {height}")
    check_scans(data)


def _own_size(data: bytes) -> tuple[int, int] | None:
    """Find height and width in the header of a JPEG, JPEG 2000, WebP or LERC; None without one."""
    if data[:2] == b"\xff\xd8":
        at = 2
        while at + 9 <= len(data) and data[at] == 0xFF:
            kind = data[at + 1]
            if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                return struct.unpack_from(">HH", data, at + 5)
            known = kind in (0x01, 0xFF, 0xD8) or 0xD0 <= kind <= 0xD7  # without a length
            skip = 1 if kind == 0xFF else 2
            at += skip if known else 2 + struct.unpack_from(">H", data, at + 2)[0]
    elif (at := data[:65_536].find(b"\xff\x4f\xff\x51")) >= 0 and len(data) >= at + 24:
        width, height, left, top = struct.unpack_from(">4I", data, at + 8)
        return max(0, height - top), max(0, width - left)
    elif data[:4] == b"RIFF" and data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        return height, width
    elif data[:4] == b"RIFF" and data[12:16] == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    elif data[:4] == b"RIFF" and data[12:16] == b"VP8L" and len(data) >= 25:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    elif data[:6] == b"Lerc2 " and len(data) >= 22:
        at = 14 if struct.unpack_from("<I", data, 6)[0] >= 3 else 10
        return struct.unpack_from("<II", data, at)
    return None


def _real_pages(file: tifffile.TiffFile) -> list[int]:
    """List the pages that are images of their own, no smaller copies or transparency of another."""
    if file.is_svs:
        return [0]  # the others are its pyramid, thumbnail, label and a photograph of the slide
    count = len(file.pages)
    if count == 1 or count > _MOST_LEVELS:
        return list(range(count))
    pages = [page_of(file, index) for index in range(count)]
    whole = [index for index, page in enumerate(pages) if not page.is_reduced]
    return [index for index in whole if not pages[index].is_mask] or whole or [0]


def page_of(file: tifffile.TiffFile, index: int) -> tifffile.TiffPage:
    """Give a page with all of its tags."""
    page = file.pages[index]
    # Reading a series leaves frames behind: pages that borrow most tags from the first one.
    return page if isinstance(page, tifffile.TiffPage) else page.aspage()


def _arranged(
    file: tifffile.TiffFile, real: list[int]
) -> tuple[tuple[tuple[int, ...], ...], Layout]:
    """Tell the channels of an image from a stack of images, by what the writer noted."""
    # tifffile, handed height x width x channels without a word, writes a page for each *row*.
    singles = tuple((page,) for page in real)
    if len(real) == 1:
        return singles, "page"
    if file.is_imagej or file.is_ome:
        axes, shape = file.series[0].axes, file.series[0].shape
        if axes[-2:] == "YX" and "C" in axes and math.prod(shape[:-2]) == len(real):
            at = axes.index("C")
            if 1 < shape[at] <= _MOST_CHANNELS:
                order = np.moveaxis(np.array(real).reshape(shape[:-2]), at, -1)
                images = order.reshape(-1, shape[at]).tolist()
                return tuple(map(tuple, images)), "page a channel"
        return singles, "page"
    if file.is_shaped and page_of(file, 0).ndim == 2:
        shape = file.series[0].shape
        narrow = len(shape) == 3 and shape[2] <= _MOST_CHANNELS < min(shape[:2])
        if narrow and shape[0] == len(real):
            return (tuple(real),), "page a row"
    return singles, "page"


class Pieces:
    """A page's numbers, read by pieces (`key` in the cache), which begin `skip` bytes later."""

    def __init__(
        self, page: tifffile.TiffPage, *, name: str, cache: Cache, key: int, skip: int = 0
    ) -> None:
        assert page.dtype is not None
        self._page, self._cache, self._key, self._skip = page, cache, key, skip
        self._dtype = page.dtype
        self._planes, _, self._height, self._width, self._samples = page.shaped
        self._grid = (
            (int(page.tilelength), int(page.tilewidth))
            if page.is_tiled
            else (min(int(page.rowsperstrip), self._height), self._width)
        )
        self.is_plain = _is_plain(page)  # True if its rows lie in the file as they are in memory
        num_bytes = math.prod(self._grid) * self._samples * self._dtype.itemsize
        if not self.is_plain and num_bytes > _LARGEST_PIECE:
            told = f"packed in pieces of {num_bytes / 1e9:,.1f} GB, which can't be read by windows"
            raise ImageError(f"{name}: {told}; save it in tiles of 256 x 256 to 1024 x 1024")

    def read(self, top: int, left: int, height: int, width: int) -> Stored:
        """Read a window that lies inside the page; the samples of all planes are last."""
        planes = []
        for plane in range(self._planes):
            out = np.empty((height, width, self._samples), self._dtype)
            if self.is_plain:
                self._read_plain(out, plane, top, left)
            else:
                fill_window(out, (top, left), self._grid, partial(self._piece, plane))
            planes.append(out)
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _read_plain(self, out: Stored, plane: int, top: int, left: int) -> None:
        """Fill a window with rows of unpacked strips, straight from the file."""
        offsets, file = self._page.dataoffsets, self._page.parent
        stored = self._dtype.newbyteorder(file.byteorder)
        pixel = self._samples * stored.itemsize
        strips = -(-self._height // self._grid[0])
        for row, out_row in enumerate(out):
            strip, within = divmod(top + row, self._grid[0])
            start = offsets[plane * strips + strip] + self._skip
            data = self._bytes(start + (within * self._width + left) * pixel, len(out_row) * pixel)
            if len(data) != len(out_row) * pixel:
                raise ValueError("the last rows are missing")
            out_row[:] = np.frombuffer(data, stored).reshape(out_row.shape)

    def _piece(self, plane: int, row: int, column: int) -> Stored:
        rows, columns = -(-self._height // self._grid[0]), -(-self._width // self._grid[1])
        index = (plane * rows + row) * columns + column
        return self._cache.get((self._key, index), partial(self._unpack, index))

    def _unpack(self, index: int) -> Stored:
        page: Any = self._page
        num_bytes = page.databytecounts[index]
        data = self._bytes(page.dataoffsets[index], num_bytes) if num_bytes else None
        if data is not None:
            check_piece(page, data)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        given = tables if int(page.compression) in _JPEG else {}
        values, _, shape = page.decode(data, index, **given)
        if values is None:  # a sparse file leaves such pieces out
            return np.full(shape[1:], page.nodata, self._dtype)
        piece: np.ndarray = np.asarray(values)[0]
        return piece

    def _bytes(self, start: int, count: int) -> bytes:
        file: Any = self._page.parent.filehandle
        with file.lock:
            file.seek(start)
            return bytes(file.read(count))


def _is_plain(page: tifffile.TiffPage) -> bool:
    assert page.dtype is not None
    is_whole = not (page.is_tiled or page.is_subsampled) and all(page.dataoffsets)
    is_raw = {int(one) for one in (page.compression, page.predictor, page.fillorder)} == {1}
    has_bytes = int(page.bitspersample) == 8 * page.dtype.itemsize and page.dtype.kind in "uif"
    return is_whole and is_raw and has_bytes
