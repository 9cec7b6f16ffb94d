"""Parts that all decoders share: the facts of an image, size limits, turning, and broken files."""

import io
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Num, Shaped, UInt8
from PIL import Image
from tifffile import TiffFileError

from binseg.errors import ImageError
from binseg.types import AnyImage, Mask

Handle = io.BufferedReader | io.BytesIO  # An open file, or one in memory

Pixels = AnyImage  # An image as `read_image` gives it: uint8, uint16 or float32
Valid = Mask | None  # False where an image has no data; None: data everywhere
Reduction = Callable[[tuple[int, int]], int]  # Pixels a side averaged, by height and width
Stored = Shaped[np.ndarray, "h w S"]  # Numbers of (a part of) an image as they are in the file
Labels = Shaped[np.ndarray, "H W ..."]  # A mask's numbers, or its colours
Opacity = UInt8[np.ndarray, "H W"]
ReadAs = Literal["colours", "indices", "alpha"]  # Numbers of a file that are a mask's
Cover = tuple[Opacity | None, bytes | None]  # transparency, and the ICC profile of the colours
"""0 where an image is transparent, 255 where it is opaque."""
Colours = UInt8[np.ndarray, "N 3"]

MAX_PIXELS = 400_000_000  # Largest image that is read whole; a small file can claim any size
MAX_BYTES = 6 * MAX_PIXELS  # Largest decoded image in memory: that many of 16-bit colour

SAMPLE_SIDE = 256  # Side of the windows that tell what a channel usually holds
MOST_SCANS = 40  # A progressive JPEG has some ten; each one costs as much time as the whole image


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Facts of a file's header, in terms of what `read_image` will give."""

    height: int
    width: int
    channels: int
    dtype: str  # uint8, uint16 or float32
    mode: str  # The file's own kind of pixels: a Pillow mode (RGB, P, 1), or TIFF's name for it
    format: str  # JPEG, PNG, WEBP, BMP, GIF or TIFF
    num_pages: int = 1
    orientation: int = 1  # EXIF's turn or mirroring, 1 to 8; height and width are those after it
    nodata: float | None = None  # Value that the file declares to be none (GDAL's tag)
    keeps_alpha: bool = False  # Transparency that varies like data is read as data
    axes: str = ""  # Ways that a volume's axes run, as RAS, where its header says so

    @property
    def turned(self) -> bool:
        """Tell whether the file asks to be turned or mirrored."""
        return self.orientation != 1


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """An image whose header was read; its pixels are still packed."""

    name: str  # The file's name in errors

    @abstractmethod
    def info(self) -> ImageInfo:
        """Give the facts of the image as `image` gives it."""

    @abstractmethod
    def image(self) -> Pixels:
        """Decode the pixels, turned: uint8, uint16 or float32."""

    def reduced(self, by: int) -> Pixels:
        """Decode the pixels averaged over squares of up to `by` x `by`, where that saves work."""
        del by
        return self.image()

    @abstractmethod
    def labels(self, *, indices: bool = False) -> Labels:
        """Decode a mask's own numbers, turned: a palette's colours, or its indices."""

    def valid(self) -> Valid:
        """Tell where there is data, turned; None where it is everywhere."""
        return None

    def cover(self) -> Cover:
        """Give what images leave out: transparency, turned, and the ICC profile of the colours."""
        return None, None

    def palette(self) -> Colours | None:
        """Give the colours of a palette, where there is one."""
        return None


def one_line(text: object) -> str:
    """The text without line breaks, as errors are shown on one line."""
    return " ".join(str(text).split())


# What Pillow, tifffile and imagecodecs raise on files that are cut, edited or made up. RuntimeError
# is the base of all of imagecodecs' errors, and tifffile asserts what it expects of a file.
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error),
    *(Image.DecompressionBombError, TiffFileError),
)


@contextmanager
def broken_files(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a broken file into one line that names the file."""
    try:
        yield
    except MemoryError as error:
        raise ImageError(f"{name}: too large for this machine's memory; cut it up") from error
    except _BROKEN as error:
        reason = one_line(error)[:160] or type(error).__name__
        raise ImageError(
            f"{name}: the file is damaged or cut off ({reason}); get it anew or leave it out"
        ) from error


def check_size(name: str, *, height: int, width: int, channels: int, itemsize: int) -> None:
    """Refuse images without pixels, and those that would fill the memory, before decoding."""
    if height <= 0 or width <= 0 or channels <= 0:
        raise ImageError(f"{name}: {width} x {height} pixels; get it anew or leave it out")
    if height * width > MAX_PIXELS:
        most = f"up to {MAX_PIXELS / 1e6:,.0f} are read at once, cut it into pieces"
        told = f"{width} x {height} pixels are {height * width / 1e6:,.0f} megapixels"
        raise ImageError(f"{name}: {told}; {most}")
    size = height * width * channels * itemsize / 1e9
    if size > MAX_BYTES / 1e9:
        most = f"up to {MAX_BYTES / 1e9:,.1f} GB are read at once, cut it into pieces"
        told = f"{width} x {height} pixels of {channels} channels take {size:,.1f} GB"
        raise ImageError(f"{name}: {told}; {most}")


def check_scans(jpeg: bytes) -> None:
    """Refuse, by ValueError, a JPEG of more scans than any camera or program writes."""
    if jpeg[:2] == b"\xff\xd8" and (num := jpeg.count(b"\xff\xda")) > MOST_SCANS:
        raise ValueError(f"{num:,} scans in one JPEG")


def finite_float32(values: Num[np.ndarray, "..."], *, name: str) -> Num[np.ndarray, "..."]:
    """Any numbers as float32; NaN and infinities (also those too large for float32) are refused."""
    with np.errstate(over="ignore"):
        as_float = values.astype(np.float32, copy=False)
    if not np.isfinite(as_float).all():
        raise ImageError(f"{name}: holds NaN or infinite pixels; replace them with numbers")
    return as_float


def given_dtype(stored: np.dtype[np.generic], bits: int | None = None) -> str:
    """Name the type in which `read_image` gives numbers of a stored type, of so many bits."""
    bits = bits or 8 * stored.itemsize
    if stored.kind == "b" or (stored.kind == "u" and bits <= 8):
        return "uint8"
    return "uint16" if stored.kind == "u" and bits <= 16 else "float32"


def as_given(values: Shaped[np.ndarray, "..."], *, name: str) -> Num[np.ndarray, "..."]:
    """Bring numbers into the type of `given_dtype`; bools become 0 and 255."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    dtype = given_dtype(values.dtype)
    if dtype == "float32":
        return finite_float32(values, name=name)
    return np.ascontiguousarray(values, dtype)


def turn(pixels: Labels, orientation: int) -> Shaped[np.ndarray, "..."]:
    """Turn and mirror as EXIF's orientation (1 to 8; anything else is 1) asks; own memory."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    # Pillow's arrays are read-only, and torch takes offence at those.
    return np.require(pixels, requirements=["C", "W"])


def missing_in(
    pixels_HWC: Shaped[np.ndarray, "h w C"], value: float | None
) -> Bool[np.ndarray, "h w"]:
    """Tell where one channel of measurements, or a whole colour, is NaN or declared no data."""
    missing = pixels_HWC == value
    if pixels_HWC.dtype.kind == "f":
        missing = np.isnan(pixels_HWC)
        if value is not None:
            # A tag is a text, which may have fewer digits than the number.
            missing |= np.isclose(pixels_HWC, value, rtol=1e-5, atol=0.0)
    return np.asarray(missing.all(axis=2) if pixels_HWC.dtype.kind == "u" else missing.any(axis=2))


def diagonal(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Give windows (top, left, height, width) along an image's diagonal, which tell the usual."""
    tall, wide = min(SAMPLE_SIDE, height), min(SAMPLE_SIDE, width)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    corners = {(round(one * (height - tall)), round(one * (width - wide))) for one in shares}
    return [(top, left, tall, wide) for top, left in sorted(corners)]


def usual_of(sample_NC: Shaped[np.ndarray, "N C"], value: float | None) -> Shaped[np.ndarray, "C"]:
    """Give each channel's median: it fills what is missing, and moves no percentile by much."""
    known_NC = sample_NC[~missing_in(sample_NC[:, None], value)[:, 0]]
    if not len(known_NC):
        return np.zeros(sample_NC.shape[1], sample_NC.dtype)
    return np.asarray(np.median(known_NC, axis=0)).astype(known_NC.dtype)


def without(
    pixels_HWC: Pixels, value: float, usual_C: Shaped[np.ndarray, "C"] | None = None
) -> tuple[Pixels, Valid]:
    """Fill a declared value with the usual, in a copy, and give False there; None if nowhere."""
    missing_HW = missing_in(pixels_HWC, value)
    if not missing_HW.any():
        return pixels_HWC, None
    if usual_C is None:
        parts = [pixels_HWC[t : t + h, s : s + w] for t, s, h, w in diagonal(*pixels_HWC.shape[:2])]
        sample_NC = np.concatenate([one.reshape(-1, pixels_HWC.shape[2]) for one in parts])
        usual_C = usual_of(sample_NC, value)
    return np.where(missing_HW[:, :, None], usual_C, pixels_HWC), ~missing_HW


def both_valid(first: Valid, second: Valid) -> Valid:
    """Join two maps of where there is data."""
    return second if first is None else first if second is None else first & second


def swaps_sides(orientation: int) -> bool:
    """Tell whether turning makes the height the width."""
    return 5 <= orientation <= 8


def orientation_of_exif(exif: bytes) -> int:
    """Read the orientation out of an EXIF block, or 1, without the warnings of Pillow's parser."""
    exif = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "L", exif, 4)
        (num_tags,) = struct.unpack_from(order + "H", exif, start)
        for index in range(num_tags):
            tag, kind, _, value = struct.unpack_from(order + "HHLH", exif, start + 2 + 12 * index)
            if tag == 0x0112 and kind == 3:  # one 16-bit number, in the entry itself
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass  # cut off before the tag, which is the same as having none
    return 1


class Cache:
    """Unpacked parts of images that were used last: neighbouring windows share many of them."""

    def __init__(self, num_bytes: int = 192_000_000) -> None:
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
        part = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = part
                self._bytes += part.nbytes
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return part


def fill_window(
    out: np.ndarray,
    corner: tuple[int, int],
    grid: tuple[int, int],
    part: Callable[[int, int], np.ndarray],
) -> None:
    """Fill the window `out`, its corner at (top, left), from the grid of parts that it touches."""
    for row, inside_row, there_row in _stretches(corner[0], out.shape[0], grid[0]):
        for column, inside, there in _stretches(corner[1], out.shape[1], grid[1]):
            # Some files' last parts are as small as what is left of the image.
            out[there_row, there] = part(row, column)[inside_row, inside]


def _stretches(start: int, count: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut a stretch at multiples of `length`: number of the part, place in it, and in the stretch.

    >>> list(_stretches(5, 4, 8))
    [(0, slice(5, 8, None), slice(0, 3, None)), (1, slice(0, 1, None), slice(3, 4, None))]
    """
    for number in range(start // length, -(-(start + count) // length)):
        first = max(start, number * length)
        end = min(start + count, (number + 1) * length)
        inside = slice(first - number * length, end - number * length)
        yield number, inside, slice(first - start, end - start)
