"""Images of any size, read window by window: TIFF, OME-Zarr, and other formats where they fit."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from binseg.errors import ImageError
from binseg.imageio import decoding
from binseg.imageio.formats import choose, decoder_of, opened
from binseg.imageio.metadata import PixelSize, pixel_size_of
from binseg.imageio.tiff import TiffImage, image_of, is_tiff, pieces_of, read_pieces
from binseg.imageio.tiff_parts import Pieces, list_tiff
from binseg.imageio.zarr_folders import ZarrAxes, ZarrWindows, is_zarr

WINDOW_PIXELS = 64_000_000  # Larger images are better read by windows than whole


@runtime_checkable
class Windows(Protocol):
    """An image, or a stack of them, of which any part can be read alone."""

    name: str  # The file's name in errors
    format: str  # TIFF, ZARR, or the name of another format
    num_pages: int
    pixel_size: PixelSize | None  # Size of a pixel, where the file tells
    axes: ZarrAxes | None = None  # Axes of a Zarr folder

    def info(self, page: int) -> decoding.ImageInfo:
        """Give size, channels and type of one page, from its header."""

    def read(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Pixels:
        """Read a window that lies inside the page, as `read_image` would give that part of it."""

    def valid(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Valid:
        """Tell where a window has data; None where it has it everywhere."""
        return None


def holds_tiff(path: Path) -> bool:
    """Tell a TIFF file by its first bytes; ImageError where it can't be opened."""
    with opened(path) as handle:
        return is_tiff(handle.read(32))


def is_for_windows(path: Path) -> bool:
    """Do as `needs_windows` for a file, in this process."""
    name = decoding.one_line(path)
    with opened(path) as handle, decoding.broken_files(name):
        if is_tiff(handle.read(32)):
            content = list_tiff(handle)
            if max(content.num_pages, content.num_hidden) > 1:
                return True
            info = image_of(content, 0, name=name).info()
        else:
            handle.seek(0)
            info = choose(handle, name=name, any_page=True).info()
    return info.height * info.width > WINDOW_PIXELS


@contextmanager
def open_windows(path: Path) -> Iterator[Windows]:
    """Open an image to read parts of it; raises ImageError, and MissingExtraError for Zarr."""
    if is_zarr(path):
        yield ZarrWindows(path)
        return
    with opened(path) as handle:
        with decoding.broken_files(decoding.one_line(path)):
            tiff = is_tiff(handle.read(32))
        yield TiffWindows(handle, path) if tiff else _WholeWindows(path)


class TiffWindows(Windows):
    """A TIFF file, read by windows; see `Windows`."""

    format = "TIFF"

    def __init__(self, handle: decoding.Handle, path: Path) -> None:
        self.name = decoding.one_line(path)
        self._lock = threading.Lock()  # one file, whose place to read from all threads move
        with decoding.broken_files(self.name):
            self._content = list_tiff(handle)
            self.num_pages = max(self._content.num_pages, self._content.num_hidden)
        self._cache = decoding.Cache()
        self._open: tuple[int, TiffImage, list[Pieces]] | None = None
        self.pixel_size = pixel_size_of(path)
        if self.pixel_size is not None and decoding.swaps_sides(self._page(0)[0].orientation):
            self.pixel_size = PixelSize(height=self.pixel_size.width, width=self.pixel_size.height)

    def info(self, page: int) -> decoding.ImageInfo:
        """Give size, channels and type of one page, from its header."""
        with decoding.broken_files(self.name):
            return self._page(page)[0].info()

    def read(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Pixels:
        """Read a window that lies inside the page, as `read_image` would give that part of it."""
        with self._lock, decoding.broken_files(self.name):
            image, pieces = self._page(page)
            tall, wide, _ = image.stored_shape()
            window = _before_turn((top, left, height, width), image.orientation, tall, wide)
            stored_HWC = read_pieces(pieces, *window)
            return decoding.turn(image.colours_of(stored_HWC), image.orientation)

    def valid(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Valid:
        """Tell where a window has data; None where it has it everywhere."""
        with self._lock, decoding.broken_files(self.name):
            image, pieces = self._page(page)
            if not image.may_miss:
                return None
            tall, wide, _ = image.stored_shape()
            window = _before_turn((top, left, height, width), image.orientation, tall, wide)
            missing_HW = image.missing(read_pieces(pieces, *window))
            return decoding.turn(~missing_HW, image.orientation) if missing_HW.any() else None

    def _page(self, page: int) -> tuple[TiffImage, list[Pieces]]:
        if self._open is None or self._open[0] != page:
            hidden = self._content.num_hidden
            if hidden and not 0 <= page < hidden:
                raise ImageError(f"{self.name}: there is no page {page}; it has {hidden}")
            image = image_of(self._content, 0 if hidden else page, name=self.name)
            if image.layout == "page a row":
                told = "each page holds one row of the image"
                raise ImageError(f"{self.name}: {told}; save it as RGB in tiles")
            skip = page * image.page.nbytes if hidden else 0
            # No image of a file has more pages than this.
            pieces = pieces_of(image, self._cache, key=100 * page, skip=skip)
            if hidden and not pieces[0].is_plain:
                told = "a packed ImageJ stack under one page"
                raise ImageError(f"{self.name}: {told}; save it as BigTIFF")
            self._open = page, image, pieces
        return self._open[1], self._open[2]


class DeclaredWindows(Windows):
    """Windows of another image, in which a value is declared to be no data; see `without`."""

    def __init__(self, inner: Windows, value: float) -> None:
        self._inner, self._value = inner, value
        self.name, self.format, self.num_pages = inner.name, inner.format, inner.num_pages
        self.pixel_size, self.axes = inner.pixel_size, inner.axes
        self._usual: dict[int, np.ndarray] = {}

    def info(self, page: int) -> decoding.ImageInfo:
        """Give size, channels and type of one page, from its header."""
        return self._inner.info(page)

    def read(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Pixels:
        """Read a window, filled with the page's medians where there is no data."""
        return self._read(page, top, left, height, width)[0]

    def valid(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Valid:
        """Tell where a window has data; None where it has it everywhere."""
        declared_HW = self._read(page, top, left, height, width)[1]
        return decoding.both_valid(declared_HW, self._inner.valid(page, top, left, height, width))

    def _read(self, page: int, *window: int) -> tuple[decoding.Pixels, decoding.Valid]:
        if page not in self._usual:
            info = self.info(page)
            parts = [
                self._inner.read(page, *one) for one in decoding.diagonal(info.height, info.width)
            ]
            sample_NC = np.concatenate([one.reshape(-1, one.shape[2]) for one in parts])
            self._usual[page] = decoding.usual_of(sample_NC, self._value)
        return decoding.without(self._inner.read(page, *window), self._value, self._usual[page])


def declared(windows: Windows, values: Iterable[float]) -> Windows:
    """Give windows in which these values are no data."""
    for value in values:
        windows = DeclaredWindows(windows, value)
    return windows


class _WholeWindows(Windows):
    """An image whose format can't be read in parts, held in memory."""

    num_pages = 1
    pixel_size: PixelSize | None = None

    def __init__(self, path: Path) -> None:
        self.name = decoding.one_line(path)
        with decoder_of(path, name=self.name) as decoder:
            self._info, self._image_HWC = decoder.info(), decoder.image()
        self.format = self._info.format

    def info(self, page: int) -> decoding.ImageInfo:
        assert page == 0, page
        return self._info

    def read(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Pixels:
        assert page == 0, page
        return self._image_HWC[top : top + height, left : left + width]


def _before_turn(
    window: tuple[int, int, int, int], orientation: int, tall: int, wide: int
) -> tuple[int, int, int, int]:
    """Find a window of the turned image in the stored one, of `tall` x `wide` pixels."""
    top, left, height, width = window
    if decoding.swaps_sides(orientation):
        # The turned image's rows are the stored one's columns.
        top, left, height, width = left, top, width, height
    if orientation in (3, 4, 6, 7):
        top = tall - top - height
    if orientation in (2, 3, 7, 8):
        left = wide - left - width
    return top, left, height, width
