"""Parts that all decoders share: the facts of an image, size limits, turning, and broken files."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num, Shaped
from PIL import Image, UnidentifiedImageError
from tifffile import TiffFileError

from binseg.errors import ImageError

Handle = io.BufferedReader | io.BytesIO
"""An open file, or one in memory."""

MAX_PIXELS = 400_000_000
"""Largest image that is read whole; a small file can claim any size and fill the memory."""
MAX_BYTES = 6 * MAX_PIXELS
"""Largest decoded image in memory: MAX_PIXELS of 16-bit colour."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Facts of a file's header, in terms of what `read_image` will give."""

    height: int
    width: int
    channels: int
    dtype: str
    """uint8, uint16 or float32."""
    mode: str
    """The file's own kind of pixels: a Pillow mode (RGB, P, 1, CMYK), or TIFF's name for it."""
    format: str
    """JPEG, PNG, WEBP, BMP, GIF or TIFF."""
    num_pages: int
    turned: bool
    """The file asks to be turned or mirrored (EXIF); height and width are those after it."""
    orientation: int = 1
    """EXIF's number of that turn, 1 to 8."""
    nodata: float | None = None
    """Value that the file declares to be none (GDAL's tag)."""
    keeps_alpha: bool = False
    """A channel is marked as transparency but varies like data, and is read as one."""


def one_line(text: object) -> str:
    """The text without line breaks, as errors are shown on one line."""
    return " ".join(str(text).split())


# What Pillow, tifffile and imagecodecs raise on files that are cut, edited or made up. RuntimeError
# is the base of all of imagecodecs' errors, and tifffile asserts what it expects of a file.
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    Image.DecompressionBombError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TiffFileError,
    TypeError,
    UnidentifiedImageError,
    ValueError,
    struct.error,
    zlib.error,
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
        raise ImageError(
            f"{name}: {width} x {height} pixels are {height * width / 1e6:,.0f} megapixels; up to "
            f"{MAX_PIXELS / 1e6:,.0f} are read at once, cut it into pieces"
        )
    num_bytes = height * width * channels * itemsize
    if num_bytes > MAX_BYTES:
        raise ImageError(
            f"{name}: {width} x {height} pixels of {channels} channels take "
            f"{num_bytes / 1e9:,.1f} GB; up to {MAX_BYTES / 1e9:,.1f} GB are read at once, "
            "cut it into pieces"
        )


def finite_float32(values: Num[np.ndarray, "..."], *, name: str) -> Num[np.ndarray, "..."]:
    """Any numbers as float32; NaN and infinities (also those too large for float32) are refused."""
    with np.errstate(over="ignore"):
        as_float = values.astype(np.float32, copy=False)
    if not np.isfinite(as_float).all():
        raise ImageError(f"{name}: holds NaN or infinite pixels; replace them by numbers")
    return as_float


def turn(pixels: Shaped[np.ndarray, "H W ..."], orientation: int) -> Shaped[np.ndarray, "..."]:
    """Turn and mirror as EXIF's orientation (1 to 8; anything else is 1) asks; own memory."""
    match orientation:
        case 2:
            pixels = pixels[:, ::-1]
        case 3:
            pixels = pixels[::-1, ::-1]
        case 4:
            pixels = pixels[::-1]
        case 5:
            pixels = pixels.swapaxes(0, 1)
        case 6:
            pixels = pixels.swapaxes(0, 1)[:, ::-1]
        case 7:
            pixels = pixels.swapaxes(0, 1)[::-1, ::-1]
        case 8:
            pixels = pixels.swapaxes(0, 1)[::-1]
        case _:
            pass
    # Pillow's arrays are read-only, and torch takes offence at those.
    return np.require(pixels, requirements=["C", "W"])


def swaps_sides(orientation: int) -> bool:
    """Tell whether turning makes the height the width."""
    return 5 <= orientation <= 8


def orientation_of_exif(exif: bytes) -> int:
    """Read the orientation out of an EXIF block; 1 (as it is) where there is none or it is broken.

    Pillow's parser warns about damaged blocks, and cameras write many of them; this one looks at a
    single tag and stays silent.
    """
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
